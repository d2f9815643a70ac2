"""A weighted sum of rewards that keeps each member's score, and the table of reward names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import torch
from torch import Tensor

from hypernoise.errors import InputError, unknown
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.pixel import PIXEL_REWARDS

REWARDS: dict[str, RewardFunction | str] = {  # a function, or "module:name" of one that is imported when asked for
    **PIXEL_REWARDS,
    "scenes-match": "hypernoise.scenes.scorers:MATCHER",
}
ENSEMBLES: dict[str, dict[str, float]] = {
    "scenes": {"scenes-match": 20.0},
}


def load_reward(name: str) -> RewardFunction:
    """The reward, or the weighted ensemble, of a name.

    Raises InputError, with the nearest name, for one that is not known.
    """
    if name in ENSEMBLES:
        return WeightedSum(ENSEMBLES[name])
    if name not in REWARDS:
        raise unknown("reward", name, [*ENSEMBLES, *REWARDS])
    reward = REWARDS[name]
    if isinstance(reward, str):
        module, _, attribute = reward.partition(":")
        reward = getattr(import_module(module), attribute)
    return reward


def members_of(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights with every ensemble's name replaced by its members."""
    flat: dict[str, float] = {}
    for name, weight in weights.items():
        for member, share in ENSEMBLES.get(name, {name: 1.0}).items():
            flat[member] = flat.get(member, 0.0) + weight * share
    return flat


class WeightedSum:
    """Σ weight · reward over named members; `last` holds each member's unweighted mean of the last call.

    The name of an ensemble stands for its members.
    """

    def __init__(self, weights: Mapping[str, float], members: Mapping[str, RewardFunction] | None = None):
        if not weights:
            raise InputError("no reward was given; for example rewards: {redness: 1.0}")
        self.weights = members_of(weights)
        self.members = {name: (members or {}).get(name) or load_reward(name) for name in self.weights}
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
