"""Feature vectors of pictures: DINOv2's, Inception's, or plain pixels where no model is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Model

from hypernoise.evaluation import inception
from hypernoise.evaluation.pretrained import pretrained
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalise

SIDE = 224  # px, DINOv2's pictures
SMALL = 16  # px, of the pixels that stand for a picture

Features = Callable[[Tensor], Tensor]
"""Of pixels [B, 3, H, W] in [0, 1], vectors [B, D]."""


def load(source: str, device: torch.device | str) -> Features:
    """ "pixels", "inception" or the file of its weights, or the DINOv2 of a Hub repository or a folder.

    What is published is taken from the local cache, or downloaded.

    Raises:
        InputError: weights that cannot be had or do not fit.
    """
    if source == "pixels":
        return pixels
    if source == "inception" or Path(source).is_file():
        return inception.load(None if source == "inception" else Path(source), device)
    return Dino(pretrained(Dinov2Model, source, "features", "DINOv2", device))


def pixels(pictures: Tensor) -> Tensor:
    """The picture itself at 16 x 16, less grey, so that a cosine can be negative."""
    small = interpolate(pictures.float(), (SMALL, SMALL), mode="bilinear", antialias=True)
    return small.flatten(1) - 0.5


class Dino:
    """DINOv2's class token after its last norm, of the middle of pictures resized to 224 pixels."""

    def __init__(self, model: Dinov2Model):
        self.model = model
        self.resize = Resize(SIDE)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        seen: Any = self.model(
            pixel_values=normalise(self.resize(pictures.to(self.model.device)), IMAGENET_MEAN, IMAGENET_STD)
        )
        return seen.pooler_output.float().cpu()


def of_pictures(features: Features, pictures: Sequence[Tensor], batch_size: int = 16) -> np.ndarray:
    """Vectors [N, D] in fp64 of pixels [3, H, W], neighbours of one size together."""
    found: list[Tensor] = []
    batch: list[Tensor] = []
    for number, picture in enumerate(pictures):
        batch.append(picture)
        following = pictures[number + 1] if number + 1 < len(pictures) else None
        if following is None or following.shape != picture.shape or len(batch) == batch_size:
            found.append(features(torch.stack(batch)))
            batch = []
    return torch.cat(found).double().numpy()
