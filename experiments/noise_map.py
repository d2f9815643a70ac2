"""The map between the noise spaces of two generators, so that one's noise network can drive the other.

Generators with the same latent layout share their noise. Otherwise noise is converted by `NoiseMap`, a linear map that
keeps white noise white, and the residual comes back by its adjoint. This is exact: a map whose matrix M has
M·Mᵀ = I takes N(0, I) to N(0, I), with mean 0, variance 1 and no correlation.

The map acts on each axis separately. Along height and width it keeps the lowest frequencies that both sides have: the
first coefficients of an orthonormal cosine transform (DCT-II) of both are equal, so coarse structure keeps its
place. Channels of different autoencoders mean different things, and no map between them
is known in advance; they are matched in order. Missing values are drawn from a seed and the
noise itself, so the noise that the network sees is also white.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.methods.base import fresh_noise
from hypernoise.noise.spectral import cosine_basis


class NoiseMap:
    """Maps noise [B, C, H, W] of one shape to another and back, white noise to white noise.

    Args:
        source, target: [C, H, W].

    Raises:
        InputError: noise with other dimensions, such as FLUX's tokens, between different shapes.
    """

    def __init__(self, source: Sequence[int], target: Sequence[int]):
        if len(source) != 3 or len(target) != 3:
            raise InputError(
                f"noise of {tuple(source)} cannot be mapped to {tuple(target)}: only [channels, height, width] can"
            )
        self.source, self.target = tuple(source), tuple(target)
        shared = [min(a, b) for a, b in zip(source, target, strict=True)]
        # per axis, [shared, size]: orthonormal rows that select what both sides have
        self._down = [_rows(axis, size, keep) for axis, (size, keep) in enumerate(zip(source, shared, strict=True))]
        self._up = [_rows(axis, size, keep) for axis, (size, keep) in enumerate(zip(target, shared, strict=True))]

    def __call__(self, noise: Tensor, *, seed: int = 0) -> Tensor:
        """N(0, I) of `target` from N(0, I) of `source`; equal noise and seed give equal results."""
        shared = _along(noise, self._down)
        fresh = fresh_noise(noise, seed, self.target)
        return fresh - _along(_along(fresh, self._up), self._up, back=True) + _along(shared, self._up, back=True)

    def adjoint(self, residual: Tensor) -> Tensor:
        """A residual on `target`'s noise as one on `source`'s: their shared part; not longer, so no more KL."""
        return _along(_along(residual, self._up), self._down, back=True)


def _rows(axis: int, size: int, keep: int) -> Tensor:
    return (torch.eye(size, dtype=torch.float64) if axis == 0 else cosine_basis(size))[:keep]


def _along(values: Tensor, matrices: list[Tensor], *, back: bool = False) -> Tensor:
    """Multiplies every axis after the first by its matrix, or its transpose; in fp64."""
    result = in_double(values)
    for axis, matrix in enumerate(matrices, 1):
        chosen = matrix.to(result.device)
        result = torch.movedim(torch.movedim(result, axis, -1) @ (chosen if back else chosen.T), -1, axis)
    return result.to(values.dtype).to(values.device)


def in_double(values: Tensor) -> Tensor:
    """The values in fp64, on the CPU if their device does not support it (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
