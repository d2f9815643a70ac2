"""Stage 1b: the decoder alone, trained on against latents as wrong as a generator's.

python -m dev.scenes.decoder --output runs/scenes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file

from dev.scenes.autoencoder import AutoencoderConfig, random_pictures, train_autoencoder
from dev.scenes.training import TrainState


@dataclass(frozen=True)
class DecoderConfig:
    output: Path = Path("runs/scenes")
    seed: int = 1
    device: str = "cpu"
    steps: int = 2500
    lr: float = 2e-3
    batch_size: int = 32
    latent_noise: float = 0.35
    """Greatest deviation of the noise on a picture's latents; each picture draws its own."""
    checkpoint_every: int = 250


def train_decoder(config: DecoderConfig) -> None:
    autoencoder = train_autoencoder(AutoencoderConfig(output=config.output))
    state = TrainState(config, "decoder", [autoencoder.decoder.requires_grad_(True)], config.lr, config.steps)
    while state.step < config.steps:
        pictures = random_pictures(config.seed, state.step, config.batch_size)
        with torch.no_grad():
            latents = autoencoder.encode(pictures).latents
            wrong = config.latent_noise * torch.rand(len(latents), 1, 1, 1)
            latents = latents + wrong * torch.randn_like(latents)
        with state.autocast():
            decoded = autoencoder.decode(latents).sample
        error = decoded.float() - pictures
        state.update(
            error.abs().mean() + 0.3 * error.square().mean(), {"mse": error.square().mean(), "l1": error.abs().mean()}
        )
    state.load_average()
    save_file(autoencoder.state_dict(), config.output / "autoencoder-final.safetensors")


if __name__ == "__main__":
    train_decoder(tyro.cli(DecoderConfig, description=__doc__))
