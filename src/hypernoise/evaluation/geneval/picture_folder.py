"""Pictures in the benchmark's folder layout, so that its official scorer can read them too.

00000/metadata.jsonl          the prompt's line of metadata
00000/samples/00000.png ...   its pictures
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.requests import Request, read_requests
from hypernoise.evaluation.pictures import Broken, Picture, pictures_in
from hypernoise.files import write_text


@dataclass(frozen=True)
class Sample(Picture):
    """A picture and its prompt's request."""

    request: Request


def write_folder(
    folder: Path, requests: Sequence[Request], pictures: Sequence[Sequence[Path]], source: str
) -> list[Sample]:
    """Arranges each request's pictures, as hard links if the file system supports them, otherwise as copies.

    `source` names their method and is noted in source.txt: a folder from another source is replaced.

    Raises:
        InputError: the folder has other contents.
    """
    mark = folder / "source.txt"
    if mark.exists() and mark.read_text() != source:
        shutil.rmtree(folder)
    if folder.exists() and not mark.exists():
        raise InputError(f"{folder} has other contents; choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, source)
    samples = []
    for number, (request, files) in enumerate(zip(requests, pictures, strict=True)):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        write_text(place / "metadata.jsonl", json.dumps(request.source))
        for index, file in enumerate(files):
            name = f"{number:05d}/samples/{index:05d}.png"
            sample = Sample(name, folder / name, request.prompt, number, request)
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


def is_picture_folder(folder: Path) -> bool:
    """Whether a folder has this layout: folders with numbers as names."""
    return any(_places(folder))


def _places(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((place for place in there if place.is_dir() and place.name.isdecimal()), key=_number)


def read_folder(folder: Path) -> tuple[list[Sample], list[Broken]]:
    """The pictures of a folder, by prompt, and its incomplete prompts.

    Prompts with fewer pictures than most are reported, and judged by the existing ones.

    Raises:
        InputError: no folder, or none with a number as its name.
    """
    places = _places(folder)
    if not places:
        raise InputError(f"{folder} is not in GenEval's layout: it has no folder such as 00000")
    samples: list[Sample] = []
    broken: list[Broken] = []
    counts: dict[str, int] = {}
    others: dict[str, list[str]] = {}  # files that are not samples
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
        samples += [
            Sample(f"{place.name}/samples/{file.name}", file, request.prompt, _number(place), request) for file in files
        ]
    usual = max(counts.values(), key=list(counts.values()).count, default=0)
    for name, count in counts.items():
        if count < usual or count == 0:
            hint = f"; only names such as 00000.png count, not {others[name][0]}" if others[name] else ""
            broken.append(Broken(name, f"{count} of {max(usual, 1)} pictures exist{hint}"))
    return samples, broken


def read_flat(folder: Path, prompts: str, requests: Mapping[str, Request]) -> tuple[list[Sample], list[Broken]]:
    """The pictures of a folder in another layout, such as from `hypernoise generate`, by their prompts' requests.

    Raises:
        InputError: errors of `pictures_in`, or no prompt with a request.
    """
    pictures = pictures_in(folder, prompts)
    samples = [Sample(**vars(one), request=requests[one.prompt]) for one in pictures if one.prompt in requests]
    if not samples:
        raise InputError(
            f"{folder} is not in GenEval's layout, with folders such as 00000, and {pictures[0].prompt!r} is none of "
            "GenEval's prompts"
        )
    others = [one for one in pictures if one.prompt not in requests]
    return samples, [Broken(one.name, f"{one.prompt!r} is not one of GenEval's prompts") for one in others]


def _request(place: Path) -> Request:
    file = place / "metadata.jsonl"
    if not file.is_file():
        raise InputError(f"{file} is missing: the pictures cannot be judged without their metadata")
    requests = read_requests(file)
    if len(requests) != 1:
        raise InputError(f"{file} has {len(requests)} prompts instead of one")
    return requests[0]


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []


def _number(path: Path) -> int:
    return int(path.stem)
