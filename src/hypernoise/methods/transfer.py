"""A noise network trained on one generator driving another (an open question of arXiv 2508.09968)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypernoise.generators.base import Generator
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.methods.hypernoise import Adapter
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.transfer import NoiseMap
from hypernoise.objective import l2_kl


class Transfer:
    """x + Mᵀ f(M x, c), f on the generator it was trained on, M its noise space's map; then this generator.

    Args:
        network: a trained noise network, or an adapter directory.
        source: the generator it was trained on, which evaluates it under its own conditioning.

    For one latent layout M is the identity. Otherwise see `NoiseMap`; noise in tokens is refused.
    """

    def __init__(self, network: NoiseNetwork | str | Path, source: Generator, *, name: str = "transfer"):
        self.adapter, self.source, self.name = Adapter(network), source, name

    def settings(self) -> dict[str, Any]:
        return {"method": "transfer", "weights": self.adapter.digest(), "source": self.source.name}

    def between(self, generator: Generator) -> NoiseMap | None:
        """The map from this generator's noise to the source's; None for one layout. InputError if there is none."""
        here, there = tuple(generator.noise_shape), tuple(self.source.noise_shape)
        return None if here == there else NoiseMap(here, there)

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.adapter.on(self.source)
        between = self.between(problem.generator)
        with metered(problem) as meter:
            condition = self.source.encode(prompts)
            if between is None:
                residual = network(noise, condition)
            else:
                residual = between.adjoint(network(between(noise, seed=problem.seed), condition))
            better = noise + residual.to(noise.dtype)
            pixels = meter.draw(better, problem.generator.encode(prompts))
        return Result(pixels, better, prompts, l2_kl(residual), None, meter.spent())
