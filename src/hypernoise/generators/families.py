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
    unguided: the guidance_scale up to which nothing is guided; None: it is an input of networks that take one.
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
    unguided: float | None = 1.0
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
        unguided=None,
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
        unguided=None,
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
        unguided=0.0,
        template=16,
    ),
}

SIBLINGS = {  # pipelines that draw noise beside a picture or a control: the one whose noise f was trained on
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
    "SanaSprintImg2ImgPipeline": "SanaSprintPipeline",
}

OF_PROMPTS = ("complex_human_instruction", "max_sequence_length", "clean_caption", "clip_skip")
ASKED = ("guidance_scale", "true_cfg_scale", "timesteps", *OF_PROMPTS)


def sibling_of(pipeline: Any) -> str | None:
    """The text-to-image class of a pipeline that draws beside a picture or a control; None of another."""
    return next((SIBLINGS[cls.__name__] for cls in type(pipeline).__mro__ if cls.__name__ in SIBLINGS), None)


def family_of(pipeline: Any) -> Family:
    """The row of a pipeline's class, of the nearest class it derives from, or of its text-to-image sibling."""
    for name in (sibling_of(pipeline), *(cls.__name__ for cls in type(pipeline).__mro__)):
        if name in FAMILIES:
            return FAMILIES[name]
    raise InputError(
        f"no family is known for {type(pipeline).__name__}; known: {', '.join(sorted({*FAMILIES, *SIBLINGS}))} "
        "(add a row to hypernoise.generators.families.FAMILIES: denoiser, output layer, embeddings; "
        "docs/generators.md shows one)"
    )


def asked(call: Mapping[str, Any]) -> dict[str, Any]:
    """Of a call's arguments, defaults included, those that decide what f sees or how the generator is guided, as JSON
    values. Those of a prompt are left out where its embeddings are given."""
    found = {name: call[name] for name in ASKED if name in call and (call.get("prompt") or name not in OF_PROMPTS)}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in found.items()}


def asked_otherwise(pipeline: Any, trained: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """What a call asks (`asked`) with another effect than what an adapter was trained under."""
    family, now = family_of(pipeline), asked(call)
    least = {"guidance_scale": family.unguided, "true_cfg_scale": 1.0}  # where it begins to have an effect
    takes_it = getattr(getattr(pipeline, family.denoiser).config, "guidance_embeds", False)
    if pipeline.config.get("is_distilled") or (family.unguided is None and not takes_it):
        now.pop("guidance_scale", None)
    if call.get("negative_prompt") is None and call.get("negative_prompt_embeds") is None:
        now.pop("true_cfg_scale", None)

    def effect(name: str, value: Any) -> Any:
        begins = least.get(name)
        return value if begins is None or not isinstance(value, int | float) else max(value, begins)

    return {
        name: value
        for name, value in now.items()
        if name in trained and effect(name, value) != effect(name, trained[name])
    }


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
