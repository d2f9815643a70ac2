"""Stage 5: the generator's pictures are matched to the flow's in distribution.

    python -m dev.scenes.match --output runs/scenes

Distillation keeps the flow's answer to each noise, and a small network blends those it cannot tell apart. Distribution
matching (DMD: Yin et al. 2023, arXiv 2311.18828; DMD2: 2024, arXiv 2405.14867) only asks for pictures that the flow
finds likely: it moves each to where the flow's score and the score of the generator's own pictures agree. The latter is
a second denoiser's, which starts as the flow and learns from what the generator draws in one and in several steps.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from dev.scenes import networks
from dev.scenes.flow import TEXT_ENCODER, finished_flow
from dev.scenes.latents import read_latents
from dev.scenes.path import LAST, EulerPath
from dev.scenes.training import StageConfig, TrainState, load_stage
from hypernoise.commands.flags import parse


@dataclass(frozen=True)
class MatchConfig(StageConfig):
    text_encoder: Path = TEXT_ENCODER
    start_from: Path | None = None
    """A pipeline directory whose UNet is gone on from, in the place of the distilled one."""
    steps: int = 7000
    lr: float = 3e-4
    own_rate: float = 2.7
    """The second denoiser's learning rate, as a multiple of the generator's."""
    lead: int = 250
    """Steps in which the second denoiser learns alone."""
    batch_size: int = 48
    several_share: float = 0.4
    """Share of the pictures that continue a drawing of 2, 4 or 8 steps; the rest are one-step answers."""
    least_time: int = 20
    greatest_time: int = 960
    """Timesteps at which the two scores are compared, drawn evenly."""


def train_matched(config: MatchConfig) -> None:
    torch.manual_seed(config.seed)
    flow, encode = finished_flow(config.output, config.text_encoder)
    unet, own = deepcopy(flow), deepcopy(flow)
    distilled = config.output / "generator.safetensors"
    if config.start_from:
        distilled = config.start_from / "unet" / "diffusion_pytorch_model.safetensors"
    unet.load_state_dict(load_stage(distilled))
    for model in (unet, own):
        model.time_embedding.cond_proj.requires_grad_(False)
    flow.requires_grad_(False)
    path = EulerPath(networks.build_scheduler(), config.device)
    captions = read_latents(config.output)[1]
    encode.learn(captions)
    state = TrainState(config, "matched", [unet, own], config.lr, config.steps, rates=(1.0, config.own_rate))
    several = round(config.several_share * config.batch_size)
    last = torch.full((config.batch_size,), LAST)
    while state.step < config.steps:
        rng = torch.Generator().manual_seed(config.seed * 10**6 + state.step)
        embeds = encode([captions[i] for i in torch.randint(len(captions), (config.batch_size,), generator=rng)])
        noise = torch.randn(config.batch_size, networks.CHANNELS, networks.CELLS, networks.CELLS, generator=rng)
        with state.autocast():
            first = path.answer(unet, path.scaled(path.sigma[LAST] * noise, last), last, embeds)
            way, when = path.rollout(unet, noise[:several], first[:several].detach(), embeds[:several], rng)
            drawn = torch.cat([path.answer(unet, way, when, embeds[:several]), first[several:]])

        # the generator: a step from its own pictures' score towards the flow's
        t = torch.randint(config.least_time, config.greatest_time, (config.batch_size,), generator=rng)
        noised = path.noised(drawn.detach(), torch.randn(drawn.shape, generator=rng), t)
        with torch.no_grad(), state.autocast():
            true, false = (path.answer(model, noised, t, embeds) for model in (flow, own))
        scale = (drawn.detach() - true).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.02)
        pull = (drawn * ((false - true) / scale)).mean()

        # the second denoiser: the flow's own loss, on what the generator draws
        t = torch.randint(LAST + 1, (config.batch_size,), generator=rng)
        with state.autocast():
            seen = path.answer(own, path.noised(drawn.detach(), torch.randn(drawn.shape, generator=rng), t), t, embeds)
        error = (seen - drawn.detach()).square().mean((1, 2, 3))
        sigma = path.sigma[t]
        denoised = (error * (sigma.square() + 1) / sigma.square()).clamp(max=100).mean()
        state.optimizer.param_groups[0]["rate"] = float(state.step >= config.lead)
        state.update(pull + denoised, {"gap": (false - true).square().mean(), "denoised": denoised})
    state.load_average()
    save_file(unet.state_dict(), config.output / "matched.safetensors")


if __name__ == "__main__":
    train_matched(parse(MatchConfig))
