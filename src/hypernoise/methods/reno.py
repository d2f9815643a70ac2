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
from hypernoise.methods.base import BestSoFar, Problem, Result, metered, per_sample
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
        network = self.start.adapter.on(problem.generator) if self.start else None
        with metered(problem) as meter:
            best = BestSoFar(meter, prompts)
            x = noise.detach().clone()
            if network is not None:
                with torch.no_grad():
                    x += network(noise, best.condition).to(noise.dtype)
            optimizer = torch.optim.SGD([x.requires_grad_()], lr=self.lr, momentum=MOMENTUM, nesterov=True)
            for iteration in range(self.iterations):
                last = iteration == self.iterations - 1
                with torch.set_grad_enabled(not last):
                    score = best.offer(x, f" at iteration {iteration}; lower lr" if iteration else "")
                if last:
                    break
                if not score.requires_grad:
                    raise InputError("reno needs a reward with a gradient in the pixels; search and best-of do not")
                gradient = torch.autograd.grad((norm_penalty(x, NORM_WEIGHT) - score).sum(), x)[0]
                norms = gradient.flatten(1).norm(dim=1)
                x.grad = gradient * per_sample((CLIP / (norms + 1e-6)).clamp_max(1), gradient)
                optimizer.step()
        return best.result(l2_kl(best.noise - noise))


def norm_penalty(noise: Tensor, weight: float) -> Tensor:
    """weight · (½‖x‖² − (d − 1) log‖x‖) of each sample [B], minimal at ‖x‖² = d − 1; in fp32 or better.

    That is minus the log-density of ‖x‖ under N(0, I), up to a constant (arXiv 2406.04312).
    """
    half = l2_kl(noise)  # ½‖x‖²
    return weight * (half - 0.5 * (noise[0].numel() - 1) * (2 * half).log())
