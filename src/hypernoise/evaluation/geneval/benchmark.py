"""GenEval's prompts, judged by its rules on detected objects; and its folders of pictures, read and written.

00000/metadata.jsonl          the prompt's line of metadata
00000/samples/00000.png ...   its pictures
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import Benchmark, first_of_each
from hypernoise.evaluation.geneval.detection import ClipColors, Mask2Former
from hypernoise.evaluation.geneval.official import official_requests
from hypernoise.evaluation.geneval.rules import Detection, Request, judge, kept, parse, parse_lines
from hypernoise.evaluation.pictures import Picture, pictures_in
from hypernoise.evaluation.records import Judgement, Records
from hypernoise.files import read_json, read_text, write_text

MASK2FORMER, CLIP = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"


def benchmark(file: str, count: int, judge: str, colors: str) -> Benchmark:
    """The official 553 prompts, or those of a metadata file; the first `count` of each category, 0: all.

    Raises InputError for unreadable metadata, or a prompt that occurs with two meanings.
    """
    found = parse_lines(read_text(file, f"metadata {file}"), f"metadata {file}") if file else official_requests()
    chosen = [found[i] for i in first_of_each([request.tag for request in found], count or len(found))]
    requests = by_prompt(chosen)
    return Benchmark(
        prompts=[request.prompt for request in chosen],
        categories=[request.tag for request in chosen],
        load_judge=None if judge == "none" else partial(GenEvalJudge, requests, judge, colors),
        about={"benchmark": "geneval", "file": file or None, "count": len(chosen)},
        write=partial(write_folder, chosen),
    )


def by_prompt(requests: Sequence[Request]) -> dict[str, Request]:
    """Raises InputError if a prompt occurs with two meanings."""
    found: dict[str, Request] = {}
    for request in requests:
        if found.setdefault(request.prompt, request) != request:
            raise InputError(f"the prompt {request.prompt!r} appears twice in the metadata, with different meanings")
    return found


class GenEvalJudge:
    """The benchmark's rules on the objects that a detector finds, with their colours by CLIP.

    It sees pictures in 8 bits, like those in files. `requests` are by prompt; detector and CLIP are Hub repositories or
    folders, empty for the default ones.

    Raises InputError for weights that are missing or do not fit, and for a request that needs a class which the
    detector does not know.
    """

    def __init__(self, requests: Mapping[str, Request], objects: str = "", colors: str = "", device: Any = "cpu"):
        self.requests = requests
        self.objects, self.colors = Mask2Former(objects or MASK2FORMER, device), ClipColors(colors or CLIP, device)
        self.name = f"geneval by {self.objects.name} + {self.colors.name}"
        needed = {clause.name for request in requests.values() for clause in (*request.include, *request.exclude)}
        known = sorted(self.objects.labels)
        lacking = sorted(needed - set(known))
        if lacking:
            raise InputError(
                f"detector {self.objects.name} does not know {', '.join(lacking[:5])} ({len(lacking)} of the classes "
                f"in the prompts); it knows {len(known)}, such as {', '.join(known[:5])}"
            )

    def __call__(self, picture: np.ndarray, prompt: str) -> Judgement:
        pixels = (torch.from_numpy(picture).permute(2, 0, 1).clamp(0, 1) * 255).round() / 255
        request = self.requests[prompt]
        found = self.detect(pixels, request)
        reasons = judge(request, kept(found, request.tag))
        details = [dataclasses.asdict(one) for one in found]
        return Judgement(float(not reasons), note="; ".join(reasons), details=details)

    def detect(self, pixels: Tensor, request: Request) -> list[Detection]:
        """All detections in pixels [3, H, W] in [0, 1], with the colours that decide the request."""
        found = self.objects(pixels)
        objects = kept([detection for detection, _ in found], request.tag)
        asked = [objects.get(clause.name, [])[: clause.count] for clause in request.include if clause.color]
        deciding = [one for same in asked for one in same]
        return [
            dataclasses.replace(one, color=self.colors(pixels, one, mask)) if one in deciding else one
            for one, mask in found
        ]


def write_folder(requests: Sequence[Request], output: Path, records: Records) -> None:
    """Copies a method's pictures to `output`/pictures in the official layout, for the benchmark's own scripts."""
    folder = output / "pictures" / records.files[0].parent.name
    noises = len(records.files) // len(requests)
    for number, request in enumerate(requests):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        write_text(samples.parent / "metadata.jsonl", json.dumps(request.source))
        for index, file in enumerate(records.files[number * noises :][:noises]):
            shutil.copyfile(file, samples / f"{index:05d}.png")


def read_folder(
    folder: Path, prompts: str = "", official: Mapping[str, Request] | None = None
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of a folder, with their GenEval requests; and by name why others cannot be used.

    A folder in another layout than the official one is read by `pictures_in`, with the requests of the `official`
    prompts if they are given. Prompts with fewer pictures than most are reported, and judged by those that exist.

    Raises the errors of `pictures_in`, and InputError if no picture is of an official prompt.
    """
    places = sorted(place for place in folder.glob("*") if place.name.isdecimal() and place.is_dir())
    if not places:
        flat = pictures_in(folder, prompts)
        if official is None:
            return flat, {}
        known = [dataclasses.replace(one, request=official[one.prompt]) for one in flat if one.prompt in official]
        others = {one.name: f"{one.prompt!r} is not a GenEval prompt" for one in flat if one.prompt not in official}
        if not known:
            raise InputError(f"{folder} is not in GenEval's layout (00000/samples), and {next(iter(others.values()))}")
        return known, others
    pictures: list[Picture] = []
    broken: dict[str, str] = {}
    counts: dict[str, int] = {}
    for place in places:
        about = f"metadata {place / 'metadata.jsonl'}"
        try:
            request = parse(read_json(place / "metadata.jsonl", about), about)
        except InputError as error:
            broken[place.name] = str(error)
            continue
        files = sorted(file for file in place.glob("samples/*.png") if file.stem.isdecimal())
        pictures += [Picture(f"{place.name}/samples/{file.name}", file, request.prompt, request) for file in files]
        counts[place.name] = len(files)
    usual = max(1, mode(counts.values() or [0]))
    lacking = {name: count for name, count in counts.items() if count < usual}
    return pictures, broken | {name: f"{n} of {usual} samples such as 00000.png exist" for name, n in lacking.items()}
