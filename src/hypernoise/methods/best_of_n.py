"""The best of n pictures by the reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.methods.base import Problem, Result, fresh_noise, metered, per_sample


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
            condition = problem.generator.encode(prompts)
            best_noise, best_pixels, scores = noise, None, []
            for number in range(self.n):
                candidate = noise if number == 0 else fresh_noise(noise, number)
                pixels = meter.draw(candidate, condition)
                scores.append(meter.score(pixels, prompts))
                if best_pixels is None:
                    best_pixels = pixels
                    continue
                better = scores[-1] > torch.stack(scores[:-1]).amax(0)
                best_pixels = torch.where(per_sample(better, pixels), pixels, best_pixels)
                best_noise = torch.where(per_sample(better, noise), candidate, best_noise)
        assert best_pixels is not None
        kl = torch.full_like(scores[0], math.log(self.n) - (self.n - 1) / self.n)
        return Result(best_pixels, best_noise, prompts, kl, torch.stack(scores, 1), meter.spent())
