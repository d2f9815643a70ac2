"""The best of n pictures by the reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.methods.base import BestSoFar, Problem, Result, fresh_noise, metered


@dataclass(frozen=True)
class BestOfN:
    """Draws n pictures of each prompt, the first from the given noise, and keeps the one of highest reward.

    Its KL is log n − (n − 1)/n nats, exact where no two pictures score the same (Beirami et al. 2024,
    arXiv 2401.01879; with ties it is an upper bound).
    """

    n: int = 8

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"best-of-n takes n of at least 1, not {self.n}")

    @property
    def name(self) -> str:
        return f"best-of-{self.n}"

    def settings(self) -> dict[str, Any]:
        return {"method": "best-of", "n": self.n}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        with metered(problem) as meter:
            best = BestSoFar(meter, prompts, noise)
            for number in range(1, self.n):
                best.offer(fresh_noise(noise, number))
        kl = torch.full_like(best.score, math.log(self.n) - (self.n - 1) / self.n)
        return Result(best.pixels, best.noise, prompts, kl, torch.stack(best.scores, 1), meter.spent())
