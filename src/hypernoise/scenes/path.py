"""The straight line from noise to picture that the embedded generator's Euler scheduler walks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LAST = 999  # the timestep of pure noise, where one-step drawing happens
FEW_STEP_TIMES = (124, 249, 374, 499, 624, 749, 874)  # where drawing in 2, 4 or 8 steps goes on


class EulerPath:
    """Points on the line, and a v-predicting network's answer there, as EulerDiscreteScheduler has them.

    The scheduler starts at sigma_max · noise and moves straight towards the network's answer x0: at sigma
    it stands at x0 + sigma / sigma_max · (sigma_max · noise − x0), and hands the network that times
    1 / √(sigma² + 1).
    """

    def __init__(self, scheduler: Any, device: str | torch.device):
        kept = scheduler.alphas_cumprod.to(device)
        self.sigma = ((1 - kept) / kept).sqrt()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The network's input at timesteps t [B] on the way from noise to x0, both [B, C, H, W]."""
        sigma = self.sigma[t].view(-1, 1, 1, 1)
        return (x0 * (1 - sigma / self.sigma[LAST]) + sigma * noise) / (sigma.square() + 1).sqrt()

    def answer(self, unet: Any, noised: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """The picture x0 that the network sees in `noised`."""
        sigma = self.sigma[t].view(-1, 1, 1, 1)
        guidance = embeds.new_zeros(len(t), unet.config.time_cond_proj_dim)
        v = unet(noised, t, embeds, timestep_cond=guidance).sample.float()
        return (noised - sigma * v) / (sigma.square() + 1).sqrt()
