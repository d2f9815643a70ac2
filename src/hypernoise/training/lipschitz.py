"""Holding the Lipschitz constant of f down, so that ½‖f‖² stands for the KL; or training on the whole KL instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hypernoise.diagnostics.lipschitz import lipschitz_bound, most_stretched, spectral_norm
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork

NOISES = 4  # of each round's batch that are measured
ITERATIONS = 3  # of the power method, from a new start at every step: no state to resume
MOST_DIMENSIONS = 256  # of noise whose whole Jacobian is built at every step


def check_exact(noise_shape: Sequence[int]) -> None:
    """Raises InputError for noise of too many dimensions."""
    dimensions = math.prod(noise_shape)
    if dimensions > MOST_DIMENSIONS:
        raise InputError(
            f"kl_term: exact takes a backward pass per dimension of the noise, {MOST_DIMENSIONS} at most; this noise "
            f"has {dimensions}: use kl_term: l2, with lipschitz: penalty or clamp"
        )


def exact_gap(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """Tr J − log|det(I + J)| of each sample [B], what ½‖f‖² leaves out of the KL; differentiable in f's weights.

    d backward passes, each kept for the gradient.
    """
    x = noise.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        residual = network(x, condition).flatten(1)
        rows = [
            torch.autograd.grad(column.sum(), x, create_graph=True, materialize_grads=True)[0].flatten(1)
            for column in residual.T
        ]
    jacobian = torch.stack(rows, 1)  # [B, d, d]
    volume = torch.linalg.slogdet(torch.eye(len(rows)).to(jacobian) + jacobian).logabsdet
    return jacobian.diagonal(dim1=1, dim2=2).sum(1) - volume


def scalable(network: NoiseNetwork) -> bool:
    """Whether its residual can be scaled down in its weights."""
    return hasattr(network, "scale_output")


def squared_excess(network: NoiseNetwork, noise: Tensor, condition: Condition, bound: float) -> Tensor:
    """max(0, ‖f(x + v/2) − f(x − v/2)‖ − bound)², averaged over noises; v is the direction most stretched at x.

    The stretch is a finite difference over ‖v‖ = 1, not a derivative of a derivative: its gradient needs no second
    backward pass, so any attention kernel and checkpointing will do, and it is itself a lower bound of Lip(f).
    """
    x, c = noise[:NOISES].detach(), condition[:NOISES]
    _, direction = most_stretched(network, x, c, iterations=ITERATIONS)
    ends = network(x + direction / 2, c) - network(x - direction / 2, c)
    return (ends.float().flatten(1).norm(dim=1) - bound).clamp_min(0).square().mean()


def lipschitz_seen(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """What `clamp` holds under its bound [n]: the bound of the layers if they have one, else ‖J‖₂ at some noises."""
    certain = lipschitz_bound(network)
    if math.isfinite(certain):
        return torch.tensor([certain], device=noise.device)
    return spectral_norm(network, noise[:NOISES], condition[:NOISES], iterations=ITERATIONS)


def clamp(network: Any, seen: float, bound: float) -> None:
    """Scales the residual down to the bound, in its weights, if the constant `seen` is above it."""
    if seen > bound:
        network.scale_output(bound / seen)
