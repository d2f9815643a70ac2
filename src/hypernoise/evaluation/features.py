"""Feature vectors of pictures: from DINOv2, or plain pixels without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Model

from hypernoise.evaluation.pretrained import pretrained
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalise

SIDE = 224  # px, DINOv2's input
SMALL = 16  # px, for plain pixels as features

Features = Callable[[Tensor], Tensor]
"""From pixels [B, 3, H, W] in [0, 1] to vectors [B, D]."""


def load(source: str, device: torch.device | str) -> Features:
    """ "pixels", or the DINOv2 of a Hub repository (from the local cache or downloaded) or a folder.

    Raises:
        InputError: weights that are missing or do not fit.
    """
    return pixels if source == "pixels" else Dino(pretrained(Dinov2Model, source, "features", "DINOv2", device))


def pixels(pictures: Tensor) -> Tensor:
    """The picture at 16 x 16, minus grey, so that a cosine can be negative."""
    small = interpolate(pictures.float(), (SMALL, SMALL), mode="bilinear", antialias=True)
    return small.flatten(1) - 0.5


class Dino:
    """DINOv2's class token after the final norm, from the centre of pictures resized to 224 pixels."""

    def __init__(self, model: Dinov2Model):
        self.model = model
        self.resize = Resize(SIDE)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        seen: Any = self.model(
            pixel_values=normalise(self.resize(pictures.to(self.model.device)), IMAGENET_MEAN, IMAGENET_STD)
        )
        return seen.pooler_output.float().cpu()
