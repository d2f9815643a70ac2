"""Limits the Lipschitz constant of f, so that ½‖f‖² approximates the KL; or trains on the exact KL instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hypernoise.diagnostics.lipschitz import lipschitz_bound, most_stretched, spectral_norm
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.objective import kl_gap

NOISES = 4  # measured per batch part
ITERATIONS = 3  # power iterations, from a new start at every step: no state to resume
MOST_DIMENSIONS = 256  # for which the whole Jacobian is built at every step


def check_exact(noise_shape: Sequence[int]) -> None:
    """Raises InputError for noise of too many dimensions."""
    dimensions = math.prod(noise_shape)
    if dimensions > MOST_DIMENSIONS:
        raise InputError(
            f"kl_term: exact needs a backward pass per dimension of the noise, {MOST_DIMENSIONS} at most; this noise "
            f"has {dimensions}: use kl_term: l2, with lipschitz: penalty or clamp"
        )


def exact_gap(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """`kl_gap` of each sample [B]."""
    x = noise.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        return kl_gap(network(x, condition).flatten(1), x)


def squared_excess(network: NoiseNetwork, noise: Tensor, condition: Condition, bound: float) -> Tensor:
    """max(0, ‖f(x + v/2) − f(x − v/2)‖ − bound)², averaged over noises; v is the most stretched direction at x.

    The norm is a finite difference over ‖v‖ = 1, not a second derivative: its gradient needs no double backward, so
    any attention kernel and checkpointing work, and it is itself a lower bound of Lip(f).
    """
    x, c = noise[:NOISES].detach(), condition[:NOISES]
    _, direction = most_stretched(network, x, c, iterations=ITERATIONS)
    ends = network(x + direction / 2, c) - network(x - direction / 2, c)
    return (ends.float().flatten(1).norm(dim=1) - bound).clamp_min(0).square().mean()


def lipschitz_seen(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """What `clamp` limits [n]: the product of layer norms if the network has one, else ‖J‖₂ at some noises."""
    certain = lipschitz_bound(network)
    if math.isfinite(certain):
        return torch.tensor([certain], device=noise.device)
    return spectral_norm(network, noise[:NOISES], condition[:NOISES], iterations=ITERATIONS)


def clamp(network: NoiseNetwork, seen: float, bound: float) -> None:
    """Scales the residual's weights down to the bound if the constant `seen` exceeds it."""
    if seen > bound:
        network.scale_output(bound / seen)
