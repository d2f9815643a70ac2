"""Methods that only draw: one picture, the best of n, or rounds of a few neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hypernoise.methods.base import BestSoFar, Numbered, Problem, Result, fresh_noise, metered

RADIUS = 0.5  # of a neighbour: 1 would be independent noise, as in best-of-n


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


@dataclass(frozen=True)
class Search(Numbered):
    """Zero-order search (Ma et al. 2025, arXiv 2501.09732): each round scores `neighbours` of the best noise so far.

    A neighbour is √(1 − r²)·x + r·ε, so that from x ~ N(0, I) each is N(0, I) too: the paper's
    sphere around x would grow the norm. The first picture, from the given noise, is also a candidate, and
    rewards need no gradient. 1 + rounds · neighbours pictures in all.
    """

    template = "search-{rounds}x{neighbours}"
    rounds: int = 7
    neighbours: int = 4

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        with metered(problem) as meter:
            best = BestSoFar(meter, prompts)
            best.offer(noise)
            for turn in range(self.rounds):
                pivot = best.noise
                for number in range(self.neighbours):
                    # seeded by the given noise, not the pivot, so that every candidate is a new draw
                    step = fresh_noise(noise, 1 + turn * self.neighbours + number)
                    best.offer(math.sqrt(1 - RADIUS**2) * pivot + RADIUS * step)
        return best.result(None)
