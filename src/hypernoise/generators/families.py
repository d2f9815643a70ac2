"""What differs between families of diffusers pipelines: one row per pipeline class, data before code.

A pipeline is driven through its own `__call__`, so a row holds no part of one: only where its denoiser is, which
arguments few-step drawing needs, and how noise is laid out. Each row was read in diffusers 0.42.1's pipeline of
that name and is held to it by tests/generators/test_families.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hypernoise.errors import InputError


def _whole(output: Any, shape: tuple[int, ...]) -> Tensor:
    """The answer is laid out as the noise is."""
    return output


def _first_channels(output: Any, shape: tuple[int, ...]) -> Tensor:
    """The first of twice as many channels; the rest is a learned variance, which drawing leaves out."""
    return output[:, : shape[1]]


def _negated_list(output: Any, shape: tuple[int, ...]) -> Tensor:
    """One [C, 1, H, W] per sample, with the sign the pipeline gives to its scheduler."""
    return -torch.stack(list(output)).squeeze(2)


def _tokens(output: Any, shape: tuple[int, ...]) -> Tensor:
    """Tokens [B, H·W, C]; as [B, C, H, W] if that is the layout asked for. Those of input images are cut off."""
    if len(shape) == 3:
        return output[:, : shape[1]]
    return output[:, : shape[2] * shape[3]].mT.reshape(shape)


def _same_at_any(steps: int) -> dict[str, Any]:
    return {}


def _scm_timesteps(steps: int) -> dict[str, Any]:
    """SANA-Sprint has a tuned middle timestep for two steps, and refuses one for any other number."""
    return {} if steps == 2 else {"intermediate_timesteps": None}


def _by_row(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return dict(tensors)


def _lists(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`prompt_embeds` as a list of the unpadded rows."""
    rows = zip(tensors["prompt_embeds"], tensors["prompt_embeds_mask"], strict=True)
    return {"prompt_embeds": [row[mask.bool()] for row, mask in rows]}


@dataclass(frozen=True)
class Family:
    """How one class of pipeline is driven.

    denoiser: attribute that holds the network f adapts.
    output_layer: name of the denoiser's last layer, whose base path f leaves out (paper, section 4).
    embeddings: `__call__` arguments that take what `encode_prompt` returns, in its order; None: not passed on.
    call: fixed `__call__` arguments of few-step drawing.
    call_at: further ones that depend on the number of steps.
    layout, patch: noise is [C, H/p, W/p] ("grid") or [H/p · W/p, C] ("tokens"), in latent pixels.
    answer: what the denoiser returns first, laid out as noise of this shape.
    arguments: a condition's tensors as `__call__` arguments.
    wide_noise: the pipeline keeps its noise in fp32 whatever its weights' dtype.
    guided_first: under classifier-free guidance, the prompt's half of a batch is the first, not the second.
    tokenizers: of the text encoder that reads the whole prompt, the first that the pipeline has.
    template: tokens, or a little more, that the pipeline puts around each prompt.
    tiny_decoder: an AutoencoderTiny can take the autoencoder's place; the pipeline reads no statistics from it.
    released: settings of the noise network that the paper's authors' training code implies, beyond its files.
    unfinished: why a pipeline of this class is not a few-step one, or None; see `few_step_doubt`.
    """

    denoiser: str
    output_layer: str
    embeddings: tuple[str | None, ...]
    call: dict[str, Any] = field(default_factory=dict)
    call_at: Callable[[int], dict[str, Any]] = _same_at_any
    layout: Literal["grid", "tokens"] = "grid"
    patch: int = 1
    answer: Callable[[Any, tuple[int, ...]], Tensor] = _whole
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _by_row
    wide_noise: bool = False
    guided_first: bool = False
    tokenizers: tuple[str, ...] = ("tokenizer",)
    template: int = 0
    tiny_decoder: bool = True
    released: Mapping[str, Any] = field(default_factory=dict)
    unfinished: Callable[[Any], str | None] = lambda pipeline: None

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        """Of one sample, for latents of height × width."""
        rows, columns = height // self.patch, width // self.patch
        return (channels, rows, columns) if self.layout == "grid" else (rows * columns, channels)


def _guidance_distilled(pipeline: Any) -> str | None:
    if pipeline.transformer.config.guidance_embeds:
        return "its transformer takes a guidance scale, as FLUX.1-dev's does, which needs 20 or more steps"
    return None


