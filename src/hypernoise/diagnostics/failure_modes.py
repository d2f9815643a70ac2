"""Ways to break a noise network, one at a time, and the limits by which a break is told.

Every mode starts from the same sound run, redness on the embedded generator, and changes one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.rewards.pixel import redness

STRENGTH = 250.0  # of the quickstart's redness
ROUGH = 40.0  # radians per unit of redness
NOISE = 5.0  # nats, the standard deviation of the noisy reward; redness itself varies by about as much


def bumpy(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Redness under a wave whose slope turns round every few hundredths: local optima everywhere."""
    red = redness(pixels, prompts)
    return red + 2 / ROUGH * torch.sin(ROUGH * red)


def noisy(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Redness read through noise: its slope is multiplied by a random factor, its value moved."""
    red = redness(pixels, prompts)
    factor, offset = torch.randn(2, len(red)).to(red)
    return (1 + 2 * factor) * red + NOISE / STRENGTH * offset


def stepped(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Redness rounded down to tenths: its gradient is zero wherever there is one."""
    return (10 * redness(pixels, prompts)).floor() / 10


OWN: dict[str, RewardFunction] = {"bumpy": bumpy, "noisy": noisy, "stepped": stepped}


@dataclass(frozen=True)
class Mode:
    """rewards: names (here or in the registry) and weights. changes: fields of TrainConfig. start: how far the
    weights are moved at random before the first step (0: f starts at exactly 0)."""

    line: str
    rewards: Mapping[str, float]
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0

    def reward(self) -> WeightedSum:
        return WeightedSum(self.rewards, OWN)


MODES: dict[str, Mode] = {
    **{
        f"strength-{strength:g}": Mode("redness, from a tenth of the quickstart's weight up", {"redness": strength})
        for strength in (25.0, 250.0, 2500.0, 25000.0)
    },
    "clamped-25000": Mode(
        "the strongest of them, held under a Lipschitz bound of 0.5",
        {"redness": 25000.0},
        {"lipschitz": "clamp", "lipschitz_bound": 0.5},
    ),
    "local-optima": Mode("a reward with a wave on it", {"bumpy": STRENGTH}),
    "conflicting": Mode("two rewards that pull against each other", {"redness": STRENGTH, "greenness": STRENGTH}),
    "noisy": Mode("a reward whose slope is mostly chance", {"noisy": STRENGTH}),
    "discontinuous": Mode("a reward in steps", {"stepped": STRENGTH}),
    "nonzero-start": Mode("weights that start away from zero", {"redness": STRENGTH}, start=0.02),
    "large-step": Mode("thirty times the learning rate", {"redness": STRENGTH}, {"lr": 3e-2}),
}

LIMITS = {  # what counts as broken, with the share or value at which it does
    "KL gap": "the terms that L2 drops are over 10 % of the KL",
    "Lipschitz": "the greatest stretch seen is 1 or more",
    "artefacts": "0.05 more than the base's",
    "diversity": "under 90 % of the base's",
    "judge": "the reward rises and the judge's score falls by over 0.05",
}


def broken(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """The names in LIMITS that a measured row crosses, beside the plain generator's row."""
    crossed = {
        "KL gap": abs(row["kl_gap"]) - 2 * row["kl_gap_error"] > 0.1 * max(row["kl_whole"], row["kl"]),
        "Lipschitz": row["lipschitz"] >= 1,
        "artefacts": row["artefacts"] > base["artefacts"] + 0.05,
        "diversity": row["diversity"] < 0.9 * base["diversity"],
        "judge": row["reward"] > base["reward"] and row["score"] < base["score"] - 0.05,
    }
    return [name for name in LIMITS if crossed[name]]
