"""Rows of summary.json from records: means, gains over plain, and their intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypernoise.evaluation.bootstrap import estimate, means_of_groups
from hypernoise.evaluation.records import Records
from hypernoise.methods.base import Spent

FIELDS = (
    "method", "inference_steps", "score", "score_ci95", "categories", "reward", "validation_reward", "kl", "artefacts",
    "diversity", "gain", "gain_ci95", "reward_gain", "reward_gain_ci95", "denoiser_forwards", "denoiser_backwards",
    "decodes", "reward_calls", "seconds_per_image", "images",
)  # fmt: skip
COSTS = ("denoiser_forwards", "denoiser_backwards", "decodes", "reward_calls")


def empty_row(method: str) -> dict[str, Any]:
    """A row with only a name."""
    return {**dict.fromkeys(FIELDS), "method": method, "categories": {}}


def name_of(row: Mapping[str, Any]) -> str:
    """Method and inference steps: the name of a row."""
    steps = row["inference_steps"]
    return row["method"] if steps is None else f"{row['method']}, {steps} step{'s' * (steps > 1)}"


def result_row(
    method: str, inference_steps: int, runs: Sequence[Records], base: Records | None, categories: np.ndarray
) -> dict[str, Any]:
    """A row of summary.json's results, with paired gains over `base`. What does not apply is None.

    Args:
        runs: one method's records, or those of several training runs: the row then has their means, its intervals
            also resample runs, and `runs` has each run's own row.
        categories: [prompts]. The score is the mean over categories.

    Calls and seconds are per picture, `kl` is in nats.
    """
    right, count = by_prompt(runs, "right"), sum(len(run.pictures) for run in runs)
    spent = sum((run.spent for run in runs), Spent())
    varied = [run.diversity for run in runs if run.diversity is not None]
    row = {
        **empty_row(method),
        "inference_steps": inference_steps,
        "categories": _categories(runs, right, categories),
        "diversity": float(np.mean(varied)) if varied else None,
        **{name: getattr(spent, name) / count for name in COSTS},
        "seconds_per_image": spent.seconds / count,
        "images": count,
    }
    for name in ("reward", "validation_reward", "kl", "artefacts"):
        values = [value for run in runs if (value := run.values[name]) is not None]
        row[name] = float(np.mean(values)) if len(values) == len(runs) else None
    if right is not None:
        row |= estimate("score", right, categories)
    if base is not None and any(run is not base for run in runs):
        everything = np.zeros(len(categories))
        for measure, name, groups in (("right", "gain", categories), ("reward", "reward_gain", everything)):
            ours, plain = by_prompt(runs, measure), by_prompt([base], measure)
            if ours is not None and plain is not None:
                row |= estimate(name, ours - plain, groups)
    if len(runs) > 1:
        row["runs"] = [result_row(method, inference_steps, [run], base, categories) for run in runs]
    return row


def by_prompt(runs: Sequence[Records], measure: str) -> np.ndarray | None:
    """[runs, prompts], the means over noises; None where the measure does not apply."""
    values = [value.mean(1) for run in runs if (value := run.values[measure]) is not None]
    return np.stack(values) if len(values) == len(runs) else None


def _categories(runs: Sequence[Records], right: np.ndarray | None, groups: np.ndarray) -> dict[str, float]:
    """The score of each category: the judge's own categories if any, otherwise the prompts'."""
    parts: dict[str, list[float]] = {}
    for picture in (picture for run in runs for picture in run.pictures):
        for name, scores in picture.get("parts", {}).items():
            parts.setdefault(name, []).extend(scores)
    if parts:
        return {name: float(np.mean(scores)) for name, scores in parts.items()}
    return {} if right is None else means_of_groups(right, groups)
