"""Projection onto white Gaussian noise in frequency space (Hwang & Sung 2026, arXiv 2602.08646).

The real vector's Fourier coefficients, freed of their symmetry, are N/2 complex numbers that are
independent CN(0, 1) exactly when the vector is N(0, I). In blocks of B neighbouring frequencies they are
held to the norms that such numbers have on average: ‖y‖₁ = B √π/2 and ‖y‖₂² = B. So neither the energy nor
the flatness of a projected vector's spectrum can drift. `reno` projects the gradients of a search, as the paper's
later versions say: each step is white, the sum of many is not held to white noise's length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.noise.state import in_double

BLOCK = 16  # the paper's


def project_white(noise: Tensor, block: int = BLOCK) -> Tensor:
    """The nearest vector whose every block of frequencies has the norms of white noise.

    Args:
        noise: [B, ...]; each sample is flattened and projected on its own. Its size must be a multiple of
            2 · block. A sample that is zero, or all of whose block is, has no nearest one and stays as it is.
        block: frequencies per block.

    Returns:
        A tensor like `noise`.

    Raises:
        InputError: the size does not divide.
    """
    size = noise[0].numel()
    if size % (2 * block):
        raise InputError(
            f"a noise of {size} numbers cannot be projected in blocks of {block} frequencies: it must be a "
            f"multiple of {2 * block}"
        )
    spectrum = _compact_spectrum(in_double(noise.flatten(1))).unflatten(1, (-1, block))  # [B, blocks, block]
    length = spectrum.abs()
    shrunk = _to_norms(length)
    phase = torch.where(length > 0, spectrum / length, 1.0)
    return _from_compact_spectrum((shrunk * phase).flatten(1)).view_as(noise).to(noise.dtype).to(noise.device)


def _compact_spectrum(x: Tensor) -> Tensor:
    """[B, N] real → [B, N/2] complex, N even: the coefficients of frequency 0 and N/2 are real and share a place."""
    full = torch.fft.rfft(x, norm="ortho")
    ends = torch.complex(full[:, 0].real, full[:, -1].real) / math.sqrt(2)
    return torch.cat([ends[:, None], full[:, 1:-1]], 1)


def _from_compact_spectrum(y: Tensor) -> Tensor:
    ends = y[:, :1] * math.sqrt(2)
    zero = torch.zeros_like(ends.real)
    full = torch.cat([torch.complex(ends.real, zero), y[:, 1:], torch.complex(ends.imag, zero)], 1)
    return torch.fft.irfft(full, n=2 * y.shape[1], norm="ortho")


def _to_norms(length: Tensor) -> Tensor:
    """The nearest non-negative [..., block] with ‖w‖₁ = block · √π/2 and ‖w‖₂² = block.

    It is c · relu(length − t). With the k largest entries above t, ‖·‖₁² = (block · π/4) ‖·‖₂² is a quadratic in t
    with one root below their mean; t is the root of the one k whose root lies between its neighbours
    (Liu et al. 2020, on the intersection of an l1 and an l2 sphere).
    """
    block = length.shape[-1]
    ratio = block * math.pi / 4  # ‖w‖₁² / ‖w‖₂²; at least this many entries must stay above t
    falling = length.sort(-1, descending=True).values
    k = torch.arange(1, block + 1, dtype=length.dtype, device=length.device)
    first, second = falling.cumsum(-1), falling.square().cumsum(-1)  # of the k largest
    spread = (k * second - first.square()).clamp_min(0)
    root = (first - (ratio * spread / (k - ratio).clamp_min(1e-12)).sqrt()) / k
    following = torch.cat([falling[..., 1:], torch.full_like(falling[..., :1], -math.inf)], -1)
    fits = (k > ratio) & (root < falling) & (root >= following)
    threshold = root.gather(-1, fits.int().argmax(-1, keepdim=True))
    above = (length - threshold).clamp_min(0)
    total = above.sum(-1, keepdim=True)
    solved = fits.any(-1, keepdim=True) & (total > 0)
    # a block whose entries are equal has no root; its flat spectrum is only brought to the right energy
    flat = length * (block / second[..., -1:].clamp_min(1e-300)).sqrt()
    return torch.where(solved, above * (block * math.sqrt(math.pi) / 2) / total.clamp_min(1e-300), flat)
