"""Measures existing pictures: rewards and verdicts with intervals, diversity, and drift from another folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import estimate, means_by, means_of_groups
from hypernoise.evaluation.features import Features, kernel_distance, pairwise_similarity
from hypernoise.evaluation.pictures import Broken, Picture, read_picture
from hypernoise.evaluation.records import Judge, Judgement
from hypernoise.evaluation.result_rows import empty_row
from hypernoise.files import write_text
from hypernoise.rewards.ensemble import WeightedSum

TOTAL = "total"  # the rewards' weighted sum, next to its members


@dataclass(frozen=True)
class Measured:
    """Measurements of the readable pictures [N].

    features: [N, D]. rewards: by name, and their `TOTAL`, [N]. verdicts: N, or none without a judge.
    """

    pictures: list[Picture]
    features: np.ndarray
    rewards: dict[str, np.ndarray]
    verdicts: list[Judgement]
    broken: list[Broken]

    @property
    def right(self) -> np.ndarray:
        return np.array([verdict.right for verdict in self.verdicts])


def measured(
    pictures: Sequence[Picture],
    features: Features,
    reward: WeightedSum | None = None,
    judge: Judge | None = None,
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
    verdicts: list[Judgement] = []
    for batch, pixels in _batches(pictures, batch_size, broken, progress):
        kept += batch
        vectors.append(features(pixels))
        if judge is not None:
            seen = pixels.permute(0, 2, 3, 1).numpy()
            verdicts += [judge(own, picture.prompt) for own, picture in zip(seen, batch, strict=True)]
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
    rewards = {name: torch.cat(values).double().numpy() for name, values in scores.items()}
    return Measured(kept, torch.cat(vectors).double().numpy(), rewards, verdicts, broken)


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
        while batch := list(islice(alike, size)):
            yield [picture for picture, _ in batch], torch.stack([pixels for _, pixels in batch])


def measured_row(name: str, ours: Measured, base: Measured) -> dict[str, Any]:
    """A result row: diversity over prompts with at least two pictures; rewards and score, and their gains over `base`;
    distance to it. Gains and distance are None for the base itself."""
    numbers = np.array([picture.number for picture in ours.pictures])
    groups = [ours.features[numbers == number] for number in np.unique(numbers)]
    several = [group for group in groups if len(group) > 1]
    apart = ours is not base and min(len(ours.pictures), len(base.pictures)) > 1
    rewards = {name: _compared("mean", ours, base, ours.rewards[name], base.rewards[name]) for name in ours.rewards}
    row = {
        **empty_row(name),
        "images": len(ours.pictures),
        "prompts": len(groups),
        "similarity": float(np.mean([pairwise_similarity(group) for group in several])) if several else None,
        "kernel": kernel_distance(ours.features, base.features) if apart else None,
        "rewards": rewards,
    }
    if rewards:
        total = rewards[TOTAL]
        row |= {"reward": total["mean"], "reward_gain": total["gain"], "reward_gain_ci95": total["gain_ci95"]}
    if ours.verdicts:
        row |= _compared("score", ours, base, ours.right, base.right, grouped=True)
        row["categories"] = means_of_groups(*_by_prompt(ours.pictures, ours.right))
    return row


def _compared(
    name: str, ours: Measured, base: Measured, values: np.ndarray, plain: np.ndarray, *, grouped: bool = False
) -> dict[str, Any]:
    """`name`, the mean over prompts of values [N], and their gain over pictures of the same names in `base`, with
    intervals. Grouped: the mean over categories."""

    def estimated(name: str, pictures: Sequence[Picture], values: np.ndarray) -> dict[str, Any]:
        by_prompt, categories = _by_prompt(pictures, values)
        return estimate(name, by_prompt, categories if grouped else np.zeros(len(by_prompt)))

    found = {**estimated(name, ours.pictures, values), "gain": None, "gain_ci95": None}
    place = {picture.name: i for i, picture in enumerate(base.pictures)}
    mine = [i for i, picture in enumerate(ours.pictures) if picture.name in place]
    if ours is base or not mine:
        return found
    both = [ours.pictures[i] for i in mine]
    return found | estimated("gain", both, values[mine] - plain[[place[picture.name] for picture in both]])


def _by_prompt(pictures: Sequence[Picture], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the values [N] for each prompt, and its category."""
    categories = {picture.number: picture.category for picture in pictures}
    return means_by(values, [picture.number for picture in pictures]), np.array(list(categories.values()))


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
