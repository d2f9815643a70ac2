"""Noise keyed by (seed, step, global sample): the same whatever process draws it, or after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def keyed_noise(shape: tuple[int, ...], *, seed: int, step: int, samples: Iterable[int]) -> Tensor:
    """N(0, I) noise [len(samples), *shape] on the CPU, in fp32; each sample from a generator of its own."""
    rows = []
    for sample in samples:
        digest = hashlib.blake2b(f"{seed}/{step}/{sample}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest) >> 1  # torch takes seeds below 2**63
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(key)))
    return torch.stack(rows)
