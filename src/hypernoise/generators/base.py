"""The interface of a generator g: noise and a condition in, pixels out; differentiable and frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hypernoise.errors import InputError, check_is, shown
from hypernoise.settings import MOST

Seed = int | Sequence[int] | None  # one for the batch, or one per sample


@dataclass(frozen=True)
class Condition:
    """What a generator is conditioned on, one row per sample in every tensor; supports indexing and `to`."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})


@runtime_checkable
class Generator(Protocol):
    """A frozen generator; every parameter has requires_grad=False. One of your own is a subclass."""

    name: str
    noise_shape: tuple[int, ...]  # of one sample, as the model takes it

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in."""
        return torch.float32

    def encode(self, prompts: list[str]) -> Condition:
        """The condition of each prompt, without gradient. Raises InputError for a prompt that would be truncated."""
        ...

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] from noise [B, *noise_shape] ~ N(0, I), differentiable in the noise.

        `seed` fixes the noise that a stochastic scheduler adds between steps: one for the batch, or one per sample.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What an adapter records of its base, as JSON values: `name`, `noise_shape`, and what identifies it."""
        return {"name": self.name, "noise_shape": list(self.noise_shape)}

    def call_settings(self) -> dict[str, Any]:
        """What an adapter records of how the base was called in training, as JSON values."""
        return {}

    def encoding(self) -> AbstractContextManager[Any]:
        """A block for several calls of `encode`, inside which what they need stays on the device."""
        return nullcontext()


def check_generator(generator: Any) -> None:
    """Raises InputError unless it is a `Generator`."""
    made = "what load_generator or ModuleGenerator makes, or a subclass of hypernoise.generators.base.Generator"
    check_is(generator, Generator, "the generator", made)


def check_texts(prompts: Any, name: str = "prompts") -> None:
    """Raises InputError unless it is a list of texts."""
    if isinstance(prompts, str):
        raise InputError(f"{name} is a single text; put it in a list: [{prompts!r}]")
    if not isinstance(prompts, Sequence):
        raise InputError(f"{name} must be a list of texts, not a {type(prompts).__name__}, such as list({name})")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"{name} must be texts, and {shown(prompt)} is a {type(prompt).__name__}")
        if not prompt.isascii() and prompt.encode(errors="ignore").decode() != prompt:
            raise InputError(f"{name} must be texts, and {shown(prompt)} has half a character (a lone surrogate)")


SLACK = 0.01  # tolerance of the range [0, 1]


def fault_of(y: Any, count: int | None = None, *, values: bool = True) -> tuple[str, str] | None:
    """Why `y` is not pictures [B, 3, H, W] in [0, 1], and an expression of y that would be, or "". None: it is.

    Args:
        count: the expected number of pictures, if known.
        values: also check the range, which synchronises the device.
    """
    if not isinstance(y, Tensor) or y.layout != torch.strided:
        return f"a {type(y).__name__}", ""
    if not y.is_floating_point():
        return str(y.dtype), "y.float() / 255" if y.dtype == torch.uint8 else ""
    if y.ndim != 4 or y.shape[1] != 3 or 0 in y.shape or count not in (None, len(y)):
        return f"shape {list(y.shape)}", ""
    if not values or y.is_meta:
        return None
    low, high = (bound.item() for bound in y.detach().aminmax())
    if low >= -SLACK and high <= 1 + SLACK:
        return None
    near = -1 - SLACK <= low < 0 and high <= 1 + SLACK
    fix = "(y + 1) / 2" if near else "y / 255" if low >= -SLACK and 2 < high <= 256 else "y.clamp(0, 1)"
    return f"values from {low:.4g} to {high:.4g}", fix if low > -math.inf and high < math.inf else ""


def check_noise(noise: Any, shape: tuple[int, ...], whose: str) -> None:
    """Raises InputError unless it is a tensor of floats [B, *shape]."""
    given: Any = noise.dtype if isinstance(noise, Tensor) else f"a {type(noise).__name__}"
    if isinstance(noise, Tensor) and noise.is_floating_point():
        given = tuple(noise.shape[1:])
    if given != shape:
        raise InputError(f"{whose} takes noise of {shape}, not {given}")


def checked_shape(noise_shape: Any) -> tuple[int, ...]:
    """Raises InputError unless it is the shape of one sample."""
    known = isinstance(noise_shape, Sequence) and all(type(n) is int and n > 0 for n in noise_shape)
    if not (known and noise_shape and math.prod(noise_shape) <= MOST):
        raise InputError(f"noise_shape must be one sample's shape, such as (8,) or (4, 8, 8), not {shown(noise_shape)}")
    return tuple(noise_shape)
