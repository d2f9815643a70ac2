"""Measures existing pictures: rewards with intervals, diversity, and drift from another folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import interval, means_by
from hypernoise.evaluation.features import Features
from hypernoise.evaluation.fidelity import kernel_distance, pairwise_similarity
from hypernoise.evaluation.pictures import Broken, Picture, read_picture
from hypernoise.files import write_text
from hypernoise.rewards.ensemble import WeightedSum

TOTAL = "total"  # the rewards' weighted sum, next to its members


@dataclass(frozen=True)
class Measured:
    """Measurements of the readable pictures [N].

    features: [N, D]. rewards: by name, and their `TOTAL`, [N].
    """

    pictures: list[Picture]
    features: np.ndarray
    rewards: dict[str, np.ndarray]
    broken: list[Broken]


def measured(
    pictures: Sequence[Picture],
    features: Features,
    reward: WeightedSum | None = None,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> Measured:
    """Reads and measures every picture; an unreadable one is skipped and reported.

    Raises:
        InputError: none is readable, or a reward does not accept pictures of this size.
    """
    broken: list[Broken] = []
    kept: list[Picture] = []
    vectors: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {}
    for batch, pixels in _batches(pictures, batch_size, broken, progress):
        kept += batch
        vectors.append(features(pixels))
        if reward is None:
            continue
        try:
            with torch.no_grad():
                total = reward(pixels.to(device), [one.prompt for one in batch])
        except InputError as error:  # for example about a size or a prompt
            raise InputError(f"{batch[0].name} to {batch[-1].name}: {error}") from error
        for name, values in {**reward.member_scores(), TOTAL: total}.items():
            scores.setdefault(name, []).append(values.float().cpu())
    if not kept:
        raise InputError(f"no picture could be read; the first: {broken[0].why}" if broken else "there is no picture")
    rewards = {name: torch.cat(values).numpy() for name, values in scores.items()}
    return Measured(kept, torch.cat(vectors).double().numpy(), rewards, broken)


def _batches(
    pictures: Sequence[Picture], size: int, broken: list[Broken], progress: Callable[[int], object]
) -> Iterator[tuple[list[Picture], Tensor]]:
    """Pictures with their pixels [B, 3, H, W], batched by equal size; `broken` collects unreadable ones."""

    def readable() -> Iterator[tuple[Picture, Tensor]]:
        for picture in pictures:
            progress(1)
            try:
                yield picture, read_picture(picture.file)
            except InputError as error:
                broken.append(Broken(picture.name, str(error)))

    for _, alike in groupby(readable(), key=lambda pair: pair[1].shape):
        batch: list[tuple[Picture, Tensor]] = []
        for pair in alike:
            batch.append(pair)
            if len(batch) == size:
                yield [picture for picture, _ in batch], torch.stack([pixels for _, pixels in batch])
                batch = []
        if batch:
            yield [picture for picture, _ in batch], torch.stack([pixels for _, pixels in batch])


def measured_row(ours: Measured, base: Measured) -> dict[str, Any]:
    """Diversity over prompts with at least two pictures; rewards, and their gains over `base`; distances to it.

    Gains and distances are None for the base itself.
    """
    numbers = np.array([picture.number for picture in ours.pictures])
    groups = [ours.features[numbers == number] for number in np.unique(numbers)]
    several = [group for group in groups if len(group) > 1]
    apart = ours is not base and min(len(ours.pictures), len(base.pictures)) > 1
    rewards = {name: _reward(name, ours, base) for name in ours.rewards}
    total = rewards.get(TOTAL, dict.fromkeys(("mean", "gain", "gain_ci95")))
    return {
        "images": len(ours.pictures),
        "prompts": len(groups),
        "reward": total["mean"],
        "reward_gain": total["gain"],
        "reward_gain_ci95": total["gain_ci95"],
        "similarity": float(np.mean([pairwise_similarity(group) for group in several])) if several else None,
        "kernel": kernel_distance(ours.features, base.features) if apart else None,
        "rewards": rewards,
    }


def _reward(name: str, ours: Measured, base: Measured) -> dict[str, Any]:
    """A reward's mean and its gain over pictures of the same names in `base`, with intervals over prompts."""
    found = _summary("mean", ours.rewards[name], [picture.number for picture in ours.pictures])
    place = {picture.name: i for i, picture in enumerate(base.pictures)}
    both = [(i, place[picture.name]) for i, picture in enumerate(ours.pictures) if picture.name in place]
    if ours is base or not both:
        return {**found, "gain": None, "gain_ci95": None}
    mine, theirs = (np.array(side) for side in zip(*both, strict=True))
    gains = ours.rewards[name][mine] - base.rewards[name][theirs]
    return found | _summary("gain", gains, [ours.pictures[i].number for i in mine])


def _summary(name: str, values: np.ndarray, numbers: Sequence[int]) -> dict[str, Any]:
    by_prompt = means_by(values.astype(float), numbers)
    return {name: float(by_prompt.mean()), f"{name}_ci95": interval(by_prompt, np.zeros(len(by_prompt)))}


def write_scores(file: Path, found: Sequence[tuple[str, Measured]]) -> None:
    """Writes a CSV with a line per picture: folder, file, prompt, and each reward."""
    text = io.StringIO(newline="")
    names = list(found[0][1].rewards)
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["folder", "file", "prompt", *names])
    for folder, one in found:
        for i, picture in enumerate(one.pictures):
            lines.writerow([folder, picture.name, picture.prompt, *(f"{one.rewards[n][i]:.9g}" for n in names)])
    write_text(file, text.getvalue())
