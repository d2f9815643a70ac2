"""Gradient search for the noise: ReNO (Eyring et al. 2024, arXiv 2406.04312).

Each iteration draws, scores, and moves the noise along the reward's gradient; the best picture is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.methods.base import BestSoFar, Numbered, Problem, Result, metered, per_sample
from hypernoise.objective import l2_kl

STEP, MOMENTUM, CLIP, NORM_WEIGHT = 5.0, 0.9, 0.1, 0.01  # ExplainableML/ReNO, arguments.py and training/optim.py


@dataclass(frozen=True)
class ReNO(Numbered):
    """Searches the noise by the reward's gradient, each sample separately.

    Args:
        iterations: pictures drawn, one more than gradient steps, as published.
    """

    template = "reno-{iterations}"
    iterations: int = 50

    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        x = noise.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=STEP, momentum=MOMENTUM, nesterov=True)
        with metered(problem) as meter:
            best = BestSoFar(meter, prompts)
            for _ in range(self.iterations - 1):
                score = best.offer(x)
                if not score.requires_grad:
                    raise InputError("reno needs a reward with a gradient in the pixels; search and best-of do not")
                gradient = torch.autograd.grad((norm_penalty(x, NORM_WEIGHT) - score).sum(), x)[0]
                norms = gradient.flatten(1).norm(dim=1)
                x.grad = gradient * per_sample((CLIP / (norms + 1e-6)).clamp_max(1), gradient)
                optimizer.step()
            with torch.no_grad():
                best.offer(x)
        return best.result(l2_kl(best.noise - noise))


def norm_penalty(noise: Tensor, weight: float) -> Tensor:
    """weight · (½‖x‖² − (d − 1) log‖x‖) of each sample [B], minimal at ‖x‖² = d − 1; in fp32 or better.

    That is minus the log-density of ‖x‖ under N(0, I), up to a constant (arXiv 2406.04312).
    """
    half = l2_kl(noise)  # ½‖x‖²
    return weight * (half - 0.5 * (noise[0].numel() - 1) * (2 * half).log())
