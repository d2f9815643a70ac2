"""The interface of a generator g: noise and a condition in, pixels out; differentiable and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hypernoise.errors import InputError

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
    """A frozen generator; every parameter has requires_grad=False."""

    name: str
    noise_shape: tuple[int, ...]  # of one sample, as the model takes it

    @property
    def device(self) -> torch.device: ...

    def encode(self, prompts: list[str]) -> Condition:
        """The condition of each prompt, without gradient. Raises InputError for a prompt that would be truncated."""
        ...

    def encode_ahead(self, prompts: list[str]) -> None:
        """Encodes these prompts in advance if the generator then frees its text encoders; else does nothing."""
        ...

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] from noise [B, *noise_shape] ~ N(0, I), differentiable in the noise.

        `seed` fixes the noise that a stochastic scheduler adds between steps: one for the batch, or one per sample.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What an adapter records of its base, as JSON values: `name`, `noise_shape`, and what identifies it."""
        ...


def check_texts(prompts: Any, name: str = "prompts") -> None:
    """Raises InputError unless it is a list of texts."""
    if isinstance(prompts, str):
        raise InputError(f"{name} is a single text; put it in a list: [{prompts!r}]")
    if not (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")) or isinstance(prompts, Mapping):
        raise InputError(f"{name} must be a list of texts, not a {type(prompts).__name__}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"{name} must be texts, and {prompt!r} is a {type(prompt).__name__}: give {str(prompt)!r}")


def checked_shape(noise_shape: Any) -> tuple[int, ...]:
    """Raises InputError unless it is the shape of one sample."""
    if (
        not isinstance(noise_shape, Sequence)
        or not noise_shape
        or not all(type(n) is int and n > 0 for n in noise_shape)
    ):
        raise InputError(f"noise_shape must be one sample's shape, such as (8,) or (4, 8, 8), not {noise_shape!r}")
    return tuple(noise_shape)
