"""Bootstrap intervals over prompts, overall or within groups."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 2000


def grouped_mean(values: np.ndarray, groups: np.ndarray) -> float:
    """The mean over groups of each group's mean; `values` and `groups` [prompts]."""
    return float(np.mean([values[groups == name].mean() for name in np.unique(groups)]))


def means_of_groups(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """The mean of each group in values [..., prompts], in order of first occurrence."""
    return {str(name): float(values[..., groups == name].mean()) for name in dict.fromkeys(groups.tolist())}


def estimate(name: str, values: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """`name`, the grouped mean of values [prompts] or [runs, prompts], and `name`_ci95, its `interval`."""
    return {name: grouped_mean(np.atleast_2d(values).mean(0), groups), f"{name}_ci95": interval(values, groups)}


def interval(values: np.ndarray, groups: np.ndarray) -> list[float] | None:
    """95 % percentile interval of `grouped_mean`: prompts are resampled within their group.

    For paired differences between two methods it is the paired interval of their gain. The draws are the
    same every time. None if a group has a single prompt, whose spread is unknown.

    Args:
        values: [prompts], or [runs, prompts], in which case runs are also resampled.
        groups: [prompts].
    """
    if min(np.unique(groups, return_counts=True)[1]) < 2:
        return None
    means = resampled(values, groups)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def resampled(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`ROUNDS` bootstrap draws of the grouped mean of `values` [prompts] or [runs, prompts].

    Calls with the same number of runs and the same groups draw the same prompts, so that ratios are resampled in pairs.
    """
    rng = np.random.default_rng(0)
    runs = np.atleast_2d(values)
    names = np.unique(groups)
    places = [rng.integers(np.sum(groups == name), size=(ROUNDS, np.sum(groups == name))) for name in names]
    chosen = rng.integers(len(runs), size=(ROUNDS, len(runs)))
    share = np.stack([(chosen == run).mean(1) for run in range(len(runs))], 1)  # [ROUNDS, runs]
    by_prompt = share @ runs  # [ROUNDS, prompts]
    parts = [
        np.take_along_axis(by_prompt[:, groups == name], place, 1).mean(1)
        for name, place in zip(names, places, strict=True)
    ]
    return np.mean(parts, 0)
