"""Rewards computed from pixels only: no model, no download, differentiable by construction.

Each takes pixels [B, 3, H, W] in [0, 1] and the prompts, which it ignores, and returns scores [B].
"""

from __future__ import annotations

from functools import wraps

import torch
from torch import Tensor

from hypernoise.rewards.base import RewardFunction, check_pairs


def checked(reward: RewardFunction) -> RewardFunction:
    """A pixel-only reward that checks its input; prompts may be empty."""

    @wraps(reward)
    def of_pictures(pixels: Tensor, prompts: list[str]) -> Tensor:
        check_pairs(pixels, prompts, read=False)
        return reward(pixels, prompts)

    return of_pictures


@checked
def redness(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Mean of R − (G + B)/2, in [-1, 1] (arXiv 2508.09968, the paper's first experiment)."""
    return _over_the_others(pixels, 0)


@checked
def greenness(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Mean of G − (R + B)/2, in [-1, 1]."""
    return _over_the_others(pixels, 1)


@checked
def blueness(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Mean of B − (R + G)/2, in [-1, 1]."""
    return _over_the_others(pixels, 2)


@checked
def brightness(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Mean of the pixels, in [0, 1]."""
    return pixels.flatten(1).mean(1)


def _over_the_others(pixels: Tensor, channel: int) -> Tensor:
    weights = torch.full((3,), -0.5, dtype=pixels.dtype, device=pixels.device)
    weights[channel] = 1.0
    return torch.einsum("bchw,c->bhw", pixels, weights).flatten(1).mean(1)


PIXEL_REWARDS = {function.__name__: function for function in (redness, greenness, blueness, brightness)}
