"""The contract of a detector: what a picture shows, for a request; and the one of transformers' models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval import colors, mask2former
from hypernoise.evaluation.geneval.requests import Request
from hypernoise.evaluation.geneval.rules import Detection, deciding_colors, kept
from hypernoise.evaluation.rewards import read_picture


class Detector(Protocol):
    """`name` stands for all that decides what is found: kept detections are recognised by it.

    label: what results are called, such as geneval-hf: other detectors, other numbers.
    classes: of objects it can find.
    """

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def classes(self) -> frozenset[str]: ...

    def __call__(self, file: Path, request: Request) -> list[Detection]:
        """Everything found in a picture, with colours where they decide. InputError for a picture that is none."""
        ...


def lacking_classes(detector: Detector, requests: Iterable[Request]) -> list[str]:
    """What requests ask for and the detector does not know."""
    return sorted({name for request in requests for name in request.names} - detector.classes)


def check_classes(detector: Detector, requests: Iterable[Request]) -> None:
    """Raises InputError if a request asks for a class that the detector does not know."""
    lacking = lacking_classes(detector, requests)
    if lacking:
        some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise InputError(
            f"detector {detector.name} knows no {some} ({len(lacking)} of the classes that the prompts ask for); "
            f"it knows {len(detector.classes)}, such as {', '.join(sorted(detector.classes)[:5])}"
        )


class HfDetector:
    """Mask2Former for objects and CLIP for their colours."""

    label = "geneval-hf"

    def __init__(self, objects: mask2former.Mask2Former, painter: colors.ClipColors):
        self.objects, self.painter = objects, painter
        self.name = f"{objects.name} + {painter.name}"
        self.classes = frozenset(objects.labels)

    def __call__(self, file: Path, request: Request) -> list[Detection]:
        pixels = read_picture(file)
        found = self.objects(pixels)
        detections = [detection for detection, _ in found]
        deciding = deciding_colors(request, kept(detections, request.tag))
        painted = []
        for detection, mask in found:
            color = self.painter(pixels, detection, mask) if detection in deciding else None
            painted.append(dataclasses.replace(detection, color=color))
        return painted


def load(objects: str, painter: str, device: torch.device | str) -> HfDetector:
    return HfDetector(mask2former.load(objects, device), colors.load(painter, device))
