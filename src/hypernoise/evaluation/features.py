"""Feature vectors of pictures, from DINOv2 or plain pixels, and the diversity and distance of sets of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Model

from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalise
from hypernoise.rewards.weights import pretrained

SIDE = 224  # px, DINOv2's input
SMALL = 16  # px, for plain pixels as features

Features = Callable[[Tensor], Tensor]
"""From pixels [B, 3, H, W] in [0, 1] to vectors [B, D]."""


def load(source: str, device: torch.device | str) -> Features:
    """ "pixels", or the DINOv2 of a Hub repository (from the local cache or downloaded) or a folder.

    Raises InputError for weights that are missing or do not fit.
    """
    return pixels if source == "pixels" else Dino(pretrained(Dinov2Model, source, f"features {source}").to(device))


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


def pairwise_similarity(features: np.ndarray) -> float:
    """Mean cosine over all pairs of different vectors [N, D], N at least 2; 1 if all are alike."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return _between(unit @ unit.T)


def kernel_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The squared MMD of vectors [N, D] and [M, D] with the kernel (x·y / D + 1)³, unbiased: about 0 for sets from one
    distribution.

    In Inception's features this is KID (Bińkowski et al. 2018, arXiv 1801.01401), which averages over subsets.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = _between(kernel(ours, ours)) + _between(kernel(theirs, theirs))
    return float(within - 2 * kernel(ours, theirs).mean())


def _between(values: np.ndarray) -> float:
    """The mean over pairs of different rows and columns."""
    count = len(values)
    return float((values.sum() - np.trace(values)) / (count * (count - 1)))
