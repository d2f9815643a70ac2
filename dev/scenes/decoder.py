"""Stage 1b, after the flow: the decoder is grown, and trained on against latents as wrong as a denoiser's.

    python -m dev.scenes.decoder --output runs/scenes

True latents are noised and denoised by the flow in one step, which leaves in them the errors that a generator makes,
and the decoder learns to draw the true picture all the same. The encoder, and so what the generator learns from, stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from safetensors.torch import save_file
from torch import nn

from dev.scenes import networks
from dev.scenes.autoencoder import AutoencoderConfig, build_autoencoder, train_autoencoder
from dev.scenes.drawing import draw
from dev.scenes.flow import TEXT_ENCODER, finished_flow
from dev.scenes.layout import taught_scene
from dev.scenes.path import EulerPath
from dev.scenes.training import StageConfig, TrainState
from hypernoise.commands.flags import parse

BLOCKS = (6, 5, 1, 0)  # three more at 8 x 8 and two at 16 x 16, where they are cheap


@dataclass(frozen=True)
class DecoderConfig(StageConfig):
    text_encoder: Path = TEXT_ENCODER
    start_from: Path | None = None
    """A pipeline directory whose decoder is gone on from, in the place of the autoencoder's."""
    seed: int = 1
    steps: int = 1600
    lr: float = 1.5e-3
    batch_size: int = 32
    least_time: int = 50
    greatest_time: int = 600
    """Timesteps at which latents are denoised, drawn evenly: sigma 0.05 to 1.3."""


def train_decoder(config: DecoderConfig) -> None:
    torch.manual_seed(config.seed)
    first = train_autoencoder(AutoencoderConfig(output=config.output))
    autoencoder = grown(first)
    if config.start_from:
        trained = AutoencoderTiny.from_pretrained(config.start_from / "vae").float()
        autoencoder.decoder.load_state_dict(trained.decoder.state_dict())
    unet, encode = finished_flow(config.output, config.text_encoder)
    unet.requires_grad_(False)
    path = EulerPath(networks.build_scheduler(), config.device)
    state = TrainState(config, "decoder", [autoencoder.decoder.requires_grad_(True)], config.lr, config.steps)
    while state.step < config.steps:
        rng = np.random.default_rng([config.seed, 5, state.step])
        taught = [taught_scene(rng) for _ in range(config.batch_size)]
        drawn = np.stack([draw(scene) for _, scene in taught])
        pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
        t = torch.from_numpy(rng.integers(config.least_time, config.greatest_time, config.batch_size))
        noise = torch.from_numpy(rng.standard_normal((config.batch_size, 4, 8, 8), np.float32))
        captions = [request.caption for request, _ in taught]
        encode.learn(captions)
        with torch.no_grad(), state.autocast():
            latents = first.encode(pictures).latents.float()
            latents = path.answer(unet, path.noised(latents, noise, t), t, encode(captions))
        with state.autocast():
            decoded = autoencoder.decode(latents).sample
        error = decoded.float() - pictures
        l1, mse = error.abs().mean(), error.square().mean()
        state.update(l1 + 0.3 * mse, {"l1": l1, "mse": mse})
    state.load_average()
    save_file(autoencoder.state_dict(), config.output / "autoencoder-final.safetensors")


def grown(first: Any) -> Any:
    """The autoencoder with `BLOCKS` in its decoder, which decodes as before: new blocks begin as the identity."""
    autoencoder = build_autoencoder(BLOCKS)
    autoencoder.encoder.load_state_dict(first.encoder.state_dict())
    kept = iter(_stages(first.decoder))
    for stage in _stages(autoencoder.decoder):
        old = next(kept)
        for number, layer in enumerate(stage):
            if number < len(old):
                layer.load_state_dict(old[number].state_dict())
            else:
                nn.init.zeros_(layer.conv[-1].weight)  # its input is not negative: ReLU keeps it
                nn.init.zeros_(layer.conv[-1].bias)
    return autoencoder.requires_grad_(False)


def _stages(decoder: Any) -> list[list[Any]]:
    """The decoder's layers, each run of blocks as one entry."""
    stages: list[list[Any]] = []
    for layer in decoder.layers:
        block = isinstance(layer, AutoencoderTinyBlock)
        if block and stages and isinstance(stages[-1][0], AutoencoderTinyBlock):
            stages[-1].append(layer)
        else:
            stages.append([layer])
    return stages


if __name__ == "__main__":
    train_decoder(parse(DecoderConfig))
