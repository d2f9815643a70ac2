"""The low frequencies of a residual: what composition hangs on, and all that a noise network need change.

LENS (arXiv 2605.07253) changes no others. A residual that is drawn cell by cell spends part of its length, and so of
its KL, on details of the noise that the picture hardly depends on; left out, the same gain costs fewer nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II matrix [size, size] in fp64: row k is the k-th frequency."""
    places, frequencies = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * (places + 0.5) * frequencies / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def low_frequencies(residual: Tensor, kept: int) -> Tensor:
    """The residual [B, C, H, W] in its `kept` lowest frequencies each way: kept² of each channel's H · W DCT-II terms.

    A projection: what it gives is no longer than what it is given, and giving it that changes nothing.
    """
    rows, columns = (cosine_basis(size)[:kept].to(residual) for size in residual.shape[-2:])
    return rows.T @ (rows @ residual @ columns.T) @ columns
