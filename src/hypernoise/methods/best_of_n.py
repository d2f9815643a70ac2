"""Methods that draw independent pictures: one, or the best of n."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hypernoise.methods.base import BestSoFar, Numbered, Problem, Result, fresh_noise, metered


@dataclass(frozen=True)
class Plain(Numbered):
    """One picture from the given noise, the baseline of every other method."""

    template = "plain"

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        with metered(problem) as meter:
            pixels = meter.draw(noise, problem.generator.encode(prompts))
        return Result(pixels, noise, prompts, noise.new_zeros(len(noise)), meter.spent())


@dataclass(frozen=True)
class BestOfN(Numbered):
    """Draws n pictures of each prompt, the first from the given noise, and keeps the one with the highest reward.

    Its KL is log n − (n − 1)/n nats, exact if no two pictures have equal scores (Beirami et al. 2024,
    arXiv 2401.01879; with ties it is an upper bound).
    """

    template = "best-of-{n}"
    n: int = 8

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        with metered(problem) as meter:
            best = BestSoFar(meter, prompts)
            best.offer(noise)
            for number in range(1, self.n):
                best.offer(fresh_noise(noise, number))
        return best.result(torch.full((len(noise),), math.log(self.n) - (self.n - 1) / self.n))
