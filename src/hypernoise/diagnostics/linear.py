"""f near a batch of noises: its value, and products with its Jacobian J, without building J.

Products use autograd's two modes, not `torch.func`: its transforms wrap every tensor, and a pipeline
that passes one to numpy before the denoiser (diffusers' schedulers do) cannot run inside them.
Forward mode needs the math attention kernel; the fused ones do not support it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


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
