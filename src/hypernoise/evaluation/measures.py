"""Measures existing pictures: rewards and verdicts with intervals, and the similarity of pictures of one prompt."""

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
from scipy.spatial.distance import pdist
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Model

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import estimate, means_of_groups
from hypernoise.evaluation.pictures import Picture, read_picture
from hypernoise.evaluation.records import Judge, Judgement
from hypernoise.evaluation.result_rows import empty_row
from hypernoise.files import write_text
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalise
from hypernoise.rewards.weights import pretrained

TOTAL = "total"  # the rewards' weighted sum, next to its members
SIDE = 224  # px, DINOv2's input
SMALL = 16  # px, for plain pixels as features

Features = Callable[[Tensor], Tensor]
"""From pixels [B, 3, H, W] in [0, 1] to vectors [B, D]."""


def pixel_features(pictures: Tensor) -> Tensor:
    """The picture at 16 x 16, minus grey, so that a cosine can be negative."""
    return interpolate(pictures.float(), (SMALL, SMALL), mode="bilinear", antialias=True).flatten(1) - 0.5


def load_features(source: str, device: torch.device | str) -> Features:
    """ "pixels", or the DINOv2 of a Hub repository (from the local cache or downloaded) or a folder: its class token
    after the final norm, from the centre of pictures resized to 224 pixels.

    Raises InputError for weights that are missing or do not fit.
    """
    if source == "pixels":
        return pixel_features
    model, resize = pretrained(Dinov2Model, source, f"features {source}").to(device), Resize(SIDE)

    @torch.no_grad()
    def dino(pictures: Tensor) -> Tensor:
        seen: Any = model(pixel_values=normalise(resize(pictures.to(model.device)), IMAGENET_MEAN, IMAGENET_STD))
        return seen.pooler_output.float().cpu()

    return dino


def pairwise_similarity(features: np.ndarray) -> float:
    """Mean cosine over all pairs of different vectors [N, D], N at least 2; 1 if all are alike."""
    return float(1 - pdist(features, "cosine").mean())


@dataclass(frozen=True)
class Measured:
    """Measurements of the readable pictures [N].

    features: [N, D]. rewards: by name, and their `TOTAL`, [N]. verdicts: N, or none without a judge. broken: why the
    others cannot be read, by name.
    """

    pictures: list[Picture]
    features: np.ndarray
    rewards: dict[str, np.ndarray]
    verdicts: list[Judgement]
    broken: dict[str, str]


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
    broken: dict[str, str] = {}
    kept: list[Picture] = []
    vectors: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {}
    verdicts: list[Judgement] = []

    def readable() -> Iterator[tuple[Picture, Tensor]]:
        for picture in pictures:
            progress(1)
            try:
                yield picture, read_picture(picture.file)
            except InputError as error:
                broken[picture.name] = str(error)

    for _, alike in groupby(readable(), key=lambda pair: pair[1].shape):  # a batch has one size
        while batch := list(islice(alike, batch_size)):
            pixels, prompts = torch.stack([own for _, own in batch]), [picture.prompt for picture, _ in batch]
            kept += [picture for picture, _ in batch]
            vectors.append(features(pixels))
            if judge is not None:
                seen = pixels.permute(0, 2, 3, 1).numpy()
                verdicts += [judge(own, prompt) for own, prompt in zip(seen, prompts, strict=True)]
            if reward is not None:
                with torch.no_grad():
                    total = reward(pixels.to(device), prompts)
                for name, values in {**reward.member_scores(), TOTAL: total}.items():
                    scores.setdefault(name, []).append(values.float().cpu())
    if not kept:
        raise InputError(f"no picture could be read; the first: {next(iter(broken.values()), 'there is none')}")
    rewards = {name: torch.cat(values).double().numpy() for name, values in scores.items()}
    return Measured(kept, torch.cat(vectors).double().numpy(), rewards, verdicts, broken)


def measured_row(name: str, found: Measured) -> dict[str, Any]:
    """A result row: similarity over prompts with at least two pictures; each reward, and the score, with intervals."""
    order: dict[str, int] = {}  # comparing a number costs less than comparing a prompt
    prompts = np.array([order.setdefault(picture.prompt, len(order)) for picture in found.pictures])
    groups = [found.features[prompts == number] for number in order.values()]
    several = [pairwise_similarity(group) for group in groups if len(group) > 1]
    categories = np.array(list({picture.prompt: picture.category for picture in found.pictures}.values()))

    def by_prompt(values: np.ndarray) -> np.ndarray:
        return np.array(list(means_of_groups(values, prompts).values()))

    rewards: dict[str, Any] = {}
    for reward, values in found.rewards.items():
        rewards |= estimate(reward, by_prompt(values), np.zeros(len(categories)))
    row = {
        **empty_row(name),
        "images": len(found.pictures),
        "prompts": len(groups),
        "similarity": float(np.mean(several)) if several else None,
        "reward": rewards.get(TOTAL),
        "rewards": rewards,
    }
    if found.verdicts:
        right = by_prompt(np.array([verdict.right for verdict in found.verdicts]))
        row |= estimate("score", right, categories) | {"categories": means_of_groups(right, categories)}
    return row


def write_scores(file: Path, found: Sequence[tuple[str, Measured]]) -> None:
    """Writes a CSV with a line per picture: folder, file, prompt, rewards, and a judge's verdict and its reason."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    _, first = found[0]
    lines.writerow(["folder", "file", "prompt", *first.rewards, *(["right", "note"] if first.verdicts else [])])
    for folder, one in found:
        for i, picture in enumerate(one.pictures):
            rewards = [f"{values[i]:.9g}" for values in one.rewards.values()]
            verdict = [one.verdicts[i].right, one.verdicts[i].note] if one.verdicts else []
            lines.writerow([folder, picture.name, picture.prompt, *rewards, *verdict])
    write_text(file, text.getvalue())
