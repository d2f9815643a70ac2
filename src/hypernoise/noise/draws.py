"""Noise x0 keyed by (seed, step, global sample): the same in any process and after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork

# Noise keys for uses other than training steps: larger than any step, and all different.
EVALUATION_STEP = 10**9
OBSERVED_STEP = 10**9 + 1
DIAGNOSIS_STEP = 10**9 + 2
VALIDATION_STEP = 10**9 + 3


def keyed_noise(shape: tuple[int, ...], *, seed: int, step: int, samples: Iterable[int]) -> Tensor:
    """N(0, I) noise [len(samples), *shape] on the CPU, in fp32; each sample from its own generator."""
    draws = [torch.Generator().manual_seed(key_of(seed, step, sample)) for sample in samples]
    return torch.stack([torch.randn(shape, generator=draw) for draw in draws])


def noise_for(generator: Generator, network: NoiseNetwork, *, seed: int, step: int, samples: Iterable[int]) -> Tensor:
    """`keyed_noise` of the generator's shape, on its device, in the precision of the network's weights."""
    noise = keyed_noise(generator.noise_shape, seed=seed, step=step, samples=samples)
    return noise.to(generator.device, network.trainable_parameters()[0].dtype)


def key_of(*numbers: int) -> int:
    """A seed for torch, below 2**63, that depends on every one of the numbers."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
