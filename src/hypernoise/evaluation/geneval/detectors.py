"""The interface of a detector of objects in pictures, and its implementation with transformers' models."""

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
    """`name` identifies everything that determines the results."""

    name: str

    @property
    def classes(self) -> Collection[str]:
        """The classes that it can detect."""
        ...

    def __call__(self, pixels: Tensor, request: Request) -> list[Detection]:
        """All detections in pixels [3, H, W] in [0, 1], with colours where the request needs them."""
        ...


def check_classes(detector: Detector, requests: Iterable[Request]) -> None:
    """Raises InputError if a request needs a class that the detector does not know."""
    lacking = sorted({name for request in requests for name in request.names} - set(detector.classes))
    if lacking:
        some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise InputError(
            f"detector {detector.name} does not know {some} ({len(lacking)} of the classes in the prompts); "
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
    """From Hub repositories or folders; empty names mean the default models.

    Raises:
        InputError: weights that are missing or do not fit.
    """
    return HfDetector(mask2former.load(objects or MASK2FORMER, device), colors.load(painter or CLIP, device))
