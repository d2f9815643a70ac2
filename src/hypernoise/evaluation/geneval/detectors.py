"""The contract of a detector: what a picture shows, for a request. And the one made of transformers' models."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Protocol

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval import colors, mask2former
from hypernoise.evaluation.geneval.requests import Request
from hypernoise.evaluation.geneval.rules import Detection, deciding_colors, kept

MASK2FORMER, CLIP = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"


class Detector(Protocol):
    """`name` stands for all that decides what is found."""

    name: str

    @property
    def classes(self) -> Collection[str]:
        """The objects that it can find."""
        ...

    def __call__(self, pixels: Tensor, request: Request) -> list[Detection]:
        """Everything found in pixels [3, H, W] in [0, 1], with colours where they decide."""
        ...


def check_classes(detector: Detector, requests: Iterable[Request]) -> None:
    """Raises InputError if a request asks for a class that the detector does not know."""
    lacking = sorted({name for request in requests for name in request.names} - set(detector.classes))
    if lacking:
        some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise InputError(
            f"detector {detector.name} does not know {some} ({len(lacking)} of the classes that the prompts ask for); "
            f"it knows {len(detector.classes)}, such as {', '.join(sorted(detector.classes)[:5])}"
        )


class HfDetector:
    """Mask2Former for objects and CLIP for their colours."""

    def __init__(self, objects: mask2former.Mask2Former, painter: colors.ClipColors):
        self.objects, self.painter = objects, painter
        self.name = f"{objects.name} + {painter.name}"
        self.classes = frozenset(objects.labels)

    def __call__(self, pixels: Tensor, request: Request) -> list[Detection]:
        found = self.objects(pixels)
        deciding = deciding_colors(request, kept([detection for detection, _ in found], request.tag))
        painted = []
        for detection, mask in found:
            color = self.painter(pixels, detection, mask) if detection in deciding else None
            painted.append(dataclasses.replace(detection, color=color))
        return painted


def load(objects: str, painter: str, device: torch.device | str) -> HfDetector:
    """From Hub repositories or folders; empty names stand for the usual models.

    Raises:
        InputError: weights that are missing or do not fit.
    """
    return HfDetector(mask2former.load(objects or MASK2FORMER, device), colors.load(painter or CLIP, device))
