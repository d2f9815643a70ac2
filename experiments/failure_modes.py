"""Ways to break a noise network, one at a time, and the limits that define a break.

Every mode changes one thing in the same sound run, a recipe that trains for redness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import Lipschitz

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # times the recipe's weight
HELD = 10.0  # the strength of the runs with a limited Lipschitz constant, and of a free one
ROUGH = 40.0  # radians per unit of redness
SPREAD = 0.02  # the standard deviation of the noisy reward; redness itself varies by about as much


def bumpy(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Redness plus a wave whose slope changes sign every few hundredths: local optima everywhere."""
    red = redness(pixels, prompts)
    return red + 2 / ROUGH * torch.sin(ROUGH * red)


def noisy(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Noisy redness: its gradient is multiplied by a random factor, its value shifted."""
    red = redness(pixels, prompts)
    factor, offset = torch.randn(2, len(red)).to(red)
    return (1 + 2 * factor) * red + SPREAD * offset


def stepped(pixels: Tensor, prompts: list[str]) -> Tensor:
    """Redness rounded down to tenths: its gradient is zero wherever it exists."""
    return (10 * redness(pixels, prompts)).floor() / 10


OWN: dict[str, RewardFunction] = {"bumpy": bumpy, "noisy": noisy, "stepped": stepped}


@dataclass(frozen=True)
class Mode:
    """rewards: names (here or in the registry) and weights. changes: fields of TrainConfig. start: how far the weights
    are moved at random before the first step (0: f starts at exactly 0)."""

    line: str
    rewards: Mapping[str, float]
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0

    def reward(self) -> WeightedSum:
        return WeightedSum(self.rewards, OWN)


def strength_mode(strength: float) -> str:
    return f"strength-x{strength:g}"


def modes(weight: float, lr: float) -> dict[str, Mode]:
    """The modes, for a recipe with this weight of redness and this learning rate."""
    red = {"redness": weight}
    strong = {"redness": HELD * weight}
    sweep = {
        strength_mode(strength): Mode(f"{strength:g} times the recipe's weight", {"redness": strength * weight})
        for strength in STRENGTHS
    }
    return {
        **sweep,
        f"clamped-x{HELD:g}": Mode(
            "a strong one, clamped under a Lipschitz bound of 0.5", strong, {"lipschitz": Lipschitz("clamp", 0.5)}
        ),
        f"penalised-x{HELD:g}": Mode(
            "as strong, penalised beyond a Lipschitz bound of 0.5", strong, {"lipschitz": Lipschitz("penalty", 0.5)}
        ),
        "local-optima": Mode("a reward with a wave on it", {"bumpy": weight}),
        "conflicting": Mode("two rewards that pull against each other", {"redness": weight, "greenness": weight}),
        "noisy": Mode("a reward whose slope is mostly chance", {"noisy": weight}),
        "discontinuous": Mode("a reward in steps", {"stepped": weight}),
        "nonzero-start": Mode("weights that start away from zero", red, start=0.02),
        "large-step": Mode("thirty times the learning rate", red, {"learning_rate": 30 * lr}),
    }


@dataclass(frozen=True)
class Limit:
    """Crossed where value(row, base) is at least `least` and more than two of its standard errors from 0."""

    line: str
    least: float
    value: Callable[[Mapping[str, Any], Mapping[str, Any]], float]
    error: Callable[[Mapping[str, Any]], float] = lambda row: 0.0


def _share_of_kl(row: Mapping[str, Any], nats: float) -> float:
    return abs(nats) / max(row["kl_whole"], row["kl"], 1e-30)


def _fall(row: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    return base["score"] - row["score"] if row["reward"] > base["reward"] else 0.0


LIMITS: dict[str, Limit] = {
    "KL gap": Limit(
        "the terms that the L2 term leaves out are 10 % of the KL or more",
        0.1,
        lambda row, base: _share_of_kl(row, row["kl_gap"]),
        lambda row: _share_of_kl(row, row["kl_gap_error"]),
    ),
    "Lipschitz": Limit("the greatest stretch seen is 1 or more", 1.0, lambda row, base: row["lipschitz"]),
    "artefacts": Limit(
        "the judge's share of unexplained pixels is 0.05 above the plain generator's, or more",
        0.05,
        lambda row, base: row["artefacts"] - base["artefacts"],
        lambda row: row["artefacts_error"],
    ),
    "diversity": Limit(
        "pictures of one prompt differ by 90 % of the plain generator's, or less",
        0.1,
        lambda row, base: 1 - row["diversity"] / base["diversity"],
    ),
    "judge": Limit(
        "the reward rises, and the judge's score falls by 0.05 or more", 0.05, _fall, lambda row: row["score_error"]
    ),
}


def broken(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """The limits that a measured row crosses, relative to the plain generator's row, with their values."""
    values = {name: limit.value(row, base) for name, limit in LIMITS.items()}
    return {
        name: value
        for name, value in values.items()
        if value >= LIMITS[name].least and value > 2 * LIMITS[name].error(row)
    }


def first_broken(looks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A mode's first look that crosses a limit."""
    return next((look for look in looks if look["broken"]), None)


def weakest_that_break(looks_of: Mapping[float, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """For each limit the lowest strength at which any look crosses it; limits that none crosses are omitted.

    `looks_of`: each strength's looks.
    """
    found: dict[str, float] = {}
    for strength in sorted(looks_of):
        for name in (name for look in looks_of[strength] for name in look["broken"]):
            found.setdefault(name, strength)
    return found
