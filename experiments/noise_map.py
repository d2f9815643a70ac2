"""The map between the noise spaces of two generators, for a noise network of the one to drive the other.

Generators of one latent layout share their noise. Of another, noise is carried over by `NoiseMap`, a linear map that
keeps white noise white, and the residual comes back by its adjoint. White here is exact: a map whose matrix M has
M·Mᵀ = I takes N(0, I) to N(0, I), with mean 0, variance 1 and no correlation.

The map acts on each axis by itself. Along height and width it keeps the lowest frequencies that both sides have: the
first coefficients of an orthonormal cosine transform (DCT-II) of the one are those of the other, so what f wants in
coarse structure arrives where it belongs. Channels of different autoencoders mean different things, and no map of
theirs is known beforehand; they are joined in order. What the smaller side lacks is drawn fresh, from a seed and the
noise itself, so that the noise the network sees is white too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.noise.spectral import cosine_basis


class NoiseMap:
    """Noise [B, C, H, W] of one shape to another and back, white noise to white noise.

    Args:
        source, target: [C, H, W].

    Raises:
        InputError: noise of other dimensions, such as FLUX's tokens, between shapes that differ.
    """

    def __init__(self, source: Sequence[int], target: Sequence[int]):
        if len(source) != 3 or len(target) != 3:
            raise InputError(
                f"noise of {tuple(source)} cannot be mapped to {tuple(target)}: only [channels, height, width] can"
            )
        self.source, self.target = tuple(source), tuple(target)
        shared = [min(a, b) for a, b in zip(source, target, strict=True)]
        # per axis, [shared, size]: orthonormal rows that pick what both sides have
        self._down = [_rows(axis, size, keep) for axis, (size, keep) in enumerate(zip(source, shared, strict=True))]
        self._up = [_rows(axis, size, keep) for axis, (size, keep) in enumerate(zip(target, shared, strict=True))]

    def __call__(self, noise: Tensor, *, seed: int = 0) -> Tensor:
        """N(0, I) of `target` from N(0, I) of `source`; equal noise and seed give equal results."""
        shared = _along(noise, self._down)
        fresh = _fresh(noise, self.target, seed)
        return fresh - _along(_along(fresh, self._up), self._up, back=True) + _along(shared, self._up, back=True)

    def adjoint(self, residual: Tensor) -> Tensor:
        """A residual on `target`'s noise as one on `source`'s: what both have of it; no longer, so no more KL."""
        return _along(_along(residual, self._up), self._down, back=True)


def _rows(axis: int, size: int, keep: int) -> Tensor:
    return (torch.eye(size, dtype=torch.float64) if axis == 0 else cosine_basis(size))[:keep]


def _along(values: Tensor, matrices: list[Tensor], *, back: bool = False) -> Tensor:
    """Every axis after the first through its matrix, or back through its transpose; in fp64."""
    result = in_double(values)
    for axis, matrix in enumerate(matrices, 1):
        chosen = matrix.to(result.device)
        result = torch.movedim(torch.movedim(result, axis, -1) @ (chosen if back else chosen.T), -1, axis)
    return result.to(values.dtype).to(values.device)


def in_double(values: Tensor) -> Tensor:
    """The values in fp64, on the CPU where their device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _fresh(noise: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """N(0, I) for each sample, from its own noise and the seed: the same whatever the batch."""
    draws = []
    for own in noise.detach().float().cpu():
        digest = hashlib.blake2b(own.numpy().tobytes() + seed.to_bytes(8, "big"), digest_size=8).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        draws.append(torch.randn(shape, generator=draw))
    return torch.stack(draws).to(noise.device, noise.dtype)
