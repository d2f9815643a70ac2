"""The generator's adversary: tells a true picture of a caption from the generator's answer, in latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hypernoise.scenes.coupling import CHANNELS

WIDTH = 64
BLUR = 0.2  # deviation of the noise over what it sees: what is fainter than that is no picture's fault
NUDGE = 0.1  # deviation of the step over which its slope is taken


class Critic(nn.Module):
    """Latents [B, 16, 8, 8] and caption states [B, T, D] -> how true each cell looks [B, 1, 8, 8]."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(_block() for _ in range(3))
        self.read = nn.MultiheadAttention(WIDTH, 4, kdim=states, vdim=states, batch_first=True)
        self.leave = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, latents: Tensor, states: Tensor) -> Tensor:
        seen = self.enter(latents)
        for i, block in enumerate(self.blocks):
            seen = seen + block(seen)
            if i == 0:
                cells = seen.flatten(2).transpose(1, 2)
                asked = self.read(cells, states, states, need_weights=False)[0]
                seen = seen + asked.transpose(1, 2).unflatten(2, seen.shape[2:])
        return self.leave(seen).to(self.leave.weight.dtype)  # autocast's bfloat16 is too coarse for differences


def _block() -> nn.Module:
    first, second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
    return nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), first, nn.SiLU(), second)


def adversarial(
    critic: nn.Module, answer: Tensor, true: Tensor, states: Tensor, own: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """What to add to the generator's loss, and the critic's loss, which is a part of it.

    Relativistic, pair by pair (Jolicoeur-Martineau 2018, arXiv 1807.00734), with the critic's slope held down at
    both ends, by differences over a nudge (Lin et al. 2025, arXiv 2501.08316) in place of second derivatives.

    Args:
        answer, true: [B, 16, 8, 8] of the same captions, whose states are [B, T, D].
        own: gradient of the generator's own loss in `answer`.
        strength: the critic pulls the answers so many times as hard as that.
    """
    states, false = states.detach(), answer.detach().requires_grad_()
    blurred = torch.cat([true, false])
    blurred = blurred + BLUR * torch.randn_like(blurred)
    both = torch.cat([states, states])
    looks = critic(blurred, both)
    truly, falsely = looks.chunk(2)
    (pull,) = torch.autograd.grad(softplus(truly - falsely).mean(), false, retain_graph=True)
    slope = critic((blurred + NUDGE * torch.randn_like(blurred)).detach(), both) - looks
    loss = softplus(falsely - truly).mean() + slope.square().mean()
    pull = pull * (strength * own.norm() / pull.norm().clamp(min=1e-12))
    return loss + (answer * pull).sum(), loss
