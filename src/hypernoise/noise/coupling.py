"""An invertible map of a few Gaussian coefficients, T(u; e) = u + h(u, e), with its exact KL.

RealNVP's affine couplings (Dinh et al., arXiv 1605.08803): half of the coefficients get a scale and a shift that depend
on the other half and the prompt, so the Jacobian is triangular up to order and its log-determinant is the sum of the
log-scales. Last come a scale and a shift that depend only on the prompt.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hypernoise.noise.draws import key_of
from hypernoise.objective import kl_gap

MOST = 2.0  # a layer scales by exp(-2) to exp(2): well conditioned both ways in fp32


class CouplingFlow(nn.Module):
    """T(u; e) of coefficients u [B, size] and embedded prompts e [B, width]; the identity before training.

    Args:
        size: number of coefficients.
        width: width of the embedding and the hidden layers.
        depth: number of couplings; successive ones change complementary halves. A single coefficient has none.
    """

    def __init__(self, size: int, *, width: int, depth: int):
        super().__init__()
        halves = [_half(size, layer) for layer in range(depth if size > 1 else 0)]
        self.couplings = nn.ModuleList([_Coupling(size, half, width) for half in halves])
        self.last = zeroed(nn.Linear(width, 2 * size))

    def forward(self, u: Tensor, e: Tensor) -> Tensor:
        """h [B, size]."""
        return self.terms(u, e)[0]

    def terms(self, u: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, size], log det(I + J_h) [B], and a term [B] whose mean over u ~ N(0, I) is that of u·h.

        The last layer's share of u·h is replaced by its known mean: E[u·(s·u + t)] = Σ s. Only the couplings'
        share is sampled.
        """
        moved, volume = torch.zeros_like(u), u.new_zeros(len(u))
        for coupling in self.couplings:
            now = u + moved
            log_scale, shift = coupling(now, e)  # 0 for coefficients that the coupling keeps
            moved = moved + torch.expm1(log_scale) * now + shift
            volume = volume + log_scale.sum(1)
        log_scale, shift = _scale_and_shift(self.last(e))
        h = moved + torch.expm1(log_scale) * (u + moved) + shift
        stein = torch.expm1(log_scale).sum(1) + (u * log_scale.exp() * moved).sum(1)
        return h, volume + log_scale.sum(1), stein

    def inverse(self, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """u with T(u; e) = z [B, size], and log det(I + J_h) at it [B]."""
        log_scale, shift = _scale_and_shift(self.last(e))
        u, volume = (z - shift) * torch.exp(-log_scale), log_scale.sum(1)
        for coupling in reversed(self.couplings):
            log_scale, shift = coupling(u, e)  # depends on the coefficients that it keeps
            u, volume = (u - shift) * torch.exp(-log_scale), volume + log_scale.sum(1)
        return u, volume

    def score(self, z: Tensor, e: Tensor) -> Tensor:
        """∇ log q(z) [B, size] for the density q of T(u; e), u ~ N(0, I); a constant for autograd."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            u, volume = self.inverse(z, e.detach())
            return torch.autograd.grad((-0.5 * u.square().sum(1) - volume).sum(), z)[0]

    def kl(self, u: Tensor, e: Tensor) -> Tensor:
        """½‖h‖² + u·h − log det(I + J_h) [B] at u ~ N(0, I), in nats: its mean is KL(law of T(u; e) ‖ N(0, I)).

        The value uses the known mean of u·h for the last layer's share, so it has no variance for a map that is only
        the prompt's shift. The gradient is the path gradient (Roeder et al., arXiv 1703.09194): along z = T(u) through
        log q(z) − log φ(z) with q held fixed, without the score ∇_θ log q, whose mean is 0. It is unbiased, and where T
        is optimal for a reward, the objective's gradient is 0 at every u, not only on average.
        """
        h, volume, stein = self.terms(u, e)
        value = 0.5 * h.square().sum(1) + stein - volume
        if not value.requires_grad:
            return value
        z = u + h
        path = ((self.score(z, e) + z.detach()) * z).sum(1)
        return value.detach() + path - path.detach()


class ResidualMap(nn.Module):
    """h(u; e) as an MLP, to compare: its Jacobian takes a backward pass per coefficient, and T may fold noises.

    Args: as for `CouplingFlow`; depth: number of hidden layers.
    """

    def __init__(self, size: int, *, width: int, depth: int):
        super().__init__()
        sizes = [size + width, *[width] * depth]
        self.hidden = nn.Sequential(*[nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(sizes)])
        self.last = zeroed(nn.Linear(sizes[-1], size))

    def forward(self, u: Tensor, e: Tensor) -> Tensor:
        return self.last(self.hidden(torch.cat([u, e], 1)))

    def kl(self, u: Tensor, e: Tensor) -> Tensor:
        """½‖h‖² + Tr J − log|det(I + J)| [B] at u ~ N(0, I): its mean is the KL, or a lower bound if T folds."""
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            h = self(u, e)
            value = 0.5 * h.square().sum(1) + kl_gap(h, u)
        return value if torch.is_grad_enabled() else value.detach()


class _Coupling(nn.Module):
    """The log-scale and the shift [B, size] of the coefficients `moved`, from the others and e; 0 elsewhere."""

    def __init__(self, size: int, moved: list[int], width: int):
        super().__init__()
        kept = sorted(set(range(size)) - set(moved))
        self.size = size
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.register_buffer("moved", torch.tensor(moved), persistent=False)
        self.network = nn.Sequential(
            *(nn.Linear(len(kept) + width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            zeroed(nn.Linear(width, 2 * len(moved))),
        )

    def forward(self, u: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([u.index_select(1, self.kept), e], 1)  # type: ignore[arg-type]
        none = torch.zeros_like(u)
        log_scale, shift = (none.index_copy(1, self.moved, part) for part in _scale_and_shift(self.network(seen)))  # type: ignore[arg-type]
        return log_scale, shift


def _scale_and_shift(raw: Tensor) -> tuple[Tensor, Tensor]:
    log_scale, shift = raw.chunk(2, 1)
    return MOST * torch.tanh(log_scale / MOST), shift


def _half(size: int, layer: int) -> list[int]:
    """The coefficients that a layer changes: a shuffled half, and the other half in the next layer."""
    order = sorted(range(size), key=lambda index: key_of(layer // 2, index))
    return sorted(order[size // 2 :] if layer % 2 == 0 else order[: size // 2])


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
