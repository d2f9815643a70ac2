"""The frequencies of a residual, and whether improved noise is still indistinguishable from N(0, I).

Noise [C, H, W] is viewed through an orthonormal cosine transform (DCT-II) of each channel: for white noise the
coefficients are independent and N(0, 1), so every expectation and standard error below is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.fft import dctn
from torch import Tensor

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, math.sqrt(2))  # band edges, in units of the highest frequency along an axis
AT_EACH_PLACE = "mean square of the mean at each place, times noises"


@dataclass(frozen=True)
class Band:
    """Coefficients with low < frequency ≤ high (the first band includes 0): their share of all, and mean square."""

    low: float
    high: float
    share: float
    power: float


@dataclass(frozen=True)
class Check:
    """A statistic with value `expected` for N(0, I): its measured value, and the distance in standard errors."""

    name: str
    expected: float
    found: float
    z: float


def band_powers(values: Tensor) -> list[Band]:
    """The mean square of values [B, C, H, W] by frequency, without bands that are empty at this size."""
    coefficients = np.asarray(dctn(values.detach().cpu().double().numpy(), axes=(2, 3), norm="ortho"))
    squares = np.square(coefficients).mean((0, 1))
    rows, columns = (np.arange(size) / size for size in squares.shape)
    frequency = np.hypot(rows[:, None], columns)
    bands = []
    for low, high in pairwise(EDGES):
        inside = (frequency <= high) & ((frequency > low) | (low == 0))
        if inside.any():
            bands.append(Band(low, high, float(inside.mean()), float(squares[inside].mean())))
    return bands


def white_checks(noise: Tensor) -> list[Check]:
    """Statistics of noise [B, ...] against N(0, I); the spatial ones only for [B, C, H, W]."""
    values = noise.detach().cpu().double()
    count, size = values.numel(), values[0].numel()
    spread = (values.flatten(1).square().sum(1) - size).square().mean()  # of ‖z‖², a χ²: its square varies by 2 + 12/d
    checks = [
        _check("mean", values.mean(), 0, 1, count),
        _check("variance", values.square().mean(), 1, math.sqrt(2), count),
        _check(AT_EACH_PLACE, len(values) * values.mean(0).square().mean(), 1, math.sqrt(2), size),  # χ² over d
        _check("variance of ‖z‖² / 2d", spread / (2 * size), 1, math.sqrt(2 + 12 / size), len(values)),
    ]
    if values.ndim == 4:
        across, down = values[..., 1:] * values[..., :-1], values[..., 1:, :] * values[..., :-1, :]
        checks.append(_check("neighbours across", across.mean(), 0, 1, across.numel()))
        checks.append(_check("neighbours down", down.mean(), 0, 1, down.numel()))
        for band in band_powers(values):
            name = f"power, frequency {band.low:g}-{band.high:.3g}"
            checks.append(_check(name, band.power, 1, math.sqrt(2), round(count * band.share)))
    return checks


def _check(name: str, found: float | Tensor, expected: float, deviation: float, count: int) -> Check:
    """A mean of `count` values, each with this standard deviation under N(0, I)."""
    return Check(name, expected, float(found), (float(found) - expected) * math.sqrt(count) / deviation)
