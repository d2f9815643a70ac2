"""How much a noise network can stretch a difference of noises, bounded from below and above.

The paper's objective approximates the whole KL only if Lip(f) < 1 (arXiv 2508.09968). At a point the
constant is the spectral norm of the Jacobian; over all points, their maximum. Values at sampled
noises are lower bounds; for a plain chain, the product of its layers' norms is an upper bound.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from hypernoise.diagnostics.linear import Linearised, per_sample
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.residual import ResidualNoise

ITERATIONS = 6  # a trained residual's first few directions dominate: 6 come within a few percent
SILU = 1.0998394  # the maximum slope of x·sigmoid(x), at x = 2.3994


def spectral_norm(
    network: NoiseNetwork, noise: Tensor, condition: Condition, *, iterations: int = ITERATIONS, seed: int = 0
) -> Tensor:
    """‖J‖₂ at each noise [B], by power iteration on JᵀJ: a lower bound that increases to the true value.

    Each iteration costs a jvp and a vjp per noise (the last one has no vjp).

    Raises:
        InputError: iterations < 1.
    """
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, not {iterations}")
    return most_stretched(network, noise, condition, iterations=iterations, seed=seed)[0]


def most_stretched(
    network: NoiseNetwork, noise: Tensor, condition: Condition, *, iterations: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """`spectral_norm`'s ‖J‖₂ [B], and the unit directions [B, ...] stretched by it."""
    linear = Linearised(partial(network, condition=condition), noise)
    direction = _unit(torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed)).to(noise))
    image = linear.jvp(direction)
    for _ in range(iterations - 1):
        direction = _unit(linear.vjp(image))
        image = linear.jvp(direction)
    return image.flatten(1).norm(dim=1).detach(), direction.detach()


def _unit(direction: Tensor) -> Tensor:
    """Each sample scaled to norm 1; zeros stay zeros."""
    return direction / per_sample(direction.flatten(1).norm(dim=1).clamp_min(1e-30), direction)


@torch.no_grad()
def lipschitz_bound(network: NoiseNetwork) -> float:
    """An upper bound of Lip(f), from the weights only; infinite if none is known.

    Only a ResidualNoise is a chain of layers and SiLUs, whose norms multiply. Attention and normalisation layers
    have no bound for all inputs.
    """
    if not isinstance(network, ResidualNoise):
        return math.inf
    weights = [layer.weight.float() for layer in network.modules() if isinstance(layer, nn.Linear)]
    norms = [torch.linalg.matrix_norm(weight, ord=2).item() for weight in weights]
    return math.prod(norms) * SILU ** (len(norms) - 1)


def kl_gap_bound(dimensions: int, lipschitz: float) -> float:
    """The maximum, in nats, of Tr J − log|det(I + J)|: d(−log(1 − L) − L) ≈ d·L²/2; infinite for L ≥ 1."""
    return dimensions * (-math.log1p(-lipschitz) - lipschitz) if lipschitz < 1 else math.inf
