"""Pictures and verdicts in the benchmark's own files, so that its official scripts can read them too.

00000/metadata.jsonl          the prompt's line of metadata
00000/samples/00000.png ...   its pictures
results.jsonl                 a line per picture, from its detections
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.requests import Request, read_requests
from hypernoise.evaluation.geneval.rules import Detection, judge, kept
from hypernoise.evaluation.pictures import Broken, Picture, pictures_in
from hypernoise.files import write_text


def write_folder(
    folder: Path, requests: Sequence[Request], pictures: Sequence[Sequence[Path]], source: str
) -> list[str]:
    """Arranges each request's pictures, as hard links if the file system supports them, otherwise as copies.

    `source` names their method and is noted in source.txt: a folder from another source is replaced. Returns the
    pictures' names in the folder, by request.

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
    names = []
    for number, (request, files) in enumerate(zip(requests, pictures, strict=True)):
        place = f"{number:05d}"
        (folder / place / "samples").mkdir(parents=True, exist_ok=True)
        write_text(folder / place / "metadata.jsonl", json.dumps(request.source))
        for index, file in enumerate(files):
            names.append(f"{place}/samples/{index:05d}.png")
            if not (folder / names[-1]).exists():
                _link(file, folder / names[-1])
    return names


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except FileExistsError:  # another shard was first
        pass
    except OSError:
        part = name.with_name(f".{name.name}.{os.getpid()}")
        shutil.copyfile(file, part)
        os.replace(part, name)


def write_results(
    file: Path, requests: Mapping[str, Request], found: Iterable[tuple[str, str, Sequence[Mapping[str, Any]]]]
) -> None:
    """Writes a line of JSON per picture, in the fields of the official results.jsonl, for its summary_scores.py.

    `found` has each picture's name, prompt and detections, in `Detection`'s fields.
    """
    lines = []
    for name, prompt, details in found:
        request = requests[prompt]
        objects = kept([Detection(**one) for one in details], request.tag)
        reasons = judge(request, objects)
        line = {
            "filename": name,
            "tag": request.tag,
            "prompt": prompt,
            "correct": not reasons,
            "reason": "\n".join(reasons),
            "metadata": json.dumps(request.source),
            "details": json.dumps({name: [[*d.box, d.score] for d in same] for name, same in objects.items()}),
        }
        lines.append(json.dumps(line) + "\n")
    write_text(file, "".join(lines))


def is_picture_folder(folder: Path) -> bool:
    """Whether a folder has this layout: folders with numbers as names."""
    return any(_places(folder))


def _places(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((place for place in there if place.is_dir() and place.name.isdecimal()), key=_number)


def read_folder(folder: Path) -> tuple[list[Picture], list[Request], list[Broken]]:
    """The pictures of a folder in this layout, by prompt, their requests, and its incomplete prompts.

    Prompts with fewer pictures than most are reported, and judged by those that exist.
    """
    pictures: list[Picture] = []
    requests: list[Request] = []
    broken: list[Broken] = []
    counts: dict[str, int] = {}
    other: dict[str, str] = {}  # the first file that is not a sample
    for place in _places(folder):
        try:
            (request,) = read_requests(place / "metadata.jsonl")
        except (InputError, ValueError) as error:
            why = str(error) if isinstance(error, InputError) else "its metadata.jsonl has several prompts"
            broken.append(Broken(place.name, why))
            continue
        requests.append(request)
        there = sorted(file for file in (place / "samples").glob("*") if file.is_file())
        files = sorted((file for file in there if re.fullmatch(r"\d+\.png", file.name)), key=_number)
        counts[place.name] = len(files)
        other[place.name] = next((file.name for file in there if file not in files), "")
        pictures += [
            Picture(f"{place.name}/samples/{file.name}", file, request.prompt, _number(place), request.tag)
            for file in files
        ]
    usual = max(mode(counts.values()), 1) if counts else 0
    for name, count in counts.items():
        if count < usual:
            hint = f"; only names such as 00000.png count, not {other[name]}" if other[name] else ""
            broken.append(Broken(name, f"{count} of {usual} pictures exist{hint}"))
    return pictures, requests, broken


def read_flat(folder: Path, prompts: str, requests: Mapping[str, Request]) -> tuple[list[Picture], list[Broken]]:
    """The pictures of GenEval's prompts in a folder of another layout, such as from `hypernoise generate`.

    Raises the errors of `pictures_in`, and InputError if no prompt has a request.
    """
    pictures = pictures_in(folder, prompts)
    known = [dataclasses.replace(one, category=requests[one.prompt].tag) for one in pictures if one.prompt in requests]
    if not known:
        raise InputError(
            f"{folder} is not in GenEval's layout, with folders such as 00000, and {pictures[0].prompt!r} is not one "
            "of GenEval's prompts"
        )
    others = [one for one in pictures if one.prompt not in requests]
    return known, [Broken(one.name, f"{one.prompt!r} is not one of GenEval's prompts") for one in others]


def _number(path: Path) -> int:
    return int(path.stem)
