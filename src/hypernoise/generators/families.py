"""Differences between families of diffusers pipelines: one table row per pipeline class.

A pipeline runs through its own `__call__`, so a row contains no pipeline code: only its denoiser's name, the
arguments of few-step drawing, and the noise's layout. Each row was read from diffusers 0.42.1's pipeline of
that name, and tests/generators/test_families.py checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hypernoise.errors import InputError


def _first_channels(output: Any, shape: tuple[int, ...]) -> Tensor:
    """The first half of the channels; the rest is a learned variance, which sampling ignores."""
    return output[:, : shape[1]]


def _negated_list(output: Any, shape: tuple[int, ...]) -> Tensor:
    """One [C, 1, H, W] per sample, with the sign that the pipeline passes to its scheduler."""
    return -torch.stack(list(output)).squeeze(2)


def _tokens(output: Any, shape: tuple[int, ...]) -> Tensor:
    """Tokens [B, H·W, C], without those of input images; as [B, C, H, W] if the noise has that layout."""
    if len(shape) == 3:
        return output[:, : shape[1]]
    return output[:, : shape[2] * shape[3]].mT.reshape(shape)


def _scm_timesteps(steps: int) -> dict[str, Any]:
    """SANA-Sprint has a tuned middle timestep for two steps, and refuses it for any other number."""
    return {} if steps == 2 else {"intermediate_timesteps": None}


def _lists(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`prompt_embeds` as a list of unpadded rows."""
    rows = zip(tensors["prompt_embeds"], tensors["prompt_embeds_mask"], strict=True)
    return {"prompt_embeds": [row[mask.bool()] for row, mask in rows]}


@dataclass(frozen=True)
class Family:
    """How to call one class of pipeline.

    denoiser: attribute with the network that f adapts.
    output_layer: name of the denoiser's last layer, whose base path f omits.
    embeddings: `__call__` arguments for the results of `encode_prompt`, in order; None: not passed on.
    call: fixed `__call__` arguments for few-step drawing.
    call_at: more arguments, which depend on the number of steps.
    layout, patch: noise is [C, H/p, W/p] ("grid") or [H/p · W/p, C] ("tokens"), in latent pixels.
    answer: converts the denoiser's first output to the noise's layout and shape.
    arguments: a condition's tensors as `__call__` arguments.
    wide_noise: the pipeline keeps its noise in fp32 for any weight dtype.
    guided_first: with classifier-free guidance, the prompt's half of a batch comes first, not second.
    unguided: largest guidance_scale without effect; None: it is an input of networks that take one.
    tokenizers: of the text encoder that reads the whole prompt; the first one the pipeline has is used.
    template: an upper bound of the tokens that the pipeline adds around each prompt.
    """

    denoiser: str
    output_layer: str
    embeddings: tuple[str | None, ...]
    call: dict[str, Any] = field(default_factory=dict)
    call_at: Callable[[int], dict[str, Any]] = lambda steps: {}
    layout: Literal["grid", "tokens"] = "grid"
    patch: int = 1
    answer: Callable[[Any, tuple[int, ...]], Tensor] = lambda output, shape: output
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]] = dict
    wide_noise: bool = False
    guided_first: bool = False
    unguided: float | None = 1.0
    tokenizers: tuple[str, ...] = ("tokenizer",)
    template: int = 0


_MASKED = ("prompt_embeds", "prompt_attention_mask")
_POOLED = ("prompt_embeds", None, "pooled_prompt_embeds", None)
_UNGUIDED = {"guidance_scale": 0.0}
_PACKED: dict[str, Any] = {"layout": "tokens", "patch": 2, "answer": _tokens, "guided_first": True}

