"""A weighted sum of rewards that keeps each member's score, and the table of reward names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hypernoise.errors import InputError, unknown
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.pixel import PIXEL_REWARDS

REWARDS: dict[str, RewardFunction] = {**PIXEL_REWARDS}


def load_reward(name: str) -> RewardFunction:
    """The reward of a name. Raises InputError, with the nearest name, for one that is not known."""
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS)
    return REWARDS[name]


class WeightedSum:
    """Σ weight · reward over named members; `last` holds each member's unweighted mean of the last call."""

    def __init__(self, weights: Mapping[str, float], members: Mapping[str, RewardFunction] | None = None):
        if not weights:
            raise InputError("no reward was given; for example rewards: {redness: 1.0}")
        self.weights = dict(weights)
        self.members = {name: (members or {}).get(name) or load_reward(name) for name in weights}
        self.name = "+".join(weights)
        self.last: dict[str, Tensor] = {}

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1]."""
        scores = {name: member(pixels, prompts) for name, member in self.members.items()}
        for name, score in scores.items():
            if score.shape != (len(pixels),):
                raise InputError(f"reward {name!r} gave shape {list(score.shape)}; it must give one score per picture")
        self.last = {name: score.detach().mean() for name, score in scores.items()}
        return torch.stack([self.weights[name] * score for name, score in scores.items()]).sum(0)
