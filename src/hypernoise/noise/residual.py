"""A stand-alone residual network for any module as generator: noise in, residual out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition, Generator, check_noise, checked_shape
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.coupling import zeroed
from hypernoise.settings import MOST, seed_in_range, whole_number

ENCODED = 1024  # prompts per batch when looking for the largest label


class ResidualNoise(NoiseNetwork):
    """An MLP on the flattened noise and the condition's embedding, whose last layer starts at zero.

    Args:
        noise_shape: one sample's shape.
        condition_size: size of a sample's embedding, or the number of classes if conditions are labels;
            0: f sees only the noise. None: taken from the generator's conditions when training begins (`suit`).
        width, depth: the hidden layers'; depth 0 is a plain affine map.
        seed: for the initial hidden weights.
    """

    kind: ClassVar[str] = "residual"

    def __init__(
        self,
        noise_shape: Sequence[int],
        *,
        condition_size: int | None = None,
        width: int = 256,
        depth: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        self.noise_shape = checked_shape(noise_shape)
        known = condition_size if condition_size is not None else 0
        whole_number(width, "width")
        whole_number(depth, "depth", 0, 1000)
        whole_number(known, "condition_size", 0)
        seed_in_range(seed)
        self.settings: dict[str, Any] = {
            "noise_shape": list(noise_shape), "condition_size": condition_size, "width": width, "depth": depth
        }  # fmt: skip
        self._seed = seed
        self._build(known)

    def _build(self, condition_size: int) -> None:
        width, depth = self.settings["width"], self.settings["depth"]
        self.condition_size, size = condition_size, math.prod(self.noise_shape)
        widths = [size + condition_size, *[width] * depth]
        weights = sum(a * b for a, b in pairwise([*widths, size]))
        if weights > MOST:
            seen = f"noise of {size:,} numbers, {condition_size:,} classes or numbers of an embedding"
            raise InputError(f"{seen}, width {width:,} and depth {depth} make {weights:,} weights: at most {MOST:,}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            hidden = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths)]
            self.network = nn.Sequential(*hidden, zeroed(nn.Linear(widths[-1], size)))

    def suit(self, generator: Generator, prompts: Sequence[str]) -> None:
        """Before training: takes the size of the generator's conditions, unless given. Raises InputError if the
        generator's noise has another shape."""
        if self.noise_shape != tuple(generator.noise_shape):
            raise InputError(
                f"this network takes noise of {self.noise_shape}, but {generator.name!r} takes {generator.noise_shape}"
            )
        if self.settings["condition_size"] is not None:
            return
        first = generator.encode([prompts[0]]).tensors.get("embedding")
        size = 0 if first is None else first[0].numel()
        if first is not None and are_labels(first):
            once = list(dict.fromkeys(prompts))
            parts = [once[start : start + ENCODED] for start in range(0, len(once), ENCODED)]
            size = 1 + max(int(generator.encode(part).tensors["embedding"].max()) for part in parts)
        self.settings["condition_size"] = size
        if size:
            like = next(self.parameters())
            self._build(size)
            self.to(like)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        check_noise(noise, self.noise_shape, "this network")
        seen = noise.flatten(1)
        if self.condition_size:
            seen = torch.cat([seen, embedded(condition, self.condition_size).to(seen)], 1)
        return self.network(seen).unflatten(1, self.noise_shape)

    def scale_output(self, factor: float) -> None:
        """Scales what depends on the noise by `factor` permanently; the shift, the last layer's bias, stays."""
        weight, _ = list(self.parameters())[-2:]
        with torch.no_grad():
            weight.mul_(factor)


def embedded(condition: Condition, size: int) -> Tensor:
    """A module's condition as [B, size]: labels as one-hot rows of `size` classes, embeddings flattened."""
    embedding = condition.tensors.get("embedding")
    if embedding is None:
        raise InputError("condition_size needs a generator that embeds its prompts; this one does not")
    numbers = embedding[0].numel()
    if are_labels(embedding):
        least, most = int(embedding.min()), int(embedding.max())
        if least < 0 or most >= size:
            raise InputError(f"labels from {least} to {most}: they must be from 0 to condition_size - 1, {size - 1}")
        return one_hot(embedding.flatten().long(), size)
    if numbers != size:
        raise InputError(f"an embedding has {numbers} numbers, but condition_size is {size}")
    return embedding.reshape(len(embedding), numbers)


def are_labels(embedding: Tensor) -> bool:
    return not embedding.is_floating_point() and embedding[0].numel() == 1
