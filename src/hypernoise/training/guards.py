"""Guards that end a run or skip a step: non-finite rewards and gradients, a blow-up, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.check import gradient_of
from hypernoise.rewards.ensemble import each_of
from hypernoise.training.config import TrainConfig

NAMED = 3  # faults that a message names
SKIP_LIMIT, WINDOW = 5, 100  # steps that may be skipped, within the last 100
FEWEST = 64  # minimum dimensions to count: with few, the true optimum may be many standard deviations away
SURE = 3.0  # standard errors
NOT_THE_REWARDS = "the generator or the noise network returned NaN or inf; the rewards are finite"
READ = ("step", "reward", "validation_reward")


@dataclass(frozen=True)
class Round:
    """Results of one accumulation step on noise [B, ...]: detached pixels [B, 3, H, W], and their rewards [B].

    means: the loss and all other logged means, by column.
    """

    prompts: list[str]
    noise: Tensor
    condition: Condition
    pixels: Tensor
    rewards: Tensor
    means: dict[str, Tensor]


def check_skipped(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError, naming the latest faults, if more than 5 of the last hundred steps were skipped."""
    faults = [row["faults"] for row in islice(reversed(rows), WINDOW) if "faults" in row]
    if len(faults) > SKIP_LIMIT:
        raise InputError(
            f"{len(faults)} of the last {min(len(rows), WINDOW)} steps were skipped, more than {SKIP_LIMIT}; at step "
            f"{rows[-1]['step']}: {shortened(faults[0])}; lower learning_rate or the rewards' weights"
        )


def shortened(faults: list[str]) -> str:
    """The first faults in one line."""
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(faults[:NAMED]) + more


class BlowUp:
    """Ends a run whose f has left the noises that the generator was trained on, or whose pictures are clipped.

    The share of clipped pixel values at the first step, with the untrained network, is the reference; a checkpoint
    keeps it.
    """

    def __init__(self, config: TrainConfig, dimensions: int):
        self.config, self.dimensions = config, dimensions
        self.first_clipped: float | None = None

    def check(self, step: int, row: Mapping[str, float]) -> None:
        """Raises InputError with advice, from a step's mean `kl` and share of `clipped` values."""
        if self.first_clipped is None:
            self.first_clipped = row["clipped"]
        config, risen, counted = self.config, row["clipped"] - self.first_clipped, max(self.dimensions, FEWEST)
        advice = "raise kl_weight, or lower learning_rate or the rewards' weights"
        if config.kl_limit and row["kl"] > config.kl_limit * counted:
            name = "the KL" if config.kl_term == "exact" else "½‖f‖²"
            raise InputError(
                f"blown up at step {step}: {name} is {row['kl']:.4g} nats, over kl_limit {config.kl_limit:g} x "
                f"{counted} dimensions (at least {FEWEST}); the noise itself has {self.dimensions / 2:g}; {advice}"
            )
        if config.clipping_limit and risen > config.clipping_limit:
            raise InputError(
                f"blown up at step {step}: the share of clipped pixel values has risen by {risen:.2f}, over "
                f"clipping_limit {config.clipping_limit:g}; {advice}, or add a reward that keeps pictures natural"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"first_clipped": self.first_clipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_clipped = state_dict["first_clipped"]


def readings(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The step and both rewards of the rows that have a validation reward."""
    return [{name: row[name] for name in READ} for row in rows if all(name in row for name in READ)]


def fallen_since(seen: Sequence[Mapping[str, float]], patience: int) -> int | None:
    """The step since which the validation reward has fallen while the trained one has not; None if it has not.

    An over-optimised reward keeps rising while one that was not trained on falls. Compares the last `patience` readings
    with the earlier `patience` readings in a row with the best validation reward: it has fallen if it is now lower by
    more than 3 standard errors and the trained reward is at least as high.
    """
    if not 0 < 2 * patience <= len(seen):
        return None
    rewards = np.array([(reading["reward"], reading["validation_reward"]) for reading in seen])
    stretches = np.lib.stride_tricks.sliding_window_view(rewards, patience, axis=0)  # [stretches, 2, patience]
    trained, validation = stretches.mean(2).T
    best = int(validation[:-patience].argmax())
    error = math.sqrt(stretches[[best, -1], 1].var(1, ddof=1).sum() / patience)
    fallen = validation[best] - validation[-1] > SURE * error and trained[-1] >= trained[best]
    return int(seen[best + patience // 2]["step"]) if fallen else None


def faults_of(reward: RewardFunction, rounds: list[Round]) -> list[str]:
    """Which rewards or reward gradients are not finite, and for which prompts of this process.

    Scores the pictures again with each member of the reward, with a gradient.
    """
    seen: list[tuple[str, str, float]] = []  # what, the prompt, the value
    for part in rounds:
        seen += [("the reward", *own) for own in zip(part.prompts, part.rewards.tolist(), strict=True)]
        for name, member in each_of(reward).items():
            pixels = part.pixels.detach().clone().requires_grad_()
            with torch.enable_grad():
                scores = member(pixels, part.prompts)
                slopes = gradient_of(scores.sum(), pixels).flatten(1).sum(1)
            for prompt, score, slope in zip(part.prompts, scores.tolist(), slopes.tolist(), strict=True):
                finite = math.isfinite(score)
                seen.append((f"the gradient of {name}", prompt, slope) if finite else (name, prompt, score))
    faults = [f"{what} is {value} for {prompt!r}" for what, prompt, value in seen if not math.isfinite(value)]
    return list(dict.fromkeys(faults))
