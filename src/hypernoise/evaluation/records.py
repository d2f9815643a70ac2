"""Stored results of a comparison: a PNG per picture, and a JSON file with measurements per batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.evaluation.pictures import opened
from hypernoise.files import kept_json, picture_of, read_json, write_json
from hypernoise.methods.base import Result, Spent
from hypernoise.rewards.base import RewardFunction, scored


@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on one picture.

    right: 0 or 1, or a degree in between.
    artefacts: a share in [0, 1]; None from judges that do not measure them.
    note: what is wrong, briefly.
    parts: scores by category, from judges with their own categories.
    details: what the judge saw, as JSON values.
    """

    right: float
    artefacts: float | None = None
    note: str = ""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    details: Any = None


Judge = Callable[[np.ndarray, str], Judgement]
"""Takes one picture, floats [H, W, 3] in [0, 1], and its prompt."""

COLUMNS = 1 << 16  # pixel values per picture compared at once
MEASURES = ("right", "artefacts", "reward", "validation_reward", "kl")  # per picture, where they apply


@dataclass(frozen=True)
class Records:
    """All measurements of one method at one number of inference steps.

    values: for each of `MEASURES`, [prompts, noises], or None where it does not apply.
    diversity: mean RMS pixel distance between pictures of one prompt; None with a single noise.
    files: the pictures, by prompt, then noise.
    pictures: the stored record of each, in the same order.
    """

    values: dict[str, np.ndarray | None]
    diversity: float | None
    files: list[Path]
    spent: Spent
    pictures: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def measure(
    pixels: Tensor, prompts: Sequence[str], rewards: Mapping[str, RewardFunction], judge: Judge | None
) -> list[dict[str, Any]]:
    """The measurements of each picture of a batch, whatever drew it."""
    scores = {
        name: scored(own, pixels, list(prompts), f"the {name.replace('_', ' ')}") for name, own in rewards.items()
    }
    columns = {name: own.float().tolist() for name, own in scores.items()}
    rows: list[dict[str, Any]] = []
    for i, prompt in enumerate(prompts):
        rows.append({"prompt": prompt, **{name: column[i] for name, column in columns.items()}})
        if judge is not None:
            verdict = vars(judge(pixels[i].permute(1, 2, 0).float().cpu().numpy(), prompt))
            rows[i] |= {name: value for name, value in verdict.items() if value not in (None, "", {})}
    return rows


def keep(folder: Path, number: int, result: Result, rows: Sequence[Mapping[str, Any]], files: Sequence[str]) -> None:
    """Writes a batch. Its JSON file comes last, so a batch with one is complete."""
    pictures = [{"file": name, **row} for name, row in zip(files, rows, strict=True)]
    for i, picture in enumerate(pictures):
        picture_of(result.pixels[i]).save(folder / files[i])
        if result.kl is not None:
            picture["kl"] = result.kl[i].float().item()
        if result.prompts[i] != picture["prompt"]:
            picture["drawn_as"] = result.prompts[i]
    batch = {"pictures": pictures, "spent": dataclasses.asdict(result.spent)}
    write_json(batch_file(folder, number), {**batch, "sha256": _digest(batch, folder, files)})


def whole(folder: Path, number: int, files: Sequence[str]) -> bool:
    """Whether a batch is stored undamaged, with its pictures."""
    batch = kept_json(batch_file(folder, number))
    if batch is None or not all((folder / name).is_file() for name in files):
        return False
    return batch.pop("sha256", None) == _digest(batch, folder, files)


def _digest(batch: Mapping[str, Any], folder: Path, files: Sequence[str]) -> str:
    found = hashlib.sha256(json.dumps(batch).encode())
    for name in files:
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05d}.json"


def picture_file(index: int, noises: int) -> str:
    """The file name of a picture, from prompt and noise numbers starting at 0."""
    return f"{index // noises:04d}-{index % noises}.png"


def read(folder: Path, batches: int, noises: int) -> Records:
    """Reads every batch of a method; all must exist."""
    parts = [read_json(batch_file(folder, number), f"batch {number}") for number in range(batches)]
    pictures = [row for part in parts for row in part["pictures"]]
    values = {
        name: np.array([row[name] for row in pictures], float).reshape(-1, noises)
        if all(name in row for row in pictures)
        else None
        for name in MEASURES
    }
    files = [folder / picture_file(index, noises) for index in range(len(pictures))]
    groups = [files[start : start + noises] for start in range(0, len(files), noises)]
    diversity = float(np.mean([mean_distance(group) for group in groups])) if noises > 1 else None
    return Records(values, diversity, files, sum((Spent(**part["spent"]) for part in parts), Spent()), pictures)


def mean_distance(files: Sequence[Path]) -> float:
    """Mean RMS distance between the pixels, in [0, 1], of all pairs of these pictures, at the size of the first."""
    pictures = [opened(file) for file in files]
    values = np.stack([np.asarray(own.resize(pictures[0].size)).ravel() for own in pictures])  # [N, D]
    starts = range(0, values.shape[1], COLUMNS)
    parts = (values[:, start : start + COLUMNS].astype(float) for start in starts)
    products = sum(part @ part.T for part in parts)  # [N, N], of whole numbers: exact
    norms = np.diagonal(products)
    squares = (norms[:, None] + norms - 2 * products)[np.triu_indices(len(values), 1)]  # [pairs]
    return float(np.sqrt(squares / values.shape[1]).mean() / 255)
