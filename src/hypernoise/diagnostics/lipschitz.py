"""The Jacobian J of f at a batch of noises, and how much f can stretch a difference of noises.

The paper's objective approximates the whole KL only if Lip(f) < 1 (arXiv 2508.09968). At a point the
constant is the spectral norm of the Jacobian; over all points, their maximum. Values at sampled
noises are lower bounds; for a plain chain, the product of its layers' norms is an upper bound.

Products with J, which is not built, use autograd's two modes, not `torch.func`: its transforms wrap every
tensor, and a pipeline that passes one to numpy before the denoiser (diffusers' schedulers do) cannot run inside them.
Forward mode needs the math attention kernel; the fused ones do not support it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.residual import ResidualNoise

ITERATIONS = 6  # a trained residual's first few directions dominate: 6 come within a few percent
SILU = 1.0998394  # the maximum slope of x·sigmoid(x), at x = 2.3994


class Linearised:
    """A function at fixed points: `residual` [B, ...] is f(x), `jvp` and `vjp` multiply by J(x) and its transpose.

    Args:
        function: [B, ...] to the same shape, sample by sample (no batch statistics); differentiable.
        noise: x [B, ...], in fp32 or better.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], noise: Tensor):
        def whole(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):  # which takes no dual tensors
                return function(x).to(x.dtype)  # half-precision networks answer in their own

        self.function = whole
        self.noise = noise.detach().contiguous().requires_grad_(True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._value = self.function(self.noise)
        self.residual = self._value.detach()

    def jvp(self, direction: Tensor) -> Tensor:
        """J·direction [B, ...], one direction per sample."""
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            dual = self.function(forward_ad.make_dual(self.noise.detach(), direction.detach()))
            tangent = forward_ad.unpack_dual(dual).tangent
        return torch.zeros_like(direction) if tangent is None else tangent

    def vjp(self, direction: Tensor) -> Tensor:
        """Jᵀ·direction [B, ...], one direction per sample."""
        if not self._value.requires_grad:  # f depends on neither the noise nor any weight
            return torch.zeros_like(direction)
        with sdpa_kernel(SDPBackend.MATH):  # checkpointed layers recompute their activations with the same kernel
            (product,) = torch.autograd.grad(self._value, self.noise, direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(direction) if product is None else product


def jacobian(linear: Linearised) -> Tensor:
    """The whole J [B, d, d] at each noise, in fp64 on the CPU: a backward pass per dimension."""
    shape = linear.noise.shape
    basis = torch.eye(shape[1:].numel(), dtype=linear.noise.dtype, device=linear.noise.device)
    rows = (linear.vjp(row.view(shape[1:]).expand(shape)).flatten(1).cpu().double() for row in basis)
    return torch.stack(list(rows), 1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values [B], shaped to multiply tensors like `like` [B, ...]."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


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
