"""Pictures in the benchmark's own folder layout, so that its official scorer can read them too.

00000/metadata.jsonl          the prompt's line of metadata
00000/samples/00000.png ...   its pictures
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.requests import Request, read_requests
from hypernoise.files import write_text


@dataclass(frozen=True)
class Sample:
    """A picture of the `number`-th prompt; `name` is its path in the album, with slashes."""

    number: int
    request: Request
    file: Path
    name: str


@dataclass(frozen=True)
class Broken:
    """What could not be judged, and why: it costs itself, not the run."""

    name: str
    why: str


def write_album(
    folder: Path, requests: Sequence[Request], pictures: Sequence[Sequence[Path]], source: str
) -> list[Sample]:
    """Lays out each request's pictures, as hard links where the file system has them, else copies.

    `source` names what drew them and stands in source.txt: an album of another source in this place is removed.

    Raises:
        InputError: the folder holds something that this function did not write.
    """
    mark = folder / "source.txt"
    if mark.exists() and mark.read_text() != source:
        shutil.rmtree(folder)
    if folder.exists() and not mark.exists():
        raise InputError(f"{folder} holds something else; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, source)
    samples = []
    for number, (request, files) in enumerate(zip(requests, pictures, strict=True)):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        write_text(place / "metadata.jsonl", json.dumps(request.source))
        for index, file in enumerate(files):
            sample = Sample(
                number, request, place / "samples" / f"{index:05d}.png", f"{number:05d}/samples/{index:05d}.png"
            )
            if not sample.file.exists():
                _link(file, sample.file)
            samples.append(sample)
    return samples


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except FileExistsError:  # another shard was first
        pass
    except OSError:
        part = name.with_name(f".{name.name}.{os.getpid()}")
        shutil.copyfile(file, part)
        os.replace(part, name)


def read_album(folder: Path) -> tuple[list[Sample], list[Broken]]:
    """The pictures of a folder, prompt by prompt; and what is half-finished there.

    Prompts of which some pictures are missing, by what most prompts have, are told, and judged by those there are.

    Raises:
        InputError: no folder, or none with a number for a name.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    places = sorted((place for place in folder.iterdir() if place.is_dir() and place.name.isdigit()), key=_number)
    if not places:
        raise InputError(f"{folder} is not in GenEval's layout: it has no folder such as 00000")
    samples: list[Sample] = []
    broken: list[Broken] = []
    counts: dict[str, int] = {}
    others: dict[str, list[str]] = {}  # files that are no samples
    for place in places:
        try:
            request = _request(place)
        except InputError as error:
            broken.append(Broken(place.name, str(error)))
            continue
        there = _files(place / "samples")
        files = sorted((f for f in there if re.fullmatch(r"\d+\.png", f.name)), key=_number)
        counts[place.name] = len(files)
        others[place.name] = sorted(f.name for f in there if f not in files)
        samples += [Sample(_number(place), request, file, f"{place.name}/samples/{file.name}") for file in files]
    usual = max(counts.values(), key=list(counts.values()).count, default=0)
    for name, count in counts.items():
        if count < usual or count == 0:
            hint = f"; only names such as 00000.png count, not {others[name][0]}" if others[name] else ""
            broken.append(Broken(name, f"{count} of {max(usual, 1)} pictures are there{hint}"))
    return samples, broken


def _request(place: Path) -> Request:
    file = place / "metadata.jsonl"
    if not file.is_file():
        raise InputError(f"{file} is missing: the pictures cannot be judged without their prompt's metadata")
    requests = read_requests(file)
    if len(requests) != 1:
        raise InputError(f"{file} holds {len(requests)} prompts instead of one")
    return requests[0]


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []


def _number(path: Path) -> int:
    return int(path.stem)