# SANA-Sprint's guidance is an input of its network; the official code encodes prompts without the instruction, in
# training and in sana_inference.py
_SPRINT = {"guidance_scale": 4.5, "use_resolution_binning": False, "complex_human_instruction": None}
_PIXART = {"guidance_scale": 1.0, "use_resolution_binning": False, "clean_caption": False}

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family("unet", "conv_out", ("prompt_embeds", None), _UNGUIDED),
    "StableDiffusionXLPipeline": Family("unet", "conv_out", _POOLED, _UNGUIDED),
    "StableDiffusion3Pipeline": Family(
        "transformer", "proj_out", _POOLED, _UNGUIDED, tokenizers=("tokenizer_3", "tokenizer")
    ),
    "SanaSprintPipeline": Family(
        "transformer", "proj_out", _MASKED, _SPRINT, call_at=_scm_timesteps, wide_noise=True, unguided=None
    ),
    "PixArtAlphaPipeline": Family("transformer", "proj_out", (*_MASKED, None, None), _PIXART, answer=_first_channels),
    "FluxPipeline": Family(
        "transformer", "proj_out", ("prompt_embeds", "pooled_prompt_embeds", None), _UNGUIDED,
        unguided=None, tokenizers=("tokenizer_2",), **_PACKED,
    ),
    "Krea2Pipeline": Family(
        "transformer", "final_layer.linear", ("prompt_embeds", "prompt_embeds_mask"), _UNGUIDED,
        unguided=0.0, template=5, **_PACKED,
    ),
    "Flux2KleinPipeline": Family(
        "transformer", "proj_out", ("prompt_embeds", None), {"guidance_scale": 1.0},
        template=16, **{**_PACKED, "layout": "grid"},
    ),
    "QwenImagePipeline": Family(
        "transformer", "proj_out", ("prompt_embeds", "prompt_embeds_mask"), {"true_cfg_scale": 1.0},
        template=8, **_PACKED,
    ),
    "ZImagePipeline": Family(
        "transformer", "all_final_layer.2-1.linear", ("prompt_embeds", None), _UNGUIDED, answer=_negated_list,
        arguments=_lists, wide_noise=True, guided_first=True, unguided=0.0, template=16,
    ),
}  # fmt: skip

_PAINTED = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage", "ZImage")
_TASKS = {"Img2Img": (*_PAINTED, "SanaSprint"), "Inpaint": _PAINTED, "ControlNet": _PAINTED[:2]}
# pipelines that draw from noise and a picture or a control: the class whose noise f was trained on
SIBLINGS = {f"{name}{task}Pipeline": f"{name}Pipeline" for task, names in _TASKS.items() for name in names}

OF_PROMPTS = ("complex_human_instruction", "max_sequence_length", "clean_caption", "clip_skip")
ASKED = ("guidance_scale", "true_cfg_scale", "timesteps", *OF_PROMPTS)


def sibling_of(pipeline: Any) -> str | None:
    """The text-to-image class of a pipeline that draws from a picture or a control, else None."""
    return next((SIBLINGS[cls.__name__] for cls in type(pipeline).__mro__ if cls.__name__ in SIBLINGS), None)


def family_of(pipeline: Any) -> Family:
    """The row of a pipeline's class, its nearest base class, or its text-to-image sibling."""
    for name in (sibling_of(pipeline), *(cls.__name__ for cls in type(pipeline).__mro__)):
        if name in FAMILIES:
            return FAMILIES[name]
    raise unsupported(f"this is a {type(pipeline).__name__}")


def unsupported(what: str) -> InputError:
    return InputError(
        f"{what}, which is not supported; known: {', '.join(FAMILIES)} (to add it, add its denoiser, output layer and "
        "embeddings to hypernoise.generators.families.FAMILIES; docs/generators.md shows a row)"
    )


def asked(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, including defaults, that determine what f sees or the guidance, as JSON
    values. Those of a prompt are omitted if its embeddings are given."""
    found = {name: call[name] for name in ASKED if name in call and (call.get("prompt") or name not in OF_PROMPTS)}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in found.items()}


def asked_otherwise(pipeline: Any, trained: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments (`asked`) whose effect differs from the adapter's training."""
    family, now = family_of(pipeline), asked(call)
    least = {"guidance_scale": family.unguided, "true_cfg_scale": 1.0}  # above which it has an effect
    takes_it = getattr(getattr(pipeline, family.denoiser).config, "guidance_embeds", False)
    distilled = pipeline.config.get("is_distilled") and family.unguided != 0  # Krea 2 guides distilled models too
    if distilled or (family.unguided is None and not takes_it):
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
    """Why this pipeline would not draw a picture in a few steps, as far as its configuration shows, or None.

    A few-step model gets pure noise at the last training timestep, for any number of steps; a scheduler
    whose single step starts elsewhere ("leading" spacing: t = 1) passes noise to a network that expects a picture.
    """
    config = pipeline.scheduler.config
    if "timestep_spacing" not in config:
        return None
    scheduler, last = type(pipeline.scheduler).from_config(config), config.num_train_timesteps - 1
    fault = "cannot take a single step"
    with suppress(ValueError):  # PNDM with its Runge-Kutta steps
        scheduler.set_timesteps(1)
        first = float(scheduler.timesteps[0])
        if first >= 0.9 * last:
            return None
        spacing = f"timestep_spacing is {config.timestep_spacing!r}; few-step models take 'trailing'"
        fault = f"starts a single step at t = {first:g}, not at {last} ({spacing})"
    return f"its {type(scheduler).__name__} {fault}"
