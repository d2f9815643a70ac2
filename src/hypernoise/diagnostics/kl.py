"""How far a noise network moves the noise: KL(law of x + f(x) || N(0, I)), with its error and its cost.

    KL = E[ ½‖f‖² + Tr J − log|det(I + J)| ],   J the Jacobian of f at x ~ N(0, I)

(arXiv 2508.09968.) Equality holds if x ↦ x + f(x) is injective, which Lip(f) < 1 guarantees. If it folds
noises onto each other, the right side is only a lower bound: it counts the density of one of the noises
at each point instead of their sum. It is infinite where I + J is singular at noises of positive probability.

The objective keeps the first term; the rest is the *gap*. log|det| comes from

    exact      the whole Jacobian and its LU: d backward passes per noise; for up to a few thousand dimensions
    arnoldi    Tr log(I + J) by a random probe (Hutchinson 1990) in a Krylov space of Jᵀ: 8 backward passes per noise;
               works for Lip(f) ≥ 1, but needs eigenvalues of I + J away from 0

A network that knows its own KL (`SpectralNoise`) gives that instead.

Tr J uses the same probe as log|det|. Their first orders then cancel, and the remaining error is of second order in J,
like the gap itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from scipy.linalg import logm
from torch import Tensor

from hypernoise.diagnostics.lipschitz import Linearised, jacobian, per_sample
from hypernoise.errors import InputError, unknown
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.objective import l2_kl

STEPS = 8  # Arnoldi iterations
Method = Literal["exact", "arnoldi"]


@dataclass(frozen=True)
class Estimate:
    """A mean over noises and its standard error (NaN for a single noise), in nats."""

    value: float
    error: float

    @classmethod
    def of(cls, samples: Tensor) -> Estimate:
        error = samples.std().item() / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
        return cls(samples.mean().item(), error)

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


@dataclass(frozen=True)
class KLReport:
    """The result of `estimate_kl`, in nats.

    kl: the whole KL if x + f(x) is injective (for which Lip(f) < 1 suffices); otherwise a lower bound.
    l2: E[½‖f‖²], the objective's term. gap: kl − l2, with its own, smaller error.
    own: the KL is the network's own, exact; x + f never folds.
    """

    kl: Estimate
    l2: Estimate
    gap: Estimate
    own: bool = False


def estimate_kl(
    network: NoiseNetwork,
    noise: Tensor,
    condition: Condition,
    *,
    method: Method | None = None,
    batch: int = 16,
    seed: int = 0,
) -> KLReport:
    """Estimates KL(law of x + f(x, c) || N(0, I)), averaged over the conditions c.

    Args:
        noise: [B, *noise_shape], drawn from N(0, I); more noises reduce the errors.
        condition: one per noise.
        method: see the top of this module; None: the network's own KL if it is exact, else "arnoldi".
        batch: noises in memory at once; "exact" also keeps their Jacobians.
        seed: for the probes.

    Raises:
        InputError: an unknown method, or a residual that is not finite.
    """
    if method is not None and method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    if not len(noise) or batch < 1:
        raise InputError(f"estimate_kl needs a noise and a batch, not {len(noise)} and {batch}")
    own, draw = method is None and network.never_folds, torch.Generator().manual_seed(seed)
    l2s, gaps = [], []
    for start in range(0, len(noise), batch):
        x, c = noise[start : start + batch], condition[start : start + batch]
        linear = Linearised(partial(network, condition=c), x)
        if not linear.residual.isfinite().all():
            raise InputError("the residual is not finite: the noise network has non-finite weights or outputs")
        l2s.append(l2_kl(linear.residual).cpu().double())
        if own:
            gaps.append(network.kl(x, c).detach().cpu().double() - l2s[-1])
        else:
            gaps.append(_exact(linear) if method == "exact" else _arnoldi(linear, draw))
    l2, gap = torch.cat(l2s), torch.cat(gaps)
    return KLReport(Estimate.of(l2 + gap), Estimate.of(l2), Estimate.of(gap), own)


def _exact(linear: Linearised) -> Tensor:
    """Tr J − log|det(I + J)| [B]."""
    j = jacobian(linear)
    volume = torch.linalg.slogdet(torch.eye(j.shape[-1], dtype=j.dtype) + j).logabsdet
    return j.diagonal(dim1=1, dim2=2).sum(1) - volume


def _arnoldi(linear: Linearised, draw: torch.Generator) -> Tensor:
    """`_exact`'s, estimated: vᵀ log(I + Jᵀ) v of a random v from the Hessenberg matrix of Jᵀ in v's Krylov space."""
    like = linear.noise
    probe = (2 * torch.randint(0, 2, like.shape, generator=draw) - 1).to(like)  # ±1: E[vvᵀ] = I at least variance
    size, flat = probe[0].numel(), torch.finfo(probe.dtype).eps
    steps = min(STEPS, size)
    basis = [probe / math.sqrt(size)]
    hessenberg = torch.zeros(len(probe), steps + 1, steps, dtype=torch.float64)
    for k in range(steps):
        image = linear.vjp(basis[k])
        for _ in range(2):  # once is not enough in fp32
            for i, vector in enumerate(basis):
                share = _dot(vector, image)
                hessenberg[:, i, k] += share
                image = image - per_sample(share, image) * vector
        norm = _dot(image, image).sqrt()
        alive = norm > 10 * flat  # else the space is exhausted: zeros from here on
        hessenberg[:, k + 1, k] = torch.where(alive, norm, 0.0)
        basis.append(image * per_sample(torch.where(alive, 1 / norm, 0.0), image))
    whole = torch.eye(steps).double() + hessenberg[:, :steps]
    least = torch.linalg.eigvals(whole).abs().amin(-1)  # near an eigenvalue of 0 the log is −∞
    pairs = zip(whole.numpy(), least.tolist(), strict=True)
    logs = [np.asarray(logm(w))[0, 0].real if smallest > flat else -math.inf for w, smallest in pairs]
    return size * hessenberg[:, 0, 0] - size * torch.tensor(logs, dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [B], in fp64 on the CPU (not every accelerator supports it)."""
    return (a.flatten(1).cpu().double() * b.flatten(1).cpu().double()).sum(1)
