"""Picture files, and folders of pictures with their prompts."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.rules import Request
from hypernoise.files import check_file, kept_json
from hypernoise.prompts import read_prompts

KINDS = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 2**25  # limit per picture: tensors take 12 bytes per pixel
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # raised by Pillow for damaged files


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt. `name` is its path in its folder, with slashes; `request` is GenEval's, if it is known."""

    name: str
    file: Path
    prompt: str
    request: Request | None = None


def read_picture(file: Path) -> Tensor:
    """Pixels [3, H, W] in [0, 1]. Raises InputError for a damaged file."""
    return torch.from_numpy(np.array(opened(file))).permute(2, 0, 1).float() / 255


def opened(file: Path) -> Image.Image:
    """A picture in RGB. Raises InputError for a damaged file, for one that is too large, and for more than 8 bits per
    value, which a conversion would cut."""
    check_file(file, str(file))
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            picture = Image.open(file, formats=FORMATS)
        with picture:
            if math.prod(picture.size) > MOST_PIXELS:
                raise InputError(f"{file} has {picture.width} x {picture.height} pixels; the limit is {MOST_PIXELS}")
            if picture.mode.startswith(("I", "F")):
                raise InputError(f"{file} has more than 8 bits per value; save it as an 8-bit RGB picture")
            return picture.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as a picture") from error


def pictures_in(folder: Path, prompts: str = "") -> list[Picture]:
    """The pictures of a folder and their prompts.

    Prompts are the lines of the file `prompts`, one per picture in the order of their names; otherwise those written
    by `hypernoise generate` (summary.json) or `hypernoise evaluate` (batch-*.json) next to the pictures.

    Raises:
        InputError: no pictures, no prompts, different numbers of both, or a name that leaves the folder.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if not prompts:
        return [Picture(name, folder / name, prompt) for name, prompt in _noted(folder)]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS)
    lines = read_prompts(prompts)
    if not files or len(files) != len(lines):
        kinds = ", ".join(KINDS)
        raise InputError(
            f"{folder} has {len(files)} pictures ({kinds}) but {prompts} {len(lines)} prompts; give one each"
        )
    return [Picture(file.name, file, prompt) for file, prompt in zip(files, lines, strict=True)]


def _noted(folder: Path) -> list[tuple[str, str]]:
    """(file, prompt) pairs written by one of our commands."""
    batches = sorted(folder.glob("batch-*.json"))
    parts = [kept_json(file) or {} for file in batches or [folder / "summary.json"]]
    listed = [part.get("pictures" if batches else "results") for part in parts]
    rows = [row for part in listed for row in (part if isinstance(part, list) else [part])]
    named: list[Any] = [(row.get("file"), row.get("prompt")) if isinstance(row, dict) else (None, None) for row in rows]
    if not named or not all(isinstance(part, str) for pair in named for part in pair):
        raise InputError(
            f"{folder} has no prompts: it is neither a folder of hypernoise generate nor one under evaluate's methods/,"
            " or their file is damaged; give --prompts FILE, with a line per picture in the order of their names"
        )
    for name, _ in named:
        if Path(name).name != name or not os.path.exists(folder / name):
            raise InputError(f"{folder} lists {name!r}, which is not a picture in that folder")
    return named
