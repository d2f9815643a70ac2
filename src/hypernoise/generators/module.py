"""Any torch module that maps noise to images (a GAN, a decoder, a function under study) as a generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from hypernoise.generators.base import Condition


class ModuleGenerator:
    """An unconditional module as a frozen generator.

    Args:
        module: maps noise [B, *noise_shape] to an output; gets requires_grad=False and eval mode.
        noise_shape: of one sample.
        to_pixels: maps the output to pixels [B, 3, H, W] in [0, 1]; the identity if None.

    Prompts are accepted and ignored: `encode` keeps only how many there are.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        noise_shape: tuple[int, ...],
        to_pixels: Callable[[Tensor], Tensor] | None = None,
        name: str = "module",
    ):
        self.module = module.requires_grad_(False).eval()
        self.noise_shape = noise_shape
        self.to_pixels = to_pixels or (lambda output: output)
        self.name = name

    @property
    def device(self) -> torch.device:
        tensor = next(chain(self.module.parameters(), self.module.buffers()), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    def encode(self, prompts: list[str]) -> Condition:
        return Condition({"index": torch.arange(len(prompts), device=self.device)})

    def sample(
        self, noise: Tensor, condition: Condition, *, steps: int = 1, seed: int | Sequence[int] | None = None
    ) -> Tensor:
        return self.to_pixels(self.module(noise))
