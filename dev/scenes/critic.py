"""The few-step generator's adversary, initialised from the flow: tells true latents of a caption from drawn ones.

As in adversarial post-training (Lin et al. 2025, arXiv 2501.08316) the critic starts as the flow model itself, here its
way down and its middle, with a new head. The game is relativistic, pair by pair (Jolicoeur-Martineau 2018, arXiv
1807.00734), and the critic also learns that a true picture of another caption is false.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

NUDGE = 0.1  # deviation of the step over which the critic's slope is taken
NOISIEST = 400  # the critic looks at latents with noise of up to this timestep


class Critic(nn.Module):
    """Noised latents [B, 4, 8, 8] at t [B] and text states [B, T, D] -> how true each cell looks [B, 4, 4]."""

    def __init__(self, unet: Any):
        super().__init__()
        copied = deepcopy(unet)
        self.time_proj, self.time_embedding = copied.time_proj, copied.time_embedding
        self.enter, self.down, self.middle = copied.conv_in, copied.down_blocks, copied.mid_block
        width = copied.config.block_out_channels[-1]
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 1, 1))

    def forward(self, noised: Tensor, t: Tensor, states: Tensor) -> Tensor:
        time = self.time_embedding(self.time_proj(t).to(noised))
        seen = self.enter(noised)
        for block in self.down:
            seen, _ = block(seen, time)
        return self.leave(self.middle(seen, time, encoder_hidden_states=states))[:, 0].float()


def critic_loss(critic: Critic, true: Tensor, drawn: Tensor, t: Tensor, states: Tensor, others: Tensor) -> Tensor:
    """What the critic learns from: noised true and drawn latents at t of the same captions, and other captions.

    Its slope is held down at both ends by differences over a nudge, in place of second derivatives (arXiv 2501.08316).
    """
    both, when, asked = torch.cat([true, drawn]), torch.cat([t, t]), torch.cat([states, states])
    looks = critic(both, when, asked)
    truly, falsely = looks.chunk(2)
    slope = critic(both + NUDGE * torch.randn_like(both), when, asked) - looks
    misread = critic(true, t, others)
    return (
        softplus(falsely - truly).mean() + 0.5 * softplus(misread - truly).mean() + 0.3 * slope.square().mean() / NUDGE
    )


def critic_pull(critic: Critic, true: Tensor, drawn: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """The generator's side of the game, a loss to be lowered."""
    with torch.no_grad():
        truly = critic(true, t, states)
    return softplus(truly - critic(drawn, t, states)).mean()