def _not_distilled(pipeline: Any) -> str | None:
    return None if pipeline.config.is_distilled else "its configuration says is_distilled: false"


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        denoiser="unet",
        output_layer="conv_out",
        embeddings=("prompt_embeds", None),
        call={"guidance_scale": 0.0},
        # ExplainableML/HyperNoise @1d5d3db, training/trainer.py, create_sdturbo_functions: the UNet is given the noise
        # itself at t = 999 (earlier commits do not train SD-Turbo)
        released={"unscaled": True},
    ),
    "StableDiffusionXLPipeline": Family(
        denoiser="unet",
        output_layer="conv_out",
        embeddings=("prompt_embeds", None, "pooled_prompt_embeds", None),
        call={"guidance_scale": 0.0},
    ),
    "StableDiffusion3Pipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", None, "pooled_prompt_embeds", None),
        call={"guidance_scale": 0.0},
        tokenizers=("tokenizer_3", "tokenizer"),
    ),
    "SanaSprintPipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", "prompt_attention_mask"),
        # guidance is an input of the network; the official code encodes prompts without the instruction, in training
        # and in sana_inference.py
        call={"guidance_scale": 4.5, "use_resolution_binning": False, "complex_human_instruction": None},
        call_at=_scm_timesteps,
        wide_noise=True,
    ),
    "PixArtAlphaPipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", "prompt_attention_mask", None, None),
        call={"guidance_scale": 1.0, "use_resolution_binning": False, "clean_caption": False},
        answer=_first_channels,
    ),
    "FluxPipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", "pooled_prompt_embeds", None),
        call={"guidance_scale": 0.0},
        layout="tokens",
        patch=2,
        answer=_tokens,
        guided_first=True,
        tokenizers=("tokenizer_2",),
        unfinished=_guidance_distilled,
    ),
    "Flux2KleinPipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", None),
        call={"guidance_scale": 1.0},
        patch=2,
        answer=_tokens,
        guided_first=True,
        template=16,
        tiny_decoder=False,
        unfinished=_not_distilled,
    ),
    "QwenImagePipeline": Family(
        denoiser="transformer",
        output_layer="proj_out",
        embeddings=("prompt_embeds", "prompt_embeds_mask"),
        call={"true_cfg_scale": 1.0},
        layout="tokens",
        patch=2,
        answer=_tokens,
        guided_first=True,
        template=8,
        tiny_decoder=False,
    ),
    "ZImagePipeline": Family(
        denoiser="transformer",
        output_layer="all_final_layer.2-1.linear",
        embeddings=("prompt_embeds", None),
        call={"guidance_scale": 0.0},
        answer=_negated_list,
        arguments=_lists,
        wide_noise=True,
        guided_first=True,
        template=16,
    ),
}


def family_of(pipeline: Any) -> Family:
    """The row of a pipeline's class, or of the nearest class it derives from."""
    for cls in type(pipeline).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise InputError(
        f"no family is known for {type(pipeline).__name__}; known: {', '.join(sorted(FAMILIES))} "
        "(add a row to hypernoise.generators.families.FAMILIES: denoiser, output layer, embeddings; "
        "docs/generators.md shows one)"
    )


def few_step_doubt(pipeline: Any) -> str | None:
    """Why one or a few steps of this pipeline would not draw a picture, as far as its configuration shows, or None.

    A few-step model is given pure noise at the last training timestep, whatever the number of steps; a scheduler
    that begins one step at another (the "leading" spacing: t = 1) hands noise to a network that expects a picture.
    """
    reason = family_of(pipeline).unfinished(pipeline)
    spacing = pipeline.scheduler.config.get("timestep_spacing")
    if reason or spacing is None:
        return reason
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    try:
        scheduler.set_timesteps(1)
    except ValueError:  # PNDM with its Runge-Kutta steps
        return f"its {type(scheduler).__name__} takes no single step"
    first, last = float(scheduler.timesteps[0]), scheduler.config.num_train_timesteps - 1
    if first >= 0.9 * last:
        return None
    return (
        f"its {type(scheduler).__name__} begins one step at t = {first:g}, not at {last} "
        f"(timestep_spacing is {spacing!r}; few-step models take 'trailing')"
    )
