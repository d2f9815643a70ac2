"""Detections and verdicts as files: a line of JSON per picture.

Detections:  {"file": "00000/samples/00000.png",
              "objects": [{"class": "dog", "box": [left, top, right, bottom], "score": 0.97, "color": "red"}]}

with a colour where one decides. Verdicts have the fields of the official results.jsonl, so that the benchmark's
summary_scores.py reads them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.names import benchmark_name
from hypernoise.evaluation.geneval.picture_folder import Sample
from hypernoise.evaluation.geneval.requests import COLORS, lines_of
from hypernoise.evaluation.geneval.rules import Detection, Verdict, kept
from hypernoise.files import write_text


def as_json(detections: Sequence[Detection]) -> list[dict[str, Any]]:
    return [
        {"class": d.name, "box": list(d.box), "score": d.score, **({"color": d.color} if d.color else {})}
        for d in detections
    ]


def from_json(objects: Any) -> list[Detection]:
    """Raises InputError for anything but a list of detections."""
    if not isinstance(objects, list):
        raise InputError("its 'objects' must be a list of detections")
    return [_detection(one, number) for number, one in enumerate(objects)]


def _detection(one: Any, number: int) -> Detection:
    if not isinstance(one, dict) or not isinstance(one.get("class"), str):
        raise InputError(f"object {number} has no 'class'")
    box: Any = one.get("box")
    score: Any = one.get("score")
    color, where = one.get("color"), f"object {number} ({one['class']})"
    if not (isinstance(box, list) and len(box) == 4 and all(_finite(side) for side in box)):
        raise InputError(f"{where}: 'box' must be [left, top, right, bottom], not {box!r}")
    if not _finite(score):
        raise InputError(f"{where}: 'score' must be a number, not {score!r}")
    if color is not None and color not in COLORS:
        raise InputError(f"{where}: 'color' must be one of {', '.join(COLORS)}, not {color!r}")
    left, top, right, bottom = (float(side) for side in box)
    return Detection(one["class"], (left, top, right, bottom), float(score), color)


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class FileDetections:
    """Detections from a file instead of a model: the rules run on them alone.

    Classes that the benchmark calls something else are renamed, except for prompts that ask for them by the file's
    word.
    """

    def __init__(self, file: Path):
        self.name = str(file)
        self.lines: dict[str, Any] = {}
        for number, value in lines_of(file, "detections"):
            if not (isinstance(value, dict) and isinstance(value.get("file"), str)):
                raise InputError(f"detections {file}, line {number}: no 'file', such as 00000/samples/00000.png")
            self.lines[value["file"]] = value.get("objects")
        objects = [one for line in self.lines.values() if isinstance(line, list) for one in line]
        self.words = {one["class"] for one in objects if isinstance(one, dict) and isinstance(one.get("class"), str)}

    @property
    def classes(self) -> frozenset[str]:
        """Those that occur, in the file's words and in the benchmark's."""
        return frozenset(self.words | {benchmark_name(word, self.words) for word in self.words})

    def __call__(self, sample: Sample) -> list[Detection]:
        if sample.name not in self.lines:
            raise InputError(f"{self.name} has no detections of it")
        return [
            one
            if one.name in sample.request.names
            else dataclasses.replace(one, name=benchmark_name(one.name, self.words))
            for one in from_json(self.lines[sample.name])
        ]


def write_detections(file: Path, found: Sequence[tuple[Sample, list[Detection]]]) -> None:
    lines = [json.dumps({"file": sample.name, "objects": as_json(objects)}) for sample, objects in found]
    write_text(file, "".join(line + "\n" for line in lines))


def write_results(file: Path, found: Sequence[tuple[Sample, list[Detection], Verdict]]) -> None:
    lines = []
    for sample, objects, verdict in found:
        details = {name: [[*d.box, d.score] for d in same] for name, same in kept(objects, sample.request.tag).items()}
        line = {
            "filename": sample.name,
            "tag": sample.request.tag,
            "prompt": sample.request.prompt,
            "correct": verdict.correct,
            "reason": "\n".join(verdict.reasons),
            "metadata": json.dumps(sample.request.source),
            "details": json.dumps(details),
        }
        lines.append(json.dumps(line) + "\n")
    write_text(file, "".join(lines))
