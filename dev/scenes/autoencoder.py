"""Stage 1: an AutoencoderTiny of drawn pictures, 64 x 64 pixels to 8 x 8 x 4 latents of mean 0 and deviation 1.

python -m dev.scenes.autoencoder --output runs/scenes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from dev.scenes.drawing import draw, sample_scene
from dev.scenes.lessons import taught_request
from dev.scenes.training import StageConfig, TrainState
from hypernoise.commands.flags import parse

SHARES = [0.1, 0.15, 0.25, 0.15, 0.15, 0.2]  # of the categories, in world.CATEGORIES' order


@dataclass(frozen=True)
class AutoencoderConfig(StageConfig):
    steps: int = 4000
    lr: float = 3e-3
    batch_size: int = 32
    latent_noise: float = 0.1
    """Deviation of the noise that the decoder learns to ignore: about what a generator's latents are wrong by."""
    checkpoint_every: int = 500


def build_autoencoder(decoder_blocks: tuple[int, ...] = (3, 3, 1, 0)) -> Any:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(16, 16, 16, 16),
        num_encoder_blocks=(0, 0, 2, 3),
        num_decoder_blocks=decoder_blocks,
        latent_channels=4,
    )


def random_pictures(seed: int, step: int, count: int) -> Tensor:
    """Pictures [count, 3, H, W] in [-1, 1] of random training requests, a function of (seed, step)."""
    rng = np.random.default_rng([seed, 1, step])
    drawn = [draw(sample_scene(taught_request(rng, SHARES), rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1


def train_autoencoder(config: AutoencoderConfig) -> Any:
    """The trained autoencoder, frozen; found again where it is finished."""
    torch.manual_seed(config.seed)
    autoencoder = build_autoencoder().to(config.device)
    done = config.output / "autoencoder.safetensors"
    if done.exists():
        autoencoder.load_state_dict(load_file(done))
        return autoencoder.requires_grad_(False).eval()
    state = TrainState(config, "autoencoder", [autoencoder], config.lr, config.steps)
    while state.step < config.steps:
        pictures = random_pictures(config.seed, state.step, config.batch_size).to(config.device)
        with state.autocast():
            latents = autoencoder.encode(pictures).latents.float()
            mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
            decoded = autoencoder.decode(latents + config.latent_noise * torch.randn_like(latents)).sample
        error = decoded.float() - pictures
        normal = mean.square().mean() + (deviation - 1).square().mean()
        state.update(
            error.square().mean() + 0.3 * error.abs().mean() + 0.1 * normal,
            {"mse": error.square().mean(), "normal": normal},
        )
    state.load_average()
    save_file(autoencoder.state_dict(), done)
    return autoencoder.requires_grad_(False).eval()


if __name__ == "__main__":
    settings = parse(AutoencoderConfig)
    settings.output.mkdir(parents=True, exist_ok=True)
    train_autoencoder(settings)
