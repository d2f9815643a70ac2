"""A guard against hacking the reward: another reward that is only watched, and when the two have parted.

A reward that is climbed too far rises while people, or a reward that was not climbed, like the pictures less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypernoise.training.metrics import rows_of

SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Reading:
    """Both rewards' means over the pictures of one step."""

    step: int
    reward: float
    watched_reward: float


def readings(metrics: Path, until: int) -> list[Reading]:
    """Those in a metrics.jsonl, up to a step."""
    return [
        Reading(row["step"], row["reward"], row["watched_reward"])
        for row in rows_of(metrics.parent)
        if {"reward", "watched_reward"} <= row.keys() and row["step"] <= until
    ]


def parted(seen: Sequence[Reading], patience: int) -> bool:
    """Whether the watched reward has fallen while the trained one has not.

    Compares the last `patience` readings with the earlier stretch of as many in which the watched reward was
    best: they have parted if it is lower now by more than 3 standard errors, and the trained one at least as high.
    """
    stretches = [seen[i : i + patience] for i in range(len(seen) - 2 * patience + 1)]
    if not stretches or patience < 2:
        return False
    best, last = max(stretches, key=_watched), seen[-patience:]
    error = math.sqrt(sum(_variance(part) / patience for part in (best, last)))
    fallen = _watched(best) - _watched(last) > SURE * error
    return fallen and _trained(last) >= _trained(best)


def best_stretch(seen: Sequence[Reading], patience: int) -> Reading:
    """The middle of the stretch of `patience` readings in which the watched reward was best."""
    stretches = [seen[i : i + patience] for i in range(len(seen) - patience + 1)]
    return max(stretches, key=_watched)[patience // 2]


def _watched(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.watched_reward for reading in part)


def _trained(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.reward for reading in part)


def _variance(part: Sequence[Reading]) -> float:
    return statistics.variance(reading.watched_reward for reading in part)
