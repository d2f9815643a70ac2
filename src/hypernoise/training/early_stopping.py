"""Early stopping: a run ends when the validation reward falls while the trained one does not.

An over-optimised reward keeps rising while people, or a reward that was not trained on, like the pictures less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SURE = 3.0  # standard errors
STRETCHES = 12  # maximum rows of the table


@dataclass(frozen=True)
class Reading:
    """Both rewards' means over the pictures of one step."""

    step: int
    reward: float
    validation_reward: float


def reading_of(row: Mapping[str, Any]) -> Reading | None:
    """The reading in a row of metrics.jsonl, if both rewards are there and finite."""
    rewards = [row.get(name, math.nan) for name in ("reward", "validation_reward")]
    return Reading(row["step"], *rewards) if all(map(math.isfinite, rewards)) else None


def readings(rows: Sequence[Mapping[str, Any]], until: int) -> list[Reading]:
    """The readings in a run's rows, up to a step."""
    return [reading for row in rows if row["step"] <= until and (reading := reading_of(row)) is not None]


def early_stop(seen: list[Reading], row: Mapping[str, Any], patience: int) -> bool:
    """Adds a row's reading, if any, to those `seen`; returns whether the run should stop."""
    reading = reading_of(row)
    if reading is None:
        return False
    seen.append(reading)
    return should_stop(seen, patience)


def should_stop(seen: Sequence[Reading], patience: int) -> bool:
    """Whether the validation reward has fallen while the trained one has not.

    Compares the last `patience` readings with the earlier `patience` readings in a row with the best validation reward:
    True if it is now lower by more than 3 standard errors and the trained reward is at least as high.
    """
    stretches = _stretches(seen, patience)[:-patience] if patience > 1 else []
    if not stretches:
        return False
    best, last = max(stretches, key=_validation), seen[-patience:]
    error = math.sqrt(sum(_variance(part) / patience for part in (best, last)))
    fallen = _validation(best) - _validation(last) > SURE * error
    return fallen and _trained(last) >= _trained(best)


def stopped_line(seen: Sequence[Reading], step: int, patience: int) -> str:
    """The message on why a run stopped early, and since when."""
    best = max(_stretches(seen, patience), key=_validation)[patience // 2]
    return (
        f"stopped early at step {step}: the validation reward has fallen since about step {best.step} while the "
        "trained one has not; the pictures improve by the trained reward only"
    )


def table(seen: Sequence[Reading]) -> str:
    """A table of the trained and the validation reward over training, in at most `STRETCHES` rows of means."""
    length = max(1, math.ceil(len(seen) / STRETCHES))
    lines = [f"{'step':>14}{'trained reward':>18}{'validation reward':>18}"]
    for start in range(0, len(seen), length):
        part = seen[start : start + length]
        steps = f"{part[0].step}-{part[-1].step}" if len(part) > 1 else str(part[0].step)
        lines.append(f"{steps:>14}{_trained(part):>18.4f}{_validation(part):>18.4f}")
    return "\n".join(lines)


def _stretches(seen: Sequence[Reading], patience: int) -> list[Sequence[Reading]]:
    return [seen[i : i + patience] for i in range(len(seen) - patience + 1)]


def _validation(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.validation_reward for reading in part)


def _trained(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.reward for reading in part)


def _variance(part: Sequence[Reading]) -> float:
    return statistics.variance(reading.validation_reward for reading in part)
