"""The contract of a generator g: noise and a condition in, pixels out, differentiable, frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hypernoise.errors import InputError

Seed = int | Sequence[int] | None  # of a batch, or each sample's own


@dataclass(frozen=True)
class Condition:
    """What a generator is conditioned on, one row per sample in every tensor; indexes and moves as one value."""

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
        """The condition of each prompt; no gradient. Raises InputError for a prompt that cannot be encoded whole."""
        ...

    def encode_ahead(self, prompts: list[str]) -> None:
        """Encodes these prompts where the generator then lets its text encoders go; else does nothing."""
        ...

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] from noise [B, *noise_shape] ~ N(0, I), differentiable in the noise.

        `seed` fixes the noise that a stochastic scheduler adds between steps: of the batch, or each sample's own.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What an adapter notes of its base, as JSON values: `name`, `noise_shape`, and what tells it from others."""
        ...


def check_texts(prompts: Any, name: str = "prompts") -> None:
    """Raises InputError for what is no list of texts."""
    if isinstance(prompts, str):
        raise InputError(f"{name} is one text; put it in a list: [{prompts!r}]")
    if not (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")) or isinstance(prompts, Mapping):
        raise InputError(f"{name} must be a list of texts, not a {type(prompts).__name__}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"{name} must be texts, and {prompt!r} is a {type(prompt).__name__}: give {str(prompt)!r}")


def checked_shape(noise_shape: Any) -> tuple[int, ...]:
    """Raises InputError for what is no shape of one sample."""
    if (
        not isinstance(noise_shape, Sequence)
        or not noise_shape
        or not all(type(n) is int and n > 0 for n in noise_shape)
    ):
        raise InputError(f"noise_shape is of one sample, such as (8,) or (4, 8, 8), not {noise_shape!r}")
    return tuple(noise_shape)
