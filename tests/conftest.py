"""Tiny pipelines from the real diffusers classes, with random weights, built offline in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hypernoise.quiet import wait_passively

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub; read when the libraries are imported
wait_passively()  # read when torch is

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dev.scenes.networks import build_tokenizer
from hypernoise.generators.diffusion import DiffusionGenerator

torch.set_num_threads(1)  # the networks here are too small to share


@pytest.fixture(autouse=True)
def no_bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mixed_precision: auto` is fp32, as on most machines: the same numbers and the same pace on every one."""
    monkeypatch.setattr("hypernoise.precision.native_bf16", lambda device: False)


def build_sd_pipeline(folder: Path, *, seed: int = 0, width: int = 8, dtype: torch.dtype = torch.float32):
    """SD-Turbo's layout at 8 x 8 latents and 16 x 16 pixels: epsilon prediction, trailing, no guidance input."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.0,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (vae, unet, text_encoder):
        module.eval()
    return pipeline.to(dtype)


@pytest.fixture
def sd_pipeline(tmp_path: Path) -> Callable[..., StableDiffusionPipeline]:
    """Builds tiny Stable Diffusion pipelines; equal arguments give equal weights.

    Each process has a folder of its own: several that build at once would read each other's half-written files.
    """
    return lambda **settings: build_sd_pipeline(tmp_path / f"pipelines-{os.getpid()}", **settings)


@pytest.fixture
def generator(sd_pipeline: Callable[..., StableDiffusionPipeline]) -> DiffusionGenerator:
    """A tiny frozen generator in fp64, where gradients can be checked to many digits."""
    return DiffusionGenerator(sd_pipeline(dtype=torch.float64), name="tiny")


def disturb(network, scale: float = 0.3, seed: int = 1) -> None:
    """Gives a new noise network, whose residual is 0, random weights as if it were trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))


class Recorded:
    """A reward that keeps the scores of each call."""

    def __init__(self, reward):
        self.reward, self.calls = reward, []

    def __call__(self, pixels, prompts):
        scores = self.reward(pixels, prompts)
        self.calls.append(scores.detach())
        return scores

    @property
    def scores(self):
        """[B, calls]"""
        return torch.stack(self.calls, 1)
