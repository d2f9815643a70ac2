"""GenEval's prompts, judged by its rules on detected objects; and its official files, written from the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import Benchmark, first_of_each, one_per_prompt
from hypernoise.evaluation.geneval.detection import ClipColors, Mask2Former
from hypernoise.evaluation.geneval.official import official_requests
from hypernoise.evaluation.geneval.picture_folder import write_folder, write_results
from hypernoise.evaluation.geneval.requests import Request, read_requests
from hypernoise.evaluation.geneval.rules import Detection, deciding_colors, judge, kept
from hypernoise.evaluation.records import Judgement, Records

MASK2FORMER, CLIP = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"


def benchmark(file: str, count: int, judge: str, colors: str) -> Benchmark:
    """The official 553 prompts, or those of a metadata file; the first `count` of each category, 0: all.

    Raises InputError for unreadable metadata, or a prompt that occurs with two meanings.
    """
    found = read_requests(Path(file)) if file else official_requests()
    chosen = first_of_each([request.tag for request in found], count or len(found))
    requests = by_prompt([found[i] for i in chosen])
    return Benchmark(
        prompts=[found[i].prompt for i in chosen],
        categories=[found[i].tag for i in chosen],
        load_judge=None if judge == "none" else partial(GenEvalJudge.load, requests, judge, colors),
        about={"benchmark": "geneval", "file": file or None, "count": len(chosen)},
        write=partial(write_official, [found[i] for i in chosen]),
    )


def by_prompt(requests: Sequence[Request]) -> dict[str, Request]:
    """Raises InputError if a prompt occurs with two meanings."""
    return one_per_prompt(requests, "source", "the metadata, with different meanings")


class GenEvalJudge:
    """The benchmark's rules on the objects that a detector finds, with their colours by CLIP.

    It sees pictures in 8 bits, like those in files. `requests` are by prompt.

    Raises InputError for a request that needs a class which the detector does not know.
    """

    def __init__(self, objects: Mask2Former, colors: ClipColors, requests: Mapping[str, Request]):
        self.objects, self.colors, self.requests = objects, colors, requests
        self.name = f"geneval by {objects.name} + {colors.name}"
        needed = {clause.name for request in requests.values() for clause in (*request.include, *request.exclude)}
        lacking = sorted(needed - set(objects.labels))
        if lacking:
            raise InputError(
                f"detector {objects.name} does not know {', '.join(lacking[:5])} ({len(lacking)} of the classes in the "
                f"prompts); it knows {len(objects.labels)}, such as {', '.join(sorted(objects.labels)[:5])}"
            )

    @classmethod
    def load(cls, requests: Mapping[str, Request], objects: str, colors: str, device: Any) -> GenEvalJudge:
        """Raises InputError for weights that are missing or do not fit, and for unknown classes."""
        detector = Mask2Former.load(objects or MASK2FORMER, device)
        return cls(detector, ClipColors.load(colors or CLIP, device), requests)

    def __call__(self, picture: np.ndarray, prompt: str) -> Judgement:
        pixels = (torch.from_numpy(picture).permute(2, 0, 1).clamp(0, 1) * 255).round() / 255
        request = self.requests[prompt]
        found = self.detect(pixels, request)
        reasons = judge(request, kept(found, request.tag))
        return Judgement(
            float(not reasons), note="; ".join(reasons), details=[dataclasses.asdict(one) for one in found]
        )

    def detect(self, pixels: Tensor, request: Request) -> list[Detection]:
        """All detections in pixels [3, H, W] in [0, 1], with the colours that decide the request."""
        found = self.objects(pixels)
        deciding = deciding_colors(request, kept([detection for detection, _ in found], request.tag))
        return [
            dataclasses.replace(one, color=self.colors(pixels, one, mask)) if one in deciding else one
            for one, mask in found
        ]


def write_official(requests: Sequence[Request], folder: Path, name: str, records: Records) -> None:
    """Pictures in the official layout under `folder`/pictures/`name` and, if judged, results-`name`.jsonl."""
    noises = len(records.files) // len(requests)
    files = [records.files[i : i + noises] for i in range(0, len(records.files), noises)]
    names = write_folder(folder / "pictures" / name, requests, files, records.files[0].parent.name)
    if "details" in records.pictures[0]:
        found = [(own, one["prompt"], one["details"]) for own, one in zip(names, records.pictures, strict=True)]
        write_results(folder / f"results-{name}.jsonl", by_prompt(requests), found)
