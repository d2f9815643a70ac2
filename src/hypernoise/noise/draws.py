"""Noise keyed by (seed, step, global sample): the same whatever process draws it, or after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

# Noise keys of other uses than a training step's: no step is as late, and no two are the same.
EVALUATION_STEP = 10**9
OBSERVED_STEP = 10**9 + 1
DIAGNOSIS_STEP = 10**9 + 2
VALIDATION_STEP = 10**9 + 3


def keyed_noise(shape: tuple[int, ...], *, seed: int, step: int, samples: Iterable[int]) -> Tensor:
    """N(0, I) noise [len(samples), *shape] on the CPU, in fp32; each sample from a generator of its own."""
    draws = [torch.Generator().manual_seed(key_of(seed, step, sample)) for sample in samples]
    return torch.stack([torch.randn(shape, generator=draw) for draw in draws])


def key_of(*numbers: int) -> int:
    """A seed for torch, below 2**63, that any change of any number changes."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
