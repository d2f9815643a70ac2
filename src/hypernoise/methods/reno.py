"""Gradient search for the noise: ReNO (Eyring et al. 2024, arXiv 2406.04312).

Each iteration draws, scores, and moves the noise along the reward's gradient; the best picture is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.methods.base import Meter, Problem, Result, metered, per_sample
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.objective import l2_kl
from hypernoise.settings import whole

STEP, MOMENTUM, CLIP, NORM_WEIGHT = 5.0, 0.9, 0.1, 0.01  # ExplainableML/ReNO, arguments.py and training/optim.py


@dataclass(frozen=True, eq=False)
class ReNO:
    """Searches the noise by the reward's gradient, each sample separately.

    Args:
        iterations: pictures drawn, one more than gradient steps, as published.
        lr: step size of the optimiser, SGD with Nesterov momentum.
        start: a hypernoise method that provides the initial noise.
    """

    iterations: int = 50
    lr: float = STEP
    start: HyperNoise | None = None

    def __post_init__(self) -> None:
        whole(self, "iterations")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr must be a positive number, not {self.lr}")

    @property
    def name(self) -> str:
        start = f"{self.start.name}-" if self.start else ""
        return f"{start}reno-{self.iterations}" + (f"-lr{self.lr:g}" if self.lr != STEP else "")

    def settings(self) -> dict[str, Any]:
        start = self.start.settings() if self.start else None
        return {"method": "reno", "iterations": self.iterations, "lr": self.lr, "start": start}

    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network, begin = self.start.adapter.on(problem.generator) if self.start else None, noise
        with metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            if network is not None:
                with torch.no_grad():
                    begin = noise + network(noise, condition).to(noise.dtype)
            pixels, best, scores = self._climb(meter, prompts, condition, begin)
        return Result(pixels, best, prompts, l2_kl(best - noise), scores, meter.spent())

    def _climb(
        self, meter: Meter, prompts: list[str], condition: Condition, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pixels [B, 3, H, W], their noise, and the score of every iteration [B, iterations]."""
        x = noise.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=self.lr, momentum=MOMENTUM, nesterov=True)
        found: tuple[Tensor, Tensor, Tensor] | None = None  # best pixels, their noise, their score
        scores = []
        for iteration in range(self.iterations):
            last = iteration == self.iterations - 1
            with torch.set_grad_enabled(not last):
                pixels = meter.draw(x, condition)
                hint = f" at iteration {iteration}; lower lr" if iteration else ""
                score = meter.score(pixels, prompts, hint)
            if not last and not score.requires_grad:
                raise InputError("reno needs a reward with a gradient in the pixels; search and best-of do not")
            seen = pixels.detach(), x.detach().clone(), score.detach()
            scores.append(seen[2])
            if found is None:
                found = seen
            better = seen[2] > found[2]
            found = tuple(torch.where(per_sample(better, new), new, old) for new, old in zip(seen, found, strict=True))  # type: ignore[assignment]
            if last:
                break
            gradient = torch.autograd.grad((norm_penalty(x, NORM_WEIGHT) - score).sum(), x)[0]
            norms = gradient.flatten(1).norm(dim=1)
            x.grad = gradient * per_sample((CLIP / (norms + 1e-6)).clamp_max(1), gradient)
            optimizer.step()
        assert found is not None
        return found[0], found[1], torch.stack(scores, 1)


def norm_penalty(noise: Tensor, weight: float) -> Tensor:
    """weight · (½‖x‖² − (d − 1) log‖x‖) of each sample [B], minimal at ‖x‖² = d − 1; in fp32 or better.

    That is minus the log-density of ‖x‖ under N(0, I), up to a constant (arXiv 2406.04312).
    """
    wide = noise if noise.dtype == torch.float64 else noise.float()
    square = wide.flatten(1).square().sum(1)
    return weight * (0.5 * square - 0.5 * (noise[0].numel() - 1) * square.log())
