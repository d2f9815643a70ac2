"""A guard against hacking the reward: another reward that is only watched, and when the two have parted.

A reward that is climbed too far rises while people, or a reward that was not climbed, like the pictures less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypernoise.evaluation.charts import Line, line_chart, page
from hypernoise.training.metrics import rows_of

SURE = 3.0  # standard errors
STRETCHES = 12  # that a report has, at most


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


@dataclass(frozen=True)
class Stretch:
    """Neighbouring readings and their means."""

    first: int
    last: int
    reward: float
    watched_reward: float


def in_stretches(seen: Sequence[Reading]) -> list[Stretch]:
    """The readings in at most `STRETCHES` stretches, each as long as the others but the last."""
    length = math.ceil(len(seen) / STRETCHES)
    parts = [seen[start : start + length] for start in range(0, len(seen), length)] if seen else []
    return [Stretch(part[0].step, part[-1].step, _trained(part), _watched(part)) for part in parts]


def draw_readings(seen: Sequence[Reading], file: Path) -> bool:
    """Charts both rewards over the steps, side by side, each in its own unit: readings, and means of stretches.

    False, and no file, if no reading is finite.
    """
    seen = [reading for reading in seen if math.isfinite(reading.reward + reading.watched_reward)]
    if not seen:
        return False
    stretches = in_stretches(seen)
    charts = []
    for name, title in (("reward", "trained reward"), ("watched_reward", "watched reward")):
        readings = [(reading.step, getattr(reading, name)) for reading in seen]
        means = [((stretch.first + stretch.last) / 2, getattr(stretch, name)) for stretch in stretches]
        lines = [Line("mean of a stretch", means), Line("reading", readings, dots=True)]
        charts.append(line_chart(lines, title=title, across="step", with_zero=False))
    page("Trained against watched reward: they part when the left rises while the right falls.", charts).save(file)
    return True


def _watched(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.watched_reward for reading in part)


def _trained(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.reward for reading in part)


def _variance(part: Sequence[Reading]) -> float:
    return statistics.variance(reading.watched_reward for reading in part)
