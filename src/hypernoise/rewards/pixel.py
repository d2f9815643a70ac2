"""Rewards computed from pixels only: no model, no download, differentiable by construction."""

from __future__ import annotations

import torch
from torch import Tensor

from hypernoise.rewards.base import Reward, check_pairs


class PixelReward(Reward):
    """Mean of the pixels' channels (red, green, blue), weighted; the prompts are ignored and may be empty."""

    def __init__(self, name: str, *weights: float):
        self.name, self.weights = name, weights

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1]."""
        check_pairs(pixels, prompts, read=False)
        weights = torch.tensor(self.weights, dtype=pixels.dtype, device=pixels.device)
        return torch.einsum("bchw,c->bhw", pixels, weights).flatten(1).mean(1)


redness = PixelReward("redness", 1.0, -0.5, -0.5)  # in [-1, 1]; arXiv 2508.09968, the paper's first experiment
greenness = PixelReward("greenness", -0.5, 1.0, -0.5)
blueness = PixelReward("blueness", -0.5, -0.5, 1.0)
brightness = PixelReward("brightness", 1 / 3, 1 / 3, 1 / 3)  # in [0, 1]

PIXEL_REWARDS = {reward.name: reward for reward in (redness, greenness, blueness, brightness)}
