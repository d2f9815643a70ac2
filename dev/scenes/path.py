"""The straight line from noise to picture that the embedded generator's Euler scheduler walks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LAST = 999  # the timestep of pure noise, where one-step drawing happens
FEW_STEP_TIMES = {2: (499,), 4: (749, 499, 249), 8: (874, 749, 624, 499, 374, 249, 124)}  # where drawing goes on


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
        return self.scaled(self.onward(self.sigma[LAST] * noise, x0, torch.full_like(t, LAST), t), t)

    def onward(self, state: Tensor, x0: Tensor, t: Tensor, then: Tensor) -> Tensor:
        """Where the scheduler stands at `then` [B], having stood at `state` at t [B] and been answered x0."""
        left = (self.sigma[then] / self.sigma[t]).view(-1, 1, 1, 1)
        return x0 + left * (state - x0)

    def scaled(self, state: Tensor, t: Tensor) -> Tensor:
        """What the network is given where the scheduler stands at `state`."""
        return state / (self.sigma[t].view(-1, 1, 1, 1).square() + 1).sqrt()

    @torch.no_grad()
    def rollout(
        self, unet: Any, noise: Tensor, x0: Tensor, embeds: Tensor, drawn_from: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The network's inputs and timesteps [B] somewhere down drawings in 2, 4 or 8 steps, by its own answers.

        Each row draws its number of steps and how many of them are done; x0 are its first answers, to `noise` alone.
        """
        counts = list(FEW_STEP_TIMES)
        chosen = [counts[i] for i in torch.randint(len(counts), (len(noise),), generator=drawn_from)]
        done = torch.tensor([1 + int(torch.randint(n - 1, (1,), generator=drawn_from)) for n in chosen])
        state, t = self.sigma[LAST] * noise, torch.full((len(noise),), LAST, device=noise.device)
        for visit in range(int(done.max())):
            going = (done > visit).nonzero().flatten().to(noise.device)
            if visit:
                x0 = x0.clone()
                x0[going] = self.answer(unet, self.scaled(state[going], t[going]), t[going], embeds[going])
            then = torch.tensor([FEW_STEP_TIMES[chosen[i]][visit] for i in going], device=noise.device)
            state[going] = self.onward(state[going], x0[going], t[going], then)
            t[going] = then
        return self.scaled(state, t), t

    def answer(self, unet: Any, noised: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """The picture x0 that the network sees in `noised`."""
        sigma = self.sigma[t].view(-1, 1, 1, 1)
        guidance = embeds.new_zeros(len(t), unet.config.time_cond_proj_dim)
        v = unet(noised, t, embeds, timestep_cond=guidance).sample.float()
        return (noised - sigma * v) / (sigma.square() + 1).sqrt()
