"""Measures existing pictures: rewards, verdicts and diversity, with intervals over prompts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import estimate, means_of_groups
from hypernoise.evaluation.pictures import Picture, read_picture
from hypernoise.evaluation.records import Judge, mean_distance, measure
from hypernoise.evaluation.result_rows import empty_row
from hypernoise.files import write_text
from hypernoise.rewards.ensemble import WeightedSum

TOTAL = "total"  # the rewards' weighted sum, next to its members
Measured = Mapping[str, Any]
"""One picture: its `Picture`, its rewards and their `TOTAL` by name, and a judge's verdict."""


def measured(
    pictures: Sequence[Picture],
    reward: WeightedSum | None = None,
    judge: Judge | None = None,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[list[Measured], dict[str, str]]:
    """Measures every readable picture; and by name why the others cannot be read.

    Raises:
        InputError: none is readable, or a reward does not accept pictures of this size.
    """
    broken: dict[str, str] = {}
    found: list[Measured] = []

    def readable() -> Iterator[tuple[Picture, Tensor]]:
        for picture in pictures:
            progress(1)
            try:
                yield picture, read_picture(picture.file)
            except InputError as error:
                broken[picture.name] = str(error)

    for _, alike in groupby(readable(), key=lambda pair: pair[1].shape):  # a batch has one size
        while batch := list(islice(alike, batch_size)):
            pixels, prompts = torch.stack([own for _, own in batch]).to(device), [own.prompt for own, _ in batch]
            rows = measure(pixels, prompts, {TOTAL: reward} if reward else {}, judge)
            members = {name: own.tolist() for name, own in reward.member_scores().items()} if reward else {}
            for i, ((picture, _), row) in enumerate(zip(batch, rows, strict=True)):
                found.append({"picture": picture, **{name: own[i] for name, own in members.items()}, **row})
    if not found:
        raise InputError(f"no picture could be read; the first: {next(iter(broken.values()), 'there is none')}")
    return found, broken


def measured_row(name: str, found: Sequence[Measured], rewards: Sequence[str] = ()) -> dict[str, Any]:
    """A result row: diversity over prompts with at least two pictures; these rewards, and the score, with intervals."""
    groups: dict[str, list[Measured]] = {}
    for one in found:
        groups.setdefault(one["prompt"], []).append(one)
    files = [[one["picture"].file for one in group] for group in groups.values() if len(group) > 1]
    requests = [group[0]["picture"].request for group in groups.values()]
    categories = np.array([request.tag if request else "all" for request in requests])

    def by_prompt(measure: str) -> np.ndarray:
        return np.array([np.mean([one[measure] for one in group]) for group in groups.values()])

    estimates: dict[str, Any] = {}
    for reward in rewards:
        estimates |= estimate(reward, by_prompt(reward), np.zeros(len(groups)))
    row = {
        **empty_row(name),
        "images": len(found),
        "prompts": len(groups),
        "diversity": float(np.mean([mean_distance(group) for group in files])) if files else None,
        "reward": estimates.get(TOTAL),
        "rewards": estimates,
    }
    if "right" in found[0]:
        right = by_prompt("right")
        row |= estimate("score", right, categories) | {"categories": means_of_groups(right, categories)}
    return row


def write_scores(file: Path, found: Mapping[str, Sequence[Measured]], rewards: Sequence[str]) -> None:
    """Writes a CSV with a line per picture of each folder: its file, prompt, rewards, verdict and the reason."""
    text = io.StringIO(newline="")
    judged = any("right" in one for pictures in found.values() for one in pictures)
    columns = ["folder", "file", "prompt", *rewards, *(["right", "note"] if judged else [])]
    lines = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for folder, pictures in found.items():
        lines.writerows({"folder": folder, "file": one["picture"].name, **one} for one in pictures)
    write_text(file, text.getvalue())
