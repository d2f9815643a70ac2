"""Any torch module that maps noise to images (a GAN, a decoder, a function under study) as a generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition, Seed
from hypernoise.generators.identity import identify_module


class ModuleGenerator:
    """A module as a frozen generator.

    Args:
        module: maps noise [B, *noise_shape], and a condition if there is `embed`, to an output; gets
            requires_grad=False and eval mode.
        noise_shape: of one sample; of any number of dimensions.
        to_pixels: maps the output to pixels [B, 3, H, W] in [0, 1]; the identity if None.
        embed: what the module's second argument is for a list of prompts: class labels [B], embeddings [B, ...].
            None: the module takes noise alone, and prompts are only counted.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        noise_shape: tuple[int, ...],
        to_pixels: Callable[[Tensor], Tensor] | None = None,
        embed: Callable[[list[str]], Tensor] | None = None,
        name: str = "module",
    ):
        self.module = module.requires_grad_(False).eval()
        if not isinstance(noise_shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in noise_shape):
            raise InputError(f"noise_shape is of one sample, such as (8,) or (4, 8, 8), not {noise_shape!r}")
        self.noise_shape = tuple(noise_shape)
        self.to_pixels = to_pixels or (lambda output: output)
        self.embed = embed
        self.name = name

    @property
    def device(self) -> torch.device:
        tensor = next(chain(self.module.parameters(), self.module.buffers()), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    def encode(self, prompts: list[str]) -> Condition:
        if self.embed is None:
            return Condition({"index": torch.arange(len(prompts), device=self.device)})
        with torch.no_grad():
            embedded = self.embed(list(prompts))
        if not isinstance(embedded, Tensor) or len(embedded) != len(prompts):
            raise InputError(f"embed must give a tensor with a row for each of {len(prompts)} prompts")
        return Condition({"embedding": embedded.to(self.device)})

    def encode_ahead(self, prompts: list[str]) -> None:
        pass  # there are no text encoders to let go

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        if self.embed is None:
            return self.to_pixels(self.module(noise))
        return self.to_pixels(self.module(noise, condition.tensors["embedding"]))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "noise_shape": list(self.noise_shape), **identify_module(self.module)}
