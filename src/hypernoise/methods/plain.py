"""The unchanged generator, the baseline of every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.methods.base import Problem, Result, metered


@dataclass(frozen=True)
class Plain:
    """One picture from the given noise."""

    @property
    def name(self) -> str:
        return "plain"

    def settings(self) -> dict[str, Any]:
        return {"method": "plain"}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        with metered(problem) as meter:
            pixels = meter.draw(noise, problem.generator.encode(prompts))
        return Result(pixels, noise, prompts, noise.new_zeros(len(noise)), meter.spent())
