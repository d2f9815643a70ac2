"""A tiny pipeline of every family, from the real diffusers and transformers classes, offline in milliseconds.

Each is its published model in small: the same classes, scheduler settings and conventions, at 8 × 8 latents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from dev.scenes.networks import build_tokenizer
from tests.conftest import build_sd_pipeline

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"  # the text alone: the chat marks are the model's


def words(folder: Path, length: int = 600) -> Any:
    tokenizer = build_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = length
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def clip(tokenizer: Any, cls: Any = CLIPTextModel, width: int = 8) -> Any:
    marks = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    size = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=8)
    return cls(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **size, **marks))


def t5(tokenizer: Any) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    )


def decoder_only(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def kl(channels: int = 4, cls: Any = AutoencoderKL, **more: Any) -> Any:
    return cls(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def flow(**more: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **more)


def sdxl(folder: Path) -> Any:
    first, second = words(folder, 24), words(folder, 24)
    return StableDiffusionXLPipeline(
        vae=kl(scaling_factor=1.0),
        text_encoder=clip(first),
        text_encoder_2=clip(second, CLIPTextModelWithProjection),
        tokenizer=first,
        tokenizer_2=second,
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_head_dim=(2, 2),
            transformer_layers_per_block=(1, 1),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 8,
            cross_attention_dim=16,
            norm_num_groups=4,
        ),
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
        add_watermarker=False,
    )


def sana(folder: Path) -> Any:
    tokenizer = words(folder)
    return SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(Gemma2Config(**decoder_only(tokenizer))),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="stride_conv",
            scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=16,
            qk_norm="rms_norm_across_heads",
            guidance_embeds=True,
            timestep_scale=1000.0,
        ),
        scheduler=SCMScheduler(),
    )


def flux(folder: Path) -> Any:
    first, second = words(folder, 24), words(folder)
    return FluxPipeline(
        scheduler=flow(shift=1.0),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(first),
        tokenizer=first,
        text_encoder_2=t5(second),
        tokenizer_2=second,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def sd3(folder: Path) -> Any:
    one, two, three = words(folder, 24), words(folder, 24), words(folder)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=8,
            pooled_projection_dim=16,
            out_channels=16,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        ),
        scheduler=flow(shift=3.0),
        vae=kl(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(one, CLIPTextModelWithProjection),
        tokenizer=one,
        text_encoder_2=clip(two, CLIPTextModelWithProjection),
        tokenizer_2=two,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(three), d_model=32, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
        ),
        tokenizer_3=three,
    )


def pixart(folder: Path) -> Any:
    tokenizer = words(folder)
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=kl(scaling_factor=0.18215),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=8,
            sample_size=8,
            caption_channels=8,
        ),
        scheduler=DDPMScheduler(timestep_spacing="trailing"),
    )


def z_image(folder: Path) -> Any:
    tokenizer = words(folder)
    return ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**decoder_only(tokenizer))),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[600, 32, 32],
        ),
    )


def flux2_klein(folder: Path) -> Any:
    tokenizer = words(folder)
    encoder = Qwen3ForCausalLM(Qwen3Config(**{**decoder_only(tokenizer), "num_hidden_layers": 28}))
    vae = kl(4, AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()  # what un-normalises the latents: not the identity
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        is_distilled=True,
    )


def qwen_vae() -> Any:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 2.0, 1.5, 0.5],
    )


def krea2(folder: Path) -> Any:
    tokenizer = words(folder)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e6}
    config = Qwen3VLConfig(
        text_config=decoder_only(tokenizer, rope_parameters=rope, max_position_embeddings=2048),
        vision_config=dict(
            depth=1,
            hidden_size=8,
            intermediate_size=8,
            num_heads=2,
            out_hidden_size=8,
            deepstack_visual_indexes=[0],
            num_position_embeddings=16,
        ),
    )
    pipeline = Krea2Pipeline(
        scheduler=flow(shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=qwen_vae(),
        text_encoder=Qwen3VLModel(config),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(2, 2, 4),
        ),
        text_encoder_select_layers=(1, 2),
        is_distilled=True,
    )
    for weight in pipeline.transformer.parameters():  # else a prompt hardly counts beside the template's many tokens
        if weight.ndim > 1:
            weight.data.mul_(2)
    return pipeline


def qwen_image(folder: Path) -> Any:
    tokenizer = words(folder)
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 0]}
    config = Qwen2_5_VLConfig(
        text_config=decoder_only(tokenizer, rope_parameters=rope, rope_theta=1e6, max_position_embeddings=2048),
        vision_config=dict(
            depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=8, fullatt_block_indexes=[0]
        ),
        pad_token_id=tokenizer.pad_token_id,
    )
    return QwenImagePipeline(
        scheduler=flow(shift=1.0, use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4),
        ),
    )


BUILD: dict[str, Callable[[Path], Any]] = {
    "StableDiffusionPipeline": build_sd_pipeline,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusion3Pipeline": sd3,
    "SanaSprintPipeline": sana,
    "PixArtAlphaPipeline": pixart,
    "FluxPipeline": flux,
    "Flux2KleinPipeline": flux2_klein,
    "Krea2Pipeline": krea2,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
}
SIZES = {"SanaSprintPipeline": (32, 32)}  # its pipeline takes multiples of 32 alone


def size_of(family: str) -> tuple[int, int]:
    return SIZES.get(family, (16, 16))


def build_pipeline(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The family's tiny pipeline with all weights random, so that no zero-initialised layer hides a mistake."""
    torch.manual_seed(seed)
    pipeline = BUILD[family](folder)
    draw = torch.Generator().manual_seed(seed)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
            with torch.no_grad():
                for parameter in part.parameters():
                    if parameter.ndim < 2 or not parameter.any():
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(dtype)
