"""Records as result rows: means, gains over plain, and their intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.records import Records

POOLED = (
    "score", "reward", "watched_reward", "kl", "artefacts", "diversity", "gain", "reward_gain", "denoiser_forwards",
    "denoiser_backwards", "decodes", "reward_calls", "seconds_per_image",
)  # fmt: skip


FIELDS = (
    "method", "steps", "score", "score_ci95", "categories", "reward", "watched_reward", "kl", "artefacts", "diversity",
    "gain", "gain_ci95", "reward_gain", "reward_gain_ci95", "denoiser_forwards", "denoiser_backwards", "decodes",
    "reward_calls", "seconds_per_image", "peak_bytes", "images",
)  # fmt: skip


def empty_row(method: str) -> dict[str, Any]:
    """A row of which nothing is known but a name; `categories` is empty."""
    return {**dict.fromkeys(FIELDS), "method": method, "categories": {}}


def result_row(method: str, steps: int, found: Records, base: Records | None, categories: np.ndarray) -> dict[str, Any]:
    """A row of summary.json's results, with gains over `base` prompt by prompt; what does not apply is None.

    Calls and seconds are means per picture. `kl` is in nats. `categories` [prompts].
    """
    values = found.values
    right = _by_prompt(found, "right")
    rewards = values["reward"]
    assert rewards is not None  # always measured
    count = rewards.size
    return {
        "method": method,
        "steps": steps,
        "score": None if right is None else grouped_mean(right, categories),
        "score_ci95": None if right is None else interval(right, categories),
        "categories": {}
        if right is None
        else {str(name): float(right[categories == name].mean()) for name in dict.fromkeys(categories)},
        "reward": float(rewards.mean()),
        "watched_reward": _mean(values["watched"]),
        "kl": _mean(values["kl"]),
        "artefacts": _mean(values["artefacts"]),
        "diversity": found.diversity,
        **_gain("gain", "right", found, base, categories),
        **_gain("reward_gain", "reward", found, base, np.zeros(len(categories))),
        "denoiser_forwards": found.spent.denoiser_forwards / count,
        "denoiser_backwards": found.spent.denoiser_backwards / count,
        "decodes": found.spent.decodes / count,
        "reward_calls": found.spent.reward_calls / count,
        "seconds_per_image": found.spent.seconds / count,
        "peak_bytes": found.spent.peak_bytes,
        "images": count,
    }


def pooled_row(
    method: str, steps: int, runs: Sequence[Records], base: Records, categories: np.ndarray
) -> dict[str, Any]:
    """One row of several training runs: means over runs; intervals resample runs and prompts. `runs` has each."""
    rows = [result_row(method, steps, run, base, categories) for run in runs]
    row: dict[str, Any] = {**rows[0], "images": sum(one["images"] for one in rows)}
    for name in POOLED:
        row[name] = None if rows[0][name] is None else float(np.mean([one[name] for one in rows]))
    row["categories"] = {name: float(np.mean([one["categories"][name] for one in rows])) for name in row["categories"]}
    for measure, gain, groups in (("right", "gain", categories), ("reward", "reward_gain", np.zeros(len(categories)))):
        plain, ours = _by_prompt(base, measure), [_by_prompt(run, measure) for run in runs]
        if plain is None:
            continue
        stacked = np.stack([values for values in ours if values is not None])
        row[f"{gain}_ci95"] = interval(stacked - plain, groups)
        if measure == "right":
            row["score_ci95"] = interval(stacked, groups)
    return {**row, "runs": rows}


def _gain(name: str, measure: str, found: Records, base: Records | None, groups: np.ndarray) -> dict[str, Any]:
    ours, plain = _by_prompt(found, measure), None if base is None else _by_prompt(base, measure)
    if ours is None or plain is None or base is found:
        return {name: None, f"{name}_ci95": None}
    return {name: grouped_mean(ours - plain, groups), f"{name}_ci95": interval(ours - plain, groups)}


def _by_prompt(found: Records, measure: str) -> np.ndarray | None:
    """[prompts], the mean over noises."""
    values = found.values[measure]
    return None if values is None else values.mean(1)


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())
