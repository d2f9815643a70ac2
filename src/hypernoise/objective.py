"""The training objective and the KL terms behind it (arXiv 2508.09968).

For z = x + f(x) with x ~ N(0, I):

    KL(law of z || N(0, I)) = E[ ½‖f‖² + Tr J_f − log|det(I + J_f)| ]

(by Stein's lemma, E[x·f] = E[Tr J_f]). The paper trains on the first term only, which is exact for
a constant shift and, when Lip(f) = L < 1, within d(−log(1 − L) − L) of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """In fp32 or better."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def l2_kl(residual: Tensor) -> Tensor:
    """½‖f‖² of each sample [B], summed over the noise's dimensions, in nats; computed in fp32 or better."""
    return 0.5 * wide(residual).flatten(1).square().sum(1)


def noise_objective(kl: Tensor, reward: Tensor, kl_weight: float) -> Tensor:
    """kl_weight · KL − reward of each sample [B]; the paper's KL is ½‖f‖² (`l2_kl`).

    `kl_weight` multiplies the *sum* over dimensions: it is the α of p*(x) ∝ p(x)·exp(r/α). The released
    research code uses 0.5·mean(f²) instead, which is α = 1/d for a d-dimensional noise.
    """
    return kl_weight * kl - reward


def limit_gradient(noise: Tensor, most: float, share: float) -> Tensor:
    """The same noise; in the backward pass, each sample's gradient is scaled down to a norm of at most `most`.

    A generator's output can change abruptly between two of its pictures, and one such sample then outweighs a whole
    batch of consistent gradients. ReNO also clips its noise's gradient (arXiv 2406.04312).

    Args:
        noise: [B, ...], the generator's input; must require grad.
        share: one sample's share of the loss, 1 / samples for a mean.
    """

    def limit(gradient: Tensor) -> Tensor:
        norm = gradient.flatten(1).norm(dim=1) / share
        return gradient * (most / norm).clamp(max=1).view(-1, *[1] * (gradient.ndim - 1))  # a norm of 0 stays 0

    limited = noise * 1
    limited.register_hook(limit)
    return limited


def kl_gap(residual: Tensor, noise: Tensor) -> Tensor:
    """Tr J − log|det(I + J)| of each sample [B], the terms missing from ½‖f‖²; differentiable in f's weights.

    Takes a backward pass per dimension, all kept for the gradient.

    Args:
        residual: f of `noise`, flattened to [B, d], with its graph.
        noise: [B, ...]; must require grad.
    """
    rows = [
        torch.autograd.grad(column.sum(), noise, create_graph=True, materialize_grads=True)[0].flatten(1)
        for column in residual.T
    ]
    jacobian = torch.stack(rows, 1)  # [B, d, d]
    volume = torch.linalg.slogdet(torch.eye(len(rows)).to(jacobian) + jacobian).logabsdet
    return jacobian.diagonal(dim1=1, dim2=2).sum(1) - volume


def exact_kl(function: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """½‖f‖² + Tr J − log|det(I + J)| at each noise [B, ...]: unbiased samples of the KL, in nats.

    Builds the whole Jacobian with one backward pass per dimension: for noises of up to a few hundred dimensions.

    Args:
        function: f of a batch [1, ...]; differentiable.
        noise: [B, ...], drawn from N(0, I).
    """
    terms = []
    for x in noise.detach().split(1):
        residual = function(x.requires_grad_()) + 0 * x  # a constant f has a graph then
        terms.append(l2_kl(residual) + kl_gap(residual.flatten(1), x))
    return torch.cat(terms)
