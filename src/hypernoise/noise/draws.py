"""Noise keyed by (seed, step, global sample): the same whatever process draws it, or after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# Noise keys of other uses than a training step's: no step is as late, and no two are the same.
EVALUATION_STEP = 10**9
WATCH_STEP = 10**9 + 1
DIAGNOSIS_STEP = 10**9 + 2
SAMPLE_STEP = 10**9 + 3
FIXED_STEP = 10**9 + 4  # of the fixed set
DRAWING_STEP = 10**9 + 5  # of what `evaluate rewards` draws
WARM_STEP = 10**9 + 10**6  # of a warm start; its batch n has WARM_STEP + n


def keyed_noise(shape: tuple[int, ...], *, seed: int, step: int, samples: Iterable[int]) -> Tensor:
    """N(0, I) noise [len(samples), *shape] on the CPU, in fp32; each sample from a generator of its own."""
    draws = [torch.Generator().manual_seed(key_of(seed, step, sample)) for sample in samples]
    return torch.stack([torch.randn(shape, generator=draw) for draw in draws])


def key_of(*numbers: int) -> int:
    """A seed for torch, below 2**63, that any change of any number changes."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _fixed(seed: int, step: int, samples: Sequence[int], count: int) -> tuple[int, list[int]]:
    return FIXED_STEP, [key_of(seed, step, sample) % count for sample in samples]


NOISE_KEYS: dict[str, Callable[[int, int, Sequence[int], int], tuple[int, list[int]]]] = {  # of each policy
    "fresh": lambda seed, step, samples, count: (step, list(samples)),
    "batch": lambda seed, step, samples, count: (step, [0] * len(samples)),
    "fixed": _fixed,
}


def training_noise(
    policy: str, shape: tuple[int, ...], *, seed: int, step: int, samples: Sequence[int], count: int
) -> Tensor:
    """The noises [len(samples), *shape] of a training step under a policy.

    fresh: one for each sample; batch: one for all samples of the step; fixed: each sample draws one of `count`.
    """
    key, members = NOISE_KEYS[policy](seed, step, samples, count)
    return keyed_noise(shape, seed=seed, step=key, samples=members)
