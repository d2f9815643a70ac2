"""The diversity of a prompt's pictures, and the distance between two sets of pictures, in a feature space.

All take feature vectors [N, D], one per picture, from `features.py`.
"""

from __future__ import annotations

import numpy as np


def pairwise_similarity(features: np.ndarray) -> float:
    """Mean cosine over all pairs of different pictures; 1 if all are alike. Needs at least two pictures."""
    cosines = _cosines(features)
    count = len(features)
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def kernel_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The squared MMD with the kernel (x·y / D + 1)³, unbiased: about 0 for sets from one distribution.

    In Inception's features this is KID (Bińkowski et al. 2018, arXiv 1801.01401), which averages over subsets.
    """
    n, m = len(ours), len(theirs)
    within = sum(
        (k.sum() - np.trace(k)) / (count * (count - 1))
        for k, count in ((_cubic(ours, ours), n), (_cubic(theirs, theirs), m))
    )
    return float(within - 2 * _cubic(ours, theirs).mean())


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _cosines(features: np.ndarray) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit @ unit.T
