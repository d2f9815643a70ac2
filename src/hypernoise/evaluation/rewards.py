"""Pictures scored by rewards, member by member, with intervals over prompts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.files import write_text
from hypernoise.prompts import read_prompts
from hypernoise.rewards.ensemble import WeightedSum

KINDS = (".png", ".jpg", ".jpeg", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow says of damaged files
ROUNDS = 2000  # of the bootstrap
TOTAL = "total"  # the weighted sum, beside the members


@dataclass(frozen=True)
class Scored:
    """Scores of pictures: `files` and `prompts` [N], and `scores` [N] by member and `TOTAL`."""

    files: list[str]
    prompts: list[str]
    scores: dict[str, np.ndarray]


def score(
    reward: WeightedSum,
    pictures: Iterable[tuple[str, str, Tensor]],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> Scored:
    """Scores (file, prompt, pixels [3, H, W] in [0, 1]) one after the other; neighbours of one size go together."""
    files, prompts, found = [], [], []
    for _, alike in groupby(pictures, key=lambda picture: picture[2].shape):
        for batch in _batches(alike, batch_size):
            texts = [prompt for _, prompt, _ in batch]
            try:
                with torch.no_grad():
                    total = reward(torch.stack([pixels for _, _, pixels in batch]).to(device), texts)
            except InputError as error:  # a size, a prompt: whose?
                raise InputError(f"{' to '.join(dict.fromkeys((batch[0][0], batch[-1][0])))}: {error}") from error
            found.append({**reward.member_scores(), TOTAL: total})
            files += [file for file, _, _ in batch]
            prompts += texts
            progress(len(batch))
    names = found[0]
    scores = {name: torch.cat([part[name].float().cpu() for part in found]).numpy() for name in names}
    return Scored(files, prompts, scores)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def interval(values: np.ndarray, prompts: Sequence[str]) -> list[float] | None:
    """95 % bootstrap interval of the mean of `values` [N]: prompts are resampled, each with all its pictures.

    None for a single prompt, whose spread nobody knows.
    """
    names, which = np.unique(np.array(prompts), return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(which, values), np.bincount(which)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(names), size=(ROUNDS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def row(method: str, scored: Scored, base: Scored | None = None) -> dict[str, Any]:
    """A result row: each reward's mean and interval and, against `base` on the same prompts and noises, its gain."""
    rewards = {}
    for name, values in scored.scores.items():
        told = {"mean": float(values.mean()), "ci95": interval(values, scored.prompts)}
        if base is not None:
            gain = values - base.scores[name]
            told.update(gain=float(gain.mean()), gain_ci95=interval(gain, scored.prompts))
        rewards[name] = told
    return {
        "method": method,
        "pictures": len(scored.prompts),
        "prompts": len(set(scored.prompts)),
        "reward": rewards[TOTAL]["mean"],
        "reward_ci95": rewards[TOTAL]["ci95"],
        "rewards": rewards,
    }


def pictures_in(folder: Path, prompts: Path | None) -> list[tuple[Path, str]]:
    """The pictures of a folder with their prompts.

    Prompts are the lines of `prompts`, one per picture in the order of their names, or what `hypernoise
    generate` has written beside them in summary.json.

    Raises:
        InputError: no pictures, no prompts, or not as many; a file named in summary.json that is not in the folder, or
            one that is no picture.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS)
    if not files:
        raise InputError(f"{folder} holds no picture ({', '.join(KINDS)})")
    if prompts is not None:
        lines = read_prompts(str(prompts))
        if len(files) != len(lines):
            raise InputError(
                f"{folder} has {len(files)} pictures and {prompts} {len(lines)} prompts; one each is needed"
            )
        found = list(zip(files, lines, strict=True))
    else:
        try:
            rows = json.loads((folder / "summary.json").read_text())["results"]
            named = [(str(row["file"]), str(row["prompt"])) for row in rows]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{folder} has no summary.json of hypernoise generate, which names each picture's prompt; "
                "give --prompts FILE, a line per picture in the order of their names"
            ) from error
        astray = [name for name, _ in named if Path(name).name != name or not (folder / name).is_file()]
        if astray:
            raise InputError(f"{folder / 'summary.json'} names {astray[0]!r}, which is not a picture in that folder")
        found = [(folder / name, prompt) for name, prompt in named]
        if not named:
            raise InputError(f"{folder / 'summary.json'} names no picture")
    for file, _ in found:
        with opened(file):  # reads the header alone: a wrong file is told before the first is scored
            pass
    return found


def read_picture(file: Path) -> Tensor:
    """Pixels [3, H, W] in [0, 1]."""
    with opened(file) as picture:
        array = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """A picture's file while it is used. Raises InputError for one that is none, wherever in it that shows."""
    try:
        with Image.open(file) as picture:
            yield picture
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as a picture") from error


def write_scores(file: Path, scored: Sequence[tuple[str, Scored]]) -> None:
    """A CSV with a line per picture: method, file, prompt, each member's score and the total."""
    text = io.StringIO(newline="")
    names = list(scored[0][1].scores)
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["method", "file", "prompt", *names])
    for method, found in scored:
        for i, (name, prompt) in enumerate(zip(found.files, found.prompts, strict=True)):
            lines.writerow([method, name, prompt, *(f"{found.scores[reward][i]:.9g}" for reward in names)])
    write_text(file, text.getvalue())
