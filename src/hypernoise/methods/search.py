"""Zero-order search: rounds of a few neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hypernoise.methods.base import BestSoFar, Numbered, Problem, Result, fresh_noise, metered

RADIUS = 0.5  # of a neighbour: 1 would be independent noise, as in best-of-n


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
