"""The paper's method: one call of the noise network, then the generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypernoise.adapters import adapter_folder, load_adapter, read_about, read_weights
from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.noise.base import NoiseNetwork, kl_of
from hypernoise.noise.lora import LoRANoise

Load = Callable[[Generator, Path], NoiseNetwork]


class Adapter:
    """A noise network, or the directory it is saved in, to be put on a generator when it is needed.

    A generator carries one LoRA at a time. One given as a directory comes back by itself after another had its place;
    one given as a network stays removed once it was removed. `load` reads the directory.
    """

    def __init__(self, source: NoiseNetwork | str | Path, load: Load = load_adapter):
        self._load = load
        self._folder = adapter_folder(source) if isinstance(source, str | Path) else None
        self._network = None if isinstance(source, str | Path) else source

    def on(self, generator: Generator) -> NoiseNetwork:
        """Raises InputError for a directory that holds no adapter of this generator."""
        network = self._network
        displaced = isinstance(network, LoRANoise) and not network.is_on(generator)
        if self._folder is not None and (network is None or displaced):
            network = self._network = self._load(generator, self._folder)
        if network is None or (displaced and self._folder is None):
            raise InputError("this noise network was removed from its generator; give its adapter directory instead")
        return network

    def digest(self) -> str:
        """SHA-256 of the weights and of the settings that scale them."""
        if self._folder is not None:
            settings, state = read_about(self._folder)["settings"], read_weights(self._folder)
        else:
            assert self._network is not None
            settings, state = self._network.settings, self._network.trainable_state()
        found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(state.items()):
            found.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


class HyperNoise:
    """x + f(x, c), then the generator.

    Args:
        network: a trained noise network, or an adapter directory.
    """

    def __init__(self, network: NoiseNetwork | str | Path, *, name: str = "hypernoise"):
        self.adapter, self.name = Adapter(network), name

    def settings(self) -> dict[str, Any]:
        return {"method": "hypernoise", "weights": self.adapter.digest()}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.adapter.on(problem.generator)
        with metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            residual = network(noise, condition)
            better = noise + residual.to(noise.dtype)
            pixels = meter.draw(better, condition)
        kl = kl_of(network, noise, condition, residual)
        return Result(pixels, better, prompts, kl, None, meter.spent())
