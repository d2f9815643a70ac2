"""GenEval's prompts, judged by its rules; and its official files, written from the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hypernoise.evaluation.benchmarks import Benchmark, Models, first_of_each, one_per_prompt
from hypernoise.evaluation.geneval.detectors import Detector, check_classes, load
from hypernoise.evaluation.geneval.official import metadata
from hypernoise.evaluation.geneval.picture_folder import write_folder
from hypernoise.evaluation.geneval.requests import Request, parse_lines, read_requests
from hypernoise.evaluation.geneval.rules import Detection, judge, kept
from hypernoise.evaluation.geneval.scoring import write_results
from hypernoise.evaluation.records import Judgement, Records

NONE = "none"


def benchmark(file: str, count: int, models: Models) -> Benchmark:
    """The official 553 prompts, or those of a metadata file; the first `count` of each category, 0: all.

    Raises:
        InputError: unreadable metadata, or a prompt that occurs with two meanings.
    """
    found = read_requests(Path(file)) if file else parse_lines(metadata(), "geneval")
    chosen = first_of_each([request.tag for request in found], count or len(found))
    requests = [found[i] for i in chosen]
    by_prompt(requests)
    return Benchmark(
        prompts=[request.prompt for request in requests],
        categories=[request.tag for request in requests],
        load_judge=None if models.judge == NONE else partial(GenEvalJudge.load, requests, models),
        about={"benchmark": "geneval", "file": file or None, "count": len(requests)},
        write=partial(write_official, requests),
    )


def by_prompt(requests: Sequence[Request]) -> dict[str, Request]:
    """Raises InputError if a prompt occurs with two meanings."""
    return one_per_prompt(requests, "source", "the metadata, with different meanings")


class GenEvalJudge:
    """A detector and the benchmark's rules. It sees pictures in 8 bits, like those in files."""

    def __init__(self, detector: Detector, requests: Sequence[Request]):
        check_classes(detector, requests)
        self.detector, self.requests = detector, by_prompt(requests)
        self.name = f"geneval by {detector.name}"

    @classmethod
    def load(cls, requests: Sequence[Request], models: Models, device: torch.device | str) -> GenEvalJudge:
        return cls(load(models.judge, models.colors, device), requests)

    def __call__(self, picture: np.ndarray, prompt: str) -> Judgement:
        pixels = (torch.from_numpy(picture).permute(2, 0, 1).clamp(0, 1) * 255).round() / 255
        request = self.requests[prompt]
        found = self.detector(pixels, request)
        verdict = judge(request, kept(found, request.tag))
        return Judgement(
            float(verdict.correct), note="; ".join(verdict.reasons), details=[dataclasses.asdict(one) for one in found]
        )


def write_official(requests: Sequence[Request], folder: Path, name: str, records: Records) -> None:
    """Pictures in the official layout under `folder`/pictures/`name` and, if judged, results-`name`.jsonl."""
    noises = len(records.files) // len(requests)
    files = [records.files[i : i + noises] for i in range(0, len(records.files), noises)]
    samples = write_folder(folder / "pictures" / name, requests, files, records.files[0].parent.name)
    if "details" not in records.pictures[0]:
        return
    found = []
    for sample, picture in zip(samples, records.pictures, strict=True):
        objects = [Detection(**one) for one in picture["details"]]
        found.append((sample, objects, judge(sample.request, kept(objects, sample.request.tag))))
    write_results(folder / f"results-{name}.jsonl", found)
