"""Bootstrap intervals over prompts, whole or within groups."""

from __future__ import annotations

import numpy as np

ROUNDS = 2000


def grouped_mean(values: np.ndarray, groups: np.ndarray) -> float:
    """The mean over groups of each group's mean; `values` and `groups` [prompts]."""
    return float(np.mean([values[groups == name].mean() for name in np.unique(groups)]))


def interval(values: np.ndarray, groups: np.ndarray, rounds: int = ROUNDS) -> list[float] | None:
    """95 % percentile interval of `grouped_mean`: prompts are resampled within their group.

    Of differences between two methods, prompt by prompt, it is the paired interval of their gain. The same
    draws are made every time. None where a group is a single prompt, whose spread nobody knows.
    """
    if min(np.unique(groups, return_counts=True)[1]) < 2:
        return None
    rng = np.random.default_rng(0)
    means = np.zeros(rounds)
    names = np.unique(groups)
    for name in names:
        members = values[groups == name]
        means += members[rng.integers(len(members), size=(rounds, len(members)))].mean(1) / len(names)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]
