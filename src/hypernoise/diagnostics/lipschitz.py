"""How much a noise network can stretch a difference of noises, from below and from above.

The paper's objective stands for the whole KL only while Lip(f) < 1 (arXiv 2508.09968, section 3). At a point the
constant is the spectral norm of the Jacobian; over all points it is the greatest of those. What is seen at
sampled noises is a lower bound; a product of layers' norms, where a network is a plain chain, an upper one.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from hypernoise.diagnostics.linear import Linearised
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.residual import ResidualNoise

ITERATIONS = 6  # the first few directions of a trained residual stand out: 6 come within a few percent
SILU = 1.0998394  # the greatest slope of x·sigmoid(x), at x = 2.3994


def spectral_norm(
    network: NoiseNetwork,
    noise: Tensor,
    condition: Condition,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> Tensor:
    """‖J‖₂ at each noise [B], by power iteration on JᵀJ: never above the truth, and rising to it.

    Each iteration costs a jvp and a vjp per noise (the last one no vjp).

    Raises:
        InputError: iterations < 1.
    """
    return most_stretched(network, noise, condition, iterations=iterations, seed=seed)[0]


def most_stretched(
    network: NoiseNetwork,
    noise: Tensor,
    condition: Condition,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """`spectral_norm`'s ‖J‖₂ [B], and the directions [B, ...] of length 1 that are stretched so."""
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, not {iterations}")
    linear = Linearised(partial(network, condition=condition), noise)
    draw = torch.Generator().manual_seed(seed)
    direction = _unit(torch.randn(noise.shape, generator=draw).to(noise))
    image = linear.jvp(direction)
    for _ in range(iterations - 1):
        direction = _unit(linear.vjp(image))
        image = linear.jvp(direction)
    return image.flatten(1).norm(dim=1).detach(), direction.detach()


@torch.no_grad()
def pairwise_ratios(network: NoiseNetwork, noise: Tensor, other: Tensor, condition: Condition) -> Tensor:
    """‖f(a) − f(b)‖ / ‖a − b‖ of each pair of noises [B, ...] under one condition [B]: lower bounds of Lip(f)."""
    change = (network(noise, condition) - network(other, condition)).flatten(1).norm(dim=1)
    return change / (noise - other).flatten(1).norm(dim=1)


@torch.no_grad()
def lipschitz_bound(network: NoiseNetwork) -> float:
    """An upper bound of Lip(f), from the weights alone; infinite where there is none.

    Only a ResidualNoise is a chain of layers and SiLUs, whose norms multiply. Attention and normalisation layers
    have no bound that holds for every input.
    """
    if not isinstance(network, ResidualNoise):
        return math.inf
    norms = [_norm(layer.weight) for layer in network.modules() if isinstance(layer, nn.Linear)]
    return math.prod(norms) * SILU ** (len(norms) - 1)


def kl_gap_bound(dimensions: int, lipschitz: float) -> float:
    """The most, in nats, that Tr J − log|det(I + J)| can be: d(−log(1 − L) − L) ≈ d·L²/2; infinite from L = 1 on."""
    return dimensions * (-math.log1p(-lipschitz) - lipschitz) if lipschitz < 1 else math.inf


def _norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.float(), ord=2).item()


def _unit(direction: Tensor) -> Tensor:
    """Each sample scaled to length 1; zeros stay zeros."""
    lengths = direction.flatten(1).norm(dim=1).clamp_min(1e-30)
    return direction / lengths.view(-1, *[1] * (direction.ndim - 1))
