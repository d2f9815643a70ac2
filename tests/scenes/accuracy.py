"""Accuracy of verdicts by the scenes judge, as the benchmark weighs them."""

import numpy as np


def score(verdicts):
    """The mean over categories of each one's share of right pictures, those shares, and mean artefacts."""
    categories = {}
    for request, verdict in verdicts:
        categories.setdefault(request.category, []).append(verdict.right)
    shares = {name: float(np.mean(right)) for name, right in categories.items()}
    artefacts = float(np.mean([verdict.artefacts for _, verdict in verdicts]))
    return {"score": float(np.mean(list(shares.values()))), "categories": shares, "artefacts": artefacts}
