"""The paper's method: one call of the noise network, then the generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypernoise.adapters import adapter_folder, digest_of, load_adapter, read_about, read_weights
from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.noise.base import NoiseNetwork, check_strength, kl_of


class Adapter:
    """A noise network, or the directory it was saved in, read on first use. `load` reads the directory."""

    def __init__(
        self, source: NoiseNetwork | str | Path, load: Callable[[Generator, Path], NoiseNetwork] = load_adapter
    ):
        self._load = load
        self._folder = adapter_folder(source) if isinstance(source, str | Path) else None
        self._network = None if isinstance(source, str | Path) else source

    def on(self, generator: Generator) -> NoiseNetwork:
        """Raises InputError for a directory without an adapter of this generator, or a LoRA made on another."""
        network = self._network
        if network is not None and getattr(network, "generator", generator) is generator:
            return network
        if self._folder is None:
            raise InputError(f"this noise network was made on another generator than this {generator.name!r}")
        self._network = self._load(generator, self._folder)
        return self._network

    def digest(self) -> str:
        """SHA-256 of the weights and the settings that scale them."""
        if self._folder is not None:
            settings, state = read_about(self._folder)["settings"], read_weights(self._folder)
        else:
            assert self._network is not None
            settings, state = self._network.settings, self._network.trainable_state()
        return digest_of({"settings": settings}, {name: tensor.float() for name, tensor in state.items()})


class HyperNoise:
    """x + s·f(x, c), then the generator.

    Args:
        network: a trained noise network, or an adapter directory.
        strength: s from 0 to 1.5. Unless it is 1, the KL is ½‖s·f‖², or None if the network has an exact KL.

    Raises:
        InputError: strength out of range.
    """

    def __init__(self, network: NoiseNetwork | str | Path, *, strength: float = 1.0, name: str = "hypernoise"):
        check_strength(strength)
        self.adapter, self.strength, self.name = Adapter(network), strength, name

    def settings(self) -> dict[str, Any]:
        own = {} if self.strength == 1 else {"strength": self.strength}
        return {"method": "hypernoise", "weights": self.adapter.digest(), **own}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.adapter.on(problem.generator)
        with metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            residual = self.strength * network(noise, condition)
            better = noise + residual.to(noise.dtype)
            pixels = meter.draw(better, condition)
        exact = network.knows_kl and self.strength != 1
        kl = None if exact else kl_of(network, noise, condition, residual)
        return Result(pixels, better, prompts, kl, meter.spent())
