"""Steps that go wrong: which reward and which prompts are at fault, and when a run must end because of them."""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hypernoise.errors import InputError, first_line
from hypernoise.generators.base import Condition
from hypernoise.rewards import base
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import TrainConfig

NAMED = 3  # faults that a message names
WINDOW = 100  # steps out of which the skipped are counted
FEWEST = 64  # dimensions that a noise counts as at least: with few, an honest optimum may lie many deviations away


@dataclass(frozen=True)
class Round:
    """What one round of a step drew from noise [B, ...]: pixels [B, 3, H, W] without a graph, and their rewards [B].

    means: of the loss and all that is told of the round, by the name of its column.
    """

    prompts: list[str]
    noise: Tensor
    condition: Condition
    pixels: Tensor
    rewards: Tensor
    means: dict[str, Tensor]


class Skipped:
    """How many steps were skipped, and when it is too many."""

    def __init__(self, limit: int):
        self.limit, self.count = limit, 0
        self.recent: deque[bool] = deque(maxlen=WINDOW)

    def note(self, skipped: bool, step: int, faults: list[str]) -> None:
        """Raises InputError once more than `limit` of the last hundred steps were skipped; it names the faults."""
        self.recent.append(skipped)
        self.count += skipped
        if sum(self.recent) > self.limit:
            raise InputError(
                f"{sum(self.recent)} of the last {len(self.recent)} steps were skipped, over skip_limit "
                f"{self.limit}; at step {step}: {told(faults)}; lower lr or the rewards' weights"
            )


def told(faults: list[str]) -> str:
    """The first faults in a line."""
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(faults[:NAMED]) + more


def faults_of(reward: RewardFunction, rounds: list[Round]) -> list[str]:
    """Which rewards, and their gradients, are not finite for which prompts of this process's rounds.

    Rewards are asked again, one member at a time, with their gradient in the pixels.
    """
    return list(dict.fromkeys(fault for seen in rounds for fault in _faulty(reward, seen)))


NOT_THE_REWARDS = "the rewards are finite: the generator or the noise network gives what is not"


def _faulty(reward: RewardFunction, seen: Round) -> Iterator[str]:
    for prompt, score in zip(seen.prompts, seen.rewards.tolist(), strict=True):
        if not math.isfinite(score):
            yield f"the reward is {score} for {prompt!r}"
    for name, member in _members(reward).items():
        pixels = seen.pixels.detach().clone().requires_grad_()
        with torch.enable_grad():
            scores = member(pixels, seen.prompts)
            (gradient,) = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)
        slopes = torch.zeros(len(scores)) if gradient is None else gradient.flatten(1).sum(1)
        for prompt, score, slope in zip(seen.prompts, scores.tolist(), slopes.tolist(), strict=True):
            for what, value in (("", score), ("the gradient of ", slope)):
                if not math.isfinite(value):
                    yield f"{what}{name} is {value} for {prompt!r}"
                    break


def scored(reward: RewardFunction, pixels: Tensor, prompts: list[str], step: int, called: str = "the reward") -> Tensor:
    """The rewards [B]. What a reward raises comes as an InputError that names the reward and the prompt."""
    try:
        return base.scored(reward, pixels, prompts, called)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a user's own function may raise
        name, prompt, cause = _culprit(reward, pixels.detach(), prompts) or (called, None, error)
        *_, place = traceback.extract_tb(cause.__traceback__)
        whose = f"for {prompt!r}" if prompt is not None else f"for its batch, which begins with {prompts[0]!r}"
        raise InputError(
            f"{name} raised {type(cause).__name__} at step {step} {whose}: {first_line(cause)} "
            f"({Path(place.filename).name}, line {place.lineno})"
        ) from error


def _culprit(reward: RewardFunction, pixels: Tensor, prompts: list[str]) -> tuple[str, str, Exception] | None:
    """The first member and prompt that raise on their own."""
    for name, member in _members(reward).items():
        for number, prompt in enumerate(prompts):
            try:
                member(pixels[number : number + 1], [prompt])
            except Exception as error:
                return name, prompt, error
    return None


def _members(reward: RewardFunction) -> dict[str, RewardFunction]:
    if isinstance(reward, WeightedSum):
        return {f"reward {name!r}": member for name, member in reward.members.items()}
    return {"the reward": reward}


def saturation(pixels: Tensor) -> Tensor:
    """The share of values that are exactly 0 or 1, where clamping has cut the gradient."""
    return ((pixels <= 0) | (pixels >= 1)).float().mean()


def check_blow_up(config: TrainConfig, step: int, kl: float, dimensions: int, risen: float) -> None:
    """Raises InputError with advice when f has left the noises that the generator knows, or the pictures are clipped.

    kl: mean ½‖f‖² of a step; risen: its share of saturated values beyond the untrained network's.
    """
    advice = "raise kl_weight, or lower lr or the rewards' weights"
    if config.kl_limit and kl > config.kl_limit * max(dimensions, FEWEST):
        few = ", as all noises of fewer count" if dimensions < FEWEST else ""
        name = "the KL" if config.kl_term == "exact" else "½‖f‖²"
        raise InputError(
            f"blown up at step {step}: {name} is {kl:.4g} nats, over kl_limit {config.kl_limit:g} x "
            f"{max(dimensions, FEWEST)} dimensions{few} (a noise itself has {dimensions / 2:g}); {advice}"
        )
    if config.saturation_limit and risen > config.saturation_limit:
        raise InputError(
            f"blown up at step {step}: the share of clipped pixel values has risen by {risen:.2f}, over "
            f"saturation_limit {config.saturation_limit:g}; {advice}, or add a reward that keeps the pictures natural"
        )
