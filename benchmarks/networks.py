"""The generators and rewards of the benchmarks: the published classes, small, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    EulerDiscreteScheduler,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from dev.scenes.networks import build_tokenizer
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import Memory
from hypernoise.generators.registry import load_generator
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.ensemble import WeightedSum

PROMPTS = [
    f"{count} {color} {shape}" for count in ("a", "two") for color in ("red", "blue") for shape in ("ring", "cross")
]
REWARD = {"redness": 20.0, "clip": 1.0}  # weights


def build(size: str, folder: Path, memory: Memory, dtype: torch.dtype) -> DiffusionGenerator:
    """A frozen generator, the same for every variant except for memory options and precision."""
    if size == "scenes":
        return load_generator("scenes", device="cpu", memory=memory, dtype=dtype)
    torch.manual_seed(0)
    pipeline, call = {"tiny": stable_diffusion, "small": sana}[size](folder)
    pipeline.set_progress_bar_config(disable=True)
    if dtype != torch.float32:
        pipeline.to(dtype)
    return DiffusionGenerator(pipeline, name=size, memory=memory, call=call)


def reward_of(name: str, folder: Path) -> WeightedSum:
    weights = {name: REWARD[name]}
    if name == "redness":
        return WeightedSum(weights)
    tokenizer = build_tokenizer(folder / "reward")
    torch.manual_seed(1)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    shape: dict[str, Any] = {"text_config": text, "vision_config": {**size, "patch_size": 32, "image_size": 224}}
    return WeightedSum(weights, {"clip": ClipReward("clip", CLIPModel(CLIPConfig(**shape)), tokenizer)})


def sana(folder: Path) -> tuple[Any, dict[str, Any]]:
    """SANA-Sprint's layout at 256 px. The text encoder relates to the transformer like Gemma-2-2B to the 0.6 B one, and
    the prompt's tokens to the picture's like 300 to 1024."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = 600
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    gemma = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=128,
    )
    stages = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = AutoencoderDC(
        latent_channels=32,
        attention_head_dim=16,
        encoder_block_types=stages,
        decoder_block_types=stages,
        encoder_block_out_channels=(16, 32, 64, 64, 128, 128),
        decoder_block_out_channels=(16, 32, 64, 64, 128, 128),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=32,
        num_cross_attention_heads=8,
        cross_attention_head_dim=32,
        cross_attention_dim=256,
        caption_channels=512,
        patch_size=1,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
        timestep_scale=1000.0,
    )
    pipeline = SanaSprintPipeline(
        tokenizer=tokenizer, text_encoder=Gemma2Model(gemma), vae=vae, transformer=transformer, scheduler=SCMScheduler()
    )
    return pipeline, {"max_sequence_length": 20}


def stable_diffusion(folder: Path) -> tuple[Any, dict[str, Any]]:
    """SD-Turbo's layout at 16 px."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    return pipeline, {}
