"""The configurations of the preset generators, as their repositories publish them, so that a plan needs no network.

Written from the config.json files of each repository; the parameter counts that follow from them are checked against
published ones by tests/planning/test_configurations.py. What a table leaves out is the class's default in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Component:
    """A class of diffusers and its configuration."""

    cls: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """What a pipeline is built from: its networks, and its text encoders by name and number of parameters."""

    denoiser: Component
    vae: Component
    scheduler: Component
    text_encoders: dict[str, int]


CLIP_L, CLIP_BIGG, CLIP_H = 123_060_480, 694_659_840, 340_387_840
T5_XXL, GEMMA2_2B, QWEN3_4B, QWEN25_VL_7B = 4_762_310_656, 2_614_341_888, 4_022_468_096, 8_292_166_656

_SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_WIDE_VAE = {**_SD_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_FLUX_VAE = Component("AutoencoderKL", {**_WIDE_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159})
_DC_VAE = Component(
    "AutoencoderDC",
    {
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    },
)
_SANA = {
    "attention_head_dim": 32,
    "caption_channels": 2304,
    "guidance_embeds": True,
    "qk_norm": "rms_norm_across_heads",
    "timestep_scale": 1000.0,
    "sample_size": 32,
}
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # trailing does not use it, but diffusers warns without it
}


def _flow(**config: Any) -> Component:
    return Component("FlowMatchEulerDiscreteScheduler", config)


CONFIGURATIONS: dict[str, Configuration] = {
    "sd-turbo": Configuration(
        Component(
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "attention_head_dim": [5, 10, 20, 20],
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
            },
        ),
        Component("AutoencoderKL", {**_SD_VAE, "scaling_factor": 0.18215}),
        Component("EulerDiscreteScheduler", _BETAS),
        {"text_encoder": CLIP_H},
    ),
    "sdxl-turbo": Configuration(
        Component(
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        Component("AutoencoderKL", {**_SD_VAE, "scaling_factor": 0.13025}),
        Component("EulerAncestralDiscreteScheduler", _BETAS),
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIGG},
    ),
    "sana-sprint-0.6b": Configuration(
        Component(
            "SanaTransformer2DModel",
            {
                **_SANA,
                "num_layers": 28,
                "num_attention_heads": 36,
                "num_cross_attention_heads": 16,
                "cross_attention_head_dim": 72,
                "cross_attention_dim": 1152,
            },
        ),
        _DC_VAE,
        Component("SCMScheduler"),
        {"text_encoder": GEMMA2_2B},
    ),
    "sana-sprint-1.6b": Configuration(
        Component("SanaTransformer2DModel", {**_SANA, "num_layers": 20}),
        _DC_VAE,
        Component("SCMScheduler"),
        {"text_encoder": GEMMA2_2B},
    ),
    "flux-schnell": Configuration(
        Component("FluxTransformer2DModel"),
        _FLUX_VAE,
        _flow(shift=1.0),
        {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL},
    ),
    "sd3.5-large-turbo": Configuration(
        Component(
            "SD3Transformer2DModel",
            {
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
                "qk_norm": "rms_norm",
            },
        ),
        Component("AutoencoderKL", {**_WIDE_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        _flow(shift=3.0),
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIGG, "text_encoder_3": T5_XXL},
    ),
    "pixart-dmd": Configuration(
        Component("PixArtTransformer2DModel", {"sample_size": 64, "caption_channels": 4096}),
        Component("AutoencoderKL", {**_SD_VAE, "scaling_factor": 0.18215}),
        Component("DDPMScheduler"),
        {"text_encoder": T5_XXL},
    ),
    "z-image-turbo": Configuration(
        Component("ZImageTransformer2DModel", {"axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]}),
        _FLUX_VAE,
        _flow(shift=3.0),
        {"text_encoder": QWEN3_4B},
    ),
    "flux2-klein-4b": Configuration(
        Component(
            "Flux2Transformer2DModel",
            {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
        ),
        Component("AutoencoderKLFlux2"),
        _flow(shift=3.0, use_dynamic_shifting=True),
        {"text_encoder": QWEN3_4B},
    ),
    "qwen-image-lightning": Configuration(
        Component("QwenImageTransformer2DModel"),
        Component("AutoencoderKLQwenImage"),
        _flow(shift=1.0, use_dynamic_shifting=True),
        {"text_encoder": QWEN25_VL_7B},
    ),
}
