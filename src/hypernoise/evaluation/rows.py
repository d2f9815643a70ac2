"""Records as result rows: means, gains over plain, and their intervals over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.records import Records


def result_row(method: str, steps: int, found: Records, base: Records | None, categories: np.ndarray) -> dict[str, Any]:
    """DESIGN's fields, with gains over `base` prompt by prompt; what does not apply is None.

    Calls and seconds are means per picture. `kl` is in nats. `diversity` is the mean RMS distance between pixels
    of pictures of one prompt. `categories` [prompts].
    """
    values, count = found.values, len(found.files)
    right = _by_prompt(found, "right")
    noises = count // len(categories)
    return {
        "method": method,
        "steps": steps,
        "score": None if right is None else grouped_mean(right, categories),
        "score_ci95": None if right is None else interval(right, categories),
        "categories": {}
        if right is None
        else {str(name): float(right[categories == name].mean()) for name in dict.fromkeys(categories)},
        "reward": _mean(values["reward"]),
        "watched_reward": _mean(values["watched"]),
        "kl": _mean(values["kl"]),
        "artefacts": _mean(values["artefacts"]),
        "diversity": _diversity(found, noises) if noises > 1 else None,
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


def _diversity(found: Records, noises: int) -> float:
    distances = []
    for start in range(0, len(found.files), noises):
        pictures = [np.asarray(Image.open(file), np.float32).ravel() / 255 for file in found.files[start:][:noises]]
        pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
        distances.append(np.mean([np.sqrt(np.square(a - b).mean()) for a, b in pairs]))
    return float(np.mean(distances))
