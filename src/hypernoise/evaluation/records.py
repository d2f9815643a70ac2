"""What a comparison keeps of every picture: a PNG each, and a JSON file per batch with what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.pictures import opened
from hypernoise.files import kept_json, read_json, write_json
from hypernoise.methods.base import Result, Spent
from hypernoise.rewards.base import RewardFunction


@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on one picture.

    right: 0 or 1, or a degree in between.
    artefacts: a share in [0, 1]; None from judges that do not measure them.
    note: what is wrong, in a phrase.
    parts: scores by category, from judges that have categories of their own.
    details: what the judge saw, as JSON values.
    """

    right: float
    artefacts: float | None = None
    note: str = ""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    details: Any = None


Judge = Callable[[np.ndarray, str], Judgement]
"""Takes one picture, floats [H, W, 3] in [0, 1], and the prompt that was asked for."""

COLUMNS = 1 << 16  # pixel values of every picture that are compared at once
MEASURES = ("right", "artefacts", "reward", "validation_reward", "kl")  # of each picture, where they apply


@dataclass(frozen=True)
class Records:
    """All that was found of one method at one number of inference steps.

    values: for each of `MEASURES`, [prompts, noises], or None where it does not apply.
    diversity: mean RMS distance between pixels of pictures of one prompt; None if there is one noise.
    files: the pictures, prompt after prompt, noise after noise.
    pictures: what was kept of each, in the same order.
    """

    values: dict[str, np.ndarray | None]
    diversity: float | None
    files: list[Path]
    spent: Spent
    pictures: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def measure(
    result: Result,
    prompts: Sequence[str],
    reward: RewardFunction | None,
    validation_reward: RewardFunction | None,
    judge: Judge | None,
) -> list[dict[str, Any]]:
    """What is measured of each picture of a batch, whatever the method itself looked at."""
    texts = list(prompts)
    rewards = {"reward": reward, "validation_reward": validation_reward}
    scored = {name: score(result.pixels, texts) for name, score in rewards.items() if score is not None}
    if result.kl is not None:
        scored["kl"] = result.kl
    columns = {name: scores.detach().float().cpu().tolist() for name, scores in scored.items()}
    tried = None if result.scores is None else result.scores.detach().float().cpu().tolist()  # NaN: not drawn
    rows = []
    for i, prompt in enumerate(texts):
        row: dict[str, Any] = {"prompt": prompt, **{name: column[i] for name, column in columns.items()}}
        if tried is not None:
            row["scores"] = [score if math.isfinite(score) else None for score in tried[i]]
        if result.prompts[i] != prompt:
            row["drawn_as"] = result.prompts[i]
        if judge is not None:
            verdict = dataclasses.asdict(judge(result.pixels[i].permute(1, 2, 0).float().cpu().numpy(), prompt))
            row |= {name: value for name, value in verdict.items() if value not in (None, "", {})}
        rows.append(row)
    return rows


def keep(folder: Path, number: int, result: Result, rows: list[dict[str, Any]], files: Sequence[str]) -> None:
    """Writes a batch. Its JSON file comes last, so that a batch that has one is whole."""
    for pixels, name in zip(result.pixels, files, strict=True):
        picture(pixels).save(folder / name)
    pictures = [{"file": name, **row} for name, row in zip(files, rows, strict=True)]
    write_json(batch_file(folder, number), {"pictures": pictures, "spent": dataclasses.asdict(result.spent)})


def whole(folder: Path, number: int, files: Sequence[str]) -> bool:
    """Whether a batch was kept and can still be read, each of its pictures too."""
    part = kept_json(batch_file(folder, number))
    if part is None or not _recorded(part.get("pictures"), part.get("spent"), files):
        return False
    for name in files:
        try:
            with opened(folder / name) as picture:
                picture.load()
        except InputError:
            return False
    return True


def _recorded(rows: Any, spent: Any, files: Sequence[str]) -> bool:
    """Whether these are the records of the batch with these files, with numbers where `read` looks for them."""
    fields = {own.name for own in dataclasses.fields(Spent)}
    if not (isinstance(rows, list) and isinstance(spent, dict) and spent.keys() == fields):
        return False
    if [row.get("file") if isinstance(row, dict) else None for row in rows] != list(files):
        return False
    numbers = [row[name] for row in rows for name in MEASURES if name in row]
    numbers += [value for name, value in spent.items() if name != "peak_bytes" or value is not None]
    for parts in (row.get("parts", {}) for row in rows):
        if not (isinstance(parts, dict) and all(isinstance(scores, list) for scores in parts.values())):
            return False
        numbers += [score for scores in parts.values() for score in scores]
    return all(isinstance(number, int | float) for number in numbers)


def batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05d}.json"


def picture_file(index: int, noises: int) -> str:
    """The numbers of prompt and noise, from 0."""
    return f"{index // noises:04d}-{index % noises}.png"


def picture(pixels: Tensor) -> Image.Image:
    """From [3, H, W] in [0, 1]."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def read(folder: Path, batches: int, noises: int) -> Records:
    """Every batch of a method, which must all be there."""
    parts = [read_json(batch_file(folder, number), f"batch {number}") for number in range(batches)]
    pictures = [row for part in parts for row in part["pictures"]]
    values = {
        name: np.array([row[name] for row in pictures], float).reshape(-1, noises)
        if all(name in row for row in pictures)
        else None
        for name in MEASURES
    }
    spent = sum((Spent(**part["spent"]) for part in parts), Spent())
    files = [folder / picture_file(index, noises) for index in range(len(pictures))]
    return Records(values, _diversity(files, noises) if noises > 1 else None, files, spent, pictures)


def _diversity(files: Sequence[Path], noises: int) -> float:
    groups = [files[start : start + noises] for start in range(0, len(files), noises)]
    return float(np.mean([mean_distance(group) for group in groups]))


def mean_distance(files: Sequence[Path]) -> float:
    """Mean RMS distance between the pixels, in [0, 1], of every two of these pictures, each read once."""
    values = np.stack([_bytes(file) for file in files])  # [N, D]
    products = np.zeros((len(values), len(values)))
    for start in range(0, values.shape[1], COLUMNS):
        part = values[:, start : start + COLUMNS].astype(float)
        products += part @ part.T  # whole numbers below 2^53: exact
    squares = np.diag(products)
    squared = squares[:, None] + squares - 2 * products
    pairs = np.triu_indices(len(values), 1)
    return float(np.sqrt(squared[pairs] / values.shape[1]).mean() / 255)


def _bytes(file: Path) -> np.ndarray:
    with opened(file) as picture:
        return np.asarray(picture).ravel()
