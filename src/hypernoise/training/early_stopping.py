"""Early stopping: a run ends when the validation reward falls while the trained one does not.

An over-optimised reward keeps rising while people, or a reward that was not trained on, like the pictures less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SURE = 3.0  # standard errors


class Reading(NamedTuple):
    """Both rewards' means over the pictures of one step."""

    step: int
    reward: float
    validation_reward: float


def readings(rows: Iterable[Mapping[str, Any]]) -> list[Reading]:
    """The readings in rows of metrics.jsonl: where both rewards are there and finite."""
    found = (Reading(row["step"], row.get("reward", math.nan), row.get("validation_reward", math.nan)) for row in rows)
    return [reading for reading in found if math.isfinite(reading.reward + reading.validation_reward)]


def should_stop(seen: Sequence[Reading], patience: int) -> bool:
    """Whether the validation reward has fallen while the trained one has not.

    Compares the last `patience` readings with the earlier `patience` readings in a row with the best validation reward:
    True if it is now lower by more than 3 standard errors and the trained reward is at least as high.
    """
    stretches = _stretches(seen, patience)[:-patience] if patience > 1 else []
    if not stretches:
        return False
    best, last = max(stretches, key=_validation), seen[-patience:]
    spread = (statistics.variance(reading.validation_reward for reading in part) for part in (best, last))
    fallen = _validation(best) - _validation(last) > SURE * math.sqrt(sum(spread) / patience)
    trained = [statistics.fmean(reading.reward for reading in part) for part in (best, last)]
    return fallen and trained[1] >= trained[0]


def stopped_line(seen: Sequence[Reading], step: int, patience: int) -> str:
    """The message on why a run stopped early, and since when."""
    best = max(_stretches(seen, patience), key=_validation)[patience // 2]
    return (
        f"stopped early at step {step}: the validation reward has fallen since about step {best.step} while the "
        "trained one has not; the pictures improve by the trained reward only"
    )


def _stretches(seen: Sequence[Reading], patience: int) -> list[Sequence[Reading]]:
    return [seen[i : i + patience] for i in range(len(seen) - patience + 1)]


def _validation(part: Sequence[Reading]) -> float:
    return statistics.fmean(reading.validation_reward for reading in part)
