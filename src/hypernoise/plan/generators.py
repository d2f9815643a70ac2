"""Published generators without data: their real classes on the meta device, called through the pipeline's own call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import torch
import transformers
import yaml
from torch import nn

from hypernoise.errors import InputError, unknown
from hypernoise.files import read_json
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import family_of
from hypernoise.generators.memory import NO_SAVING, Memory, on_hub, replaced
from hypernoise.generators.presets import PRESETS, Preset
from hypernoise.generators.registry import check_directory
from hypernoise.plan.trace import moved

META = torch.device("meta")
PROMPT_TOKENS = 128  # assumed length of prompts that are not padded to a fixed length


Place = Callable[[], AbstractContextManager[Any]]
"""Inside such a block, networks are built with their weights in one place."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Layers built inside have no data, and draw no initial weights: that would be a fifth of a plan's time."""
    undrawn = {"reset_parameters": lambda layer: None}
    with META, replaced(nn.Linear, undrawn), replaced(nn.modules.conv._ConvNd, undrawn):
        yield


Conditions = Callable[[int], Condition]
"""Ones in the shape of so many encoded prompts."""


@dataclass(frozen=True)
class Published:
    """A generator's classes and configurations, without weights.

    configuration: denoiser, vae, scheduler (each with its class) and each text encoder's number of parameters.
    words: the length that prompts are padded to, if the tokenizer has one.
    """

    name: str
    preset: Preset
    configuration: Mapping[str, Any]
    words: int | None = None

    @property
    def text_parameters(self) -> int:
        return sum(self.configuration["text_encoders"])


@dataclass(frozen=True)
class Planned:
    """A generator without data: its networks on the meta device, its scheduler real."""

    found: Published
    generator: DiffusionGenerator
    condition: Conditions


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """Presets from the Hub: denoiser, vae and scheduler, and each text encoder's number of parameters."""
    found = yaml.safe_load(files("hypernoise").joinpath("plan/configurations.yaml").read_text())
    del found["shared"]
    return found


def published(source: str, tokens: int = 0) -> Published:
    """The configuration of a preset's name or a pipeline directory; `tokens`: max_sequence_length, 0 for its own.

    Raises:
        InputError: neither a preset nor a directory of one of diffusers' own pipelines.
    """
    preset = PRESETS.get(source)
    if preset is not None and source in configurations():
        return Published(source, preset.reading(tokens), configurations()[source])
    packaged = preset is not None and preset.packaged
    folder = Path(str(files("hypernoise").joinpath(packaged))) if packaged else Path(source)
    if not folder.is_dir():
        raise unknown("generator", source, PRESETS)
    family, configuration, words = _read_folder(folder)
    if family not in _CONDITIONS:
        raise InputError(f"a {family} cannot be planned: only these can: {', '.join(_CONDITIONS)}")
    return Published(source, (preset or Preset(family)).reading(tokens), configuration, words)


def planned_generator(
    source: str, *, dtype: torch.dtype, size: tuple[int, int] | None = None, tokens: int = 0, memory: Memory = NO_SAVING
) -> Planned:
    """A generator without data. Raises the InputErrors of `published`."""
    found = published(source, tokens)
    pipeline = assembled(found, dtype, memory.tiny_decoder)
    _without_data(pipeline)
    memory = Memory(gradient_checkpointing=memory.gradient_checkpointing)  # the rest is computed from a trace
    generator = generator_of(found, pipeline, size, memory)
    return Planned(found, generator, conditions(found, generator, dtype))


def generator_of(
    found: Published, pipeline: Any, size: tuple[int, int] | None, memory: Memory, cls: type = DiffusionGenerator
) -> Any:
    preset = found.preset
    return cls(pipeline, name=found.name, size=size or preset.size, call=preset.call, memory=memory)


def conditions(found: Published, generator: DiffusionGenerator, dtype: torch.dtype) -> Conditions:
    words = generator.asked().get("max_sequence_length", found.words or 77)
    shapes = _CONDITIONS[found.preset.family](cast(Any, generator.denoiser).config, words)
    dtypes = {name: torch.bool if name.endswith("mask") else dtype for name in shapes}
    return lambda count: Condition(
        {name: torch.ones(count, *shape, dtype=dtypes[name]) for name, shape in shapes.items()}
    )


def _read_folder(folder: Path) -> tuple[str, dict[str, Any], int | None]:
    """A saved pipeline's class, its configurations, and its prompts' padded length if its tokenizer has one."""

    def read(file: str) -> dict[str, Any]:
        values = read_json(folder / file, f"{folder}/{file}")
        return values if file == "model_index.json" else {k: v for k, v in values.items() if not k.startswith("_")}

    def config_of(name: str) -> dict[str, Any]:
        return read(f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json")

    family, index = check_directory(folder), read("model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and isinstance(value[0], str)]
    own = {"denoiser": "unet" if "unet" in parts else "transformer", "vae": "vae", "scheduler": "scheduler"}
    configuration = {part: {**config_of(name), "class": index[name][1]} for part, name in own.items()}
    encoders = [config_of(name) for name in parts if name.startswith("text_encoder")]
    words = read("tokenizer/tokenizer_config.json").get("model_max_length")
    return family, {**configuration, "text_encoders": [_encoder_parameters(e) for e in encoders]}, words


def _encoder_parameters(config: dict[str, Any]) -> int:
    named = config.get("architectures") or [""]
    cls = getattr(transformers, str(named[0]), None)
    if cls is None:
        raise InputError(f"a text encoder's config.json names no class of transformers in architectures: {named[0]!r}")
    with on_meta():
        return count(cls(cls.config_class.from_dict(config)))


def build(config: Mapping[str, Any], dtype: torch.dtype, place: Place = on_meta) -> nn.Module:
    """A diffusers class and its configuration, as a module with weights in `place`."""
    with place():
        module = getattr(diffusers, config["class"]).from_config({k: v for k, v in config.items() if k != "class"})
    nn.Module.to(module, dtype=dtype)  # diffusers' own warns about parts kept in fp32
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in (getattr(module, "_keep_in_fp32_modules", None) or ()):
            part.float()  # as `from_pretrained` does
    return module


def assembled(found: Published, dtype: torch.dtype, tiny_decoder: str = "", place: Place = on_meta) -> Any:
    """The pipeline without text encoders, with its networks' weights in `place`."""
    family, configuration = found.preset.family, found.configuration
    cls = getattr(diffusers, family)
    names = set(cls.__init__.__annotations__)
    left_out = ("tokenizer", "text_encoder", "safety", "feature", "image_enc")
    parts: dict[str, Any] = {name: None for name in names if name.startswith(left_out)}
    vae = configuration["vae"]
    parts["unet" if "unet" in names else "transformer"] = build(configuration["denoiser"], dtype, place)
    parts["vae"] = build(_tiny(tiny_decoder, vae) if tiny_decoder else vae, dtype, place)
    schedule = {**configuration["scheduler"], **found.preset.scheduler}
    parts["scheduler"] = getattr(diffusers, schedule.pop("class")).from_config(schedule)
    more = {"requires_safety_checker": False, "is_distilled": True}
    return cls(**parts, **{name: value for name, value in more.items() if name in names})


def _without_data(pipeline: Any) -> None:
    """Lets the pipeline's own call run with networks on the meta device; its schedule is computed on the CPU."""
    cls = type(pipeline)
    pipeline.__class__ = type(cls.__name__, (cls,), {"_execution_device": torch.device("cpu")})
    network, own = getattr(pipeline, family_of(pipeline).denoiser), pipeline.vae.decode
    network.register_forward_pre_hook(lambda module, a, k: moved((a, k), "meta"), with_kwargs=True)
    network.register_forward_hook(lambda module, arguments, output: moved(output, "cpu"))
    if hasattr(pipeline.vae, "bn"):  # FLUX.2 un-normalises its latents with these statistics, outside the network
        pipeline.vae.bn.to_empty(device="cpu")
    pipeline.vae.decoder._hf_hook = SimpleNamespace(execution_device="cpu")  # the device that pipelines move latents to
    pipeline.vae.decode = lambda latents, **keywords: own(moved(latents, "meta"), **keywords)


def _tiny(source: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny decoder's configuration: a directory's, otherwise TAESD's for the same number of latent channels."""
    file = Path(source) / "config.json"
    on_hub(source)
    config = read_json(file, str(file)) if file.exists() else {"latent_channels": own.get("latent_channels", 4)}
    return {"class": "AutoencoderTiny", **{k: v for k, v in config.items() if not k.startswith("_")}}


# The outputs of each family's text encoders for a prompt: (the denoiser's configuration, the padded length) -> shapes
# by name
_CONDITIONS: dict[str, Callable[[Any, int], dict[str, tuple[int, ...]]]] = {
    "StableDiffusionPipeline": lambda c, words: {"prompt_embeds": (words, c.cross_attention_dim)},
    "StableDiffusionXLPipeline": lambda c, words: {
        "prompt_embeds": (words, c.cross_attention_dim),
        "pooled_prompt_embeds": (c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim,),
    },
    "StableDiffusion3Pipeline": lambda c, words: {
        "prompt_embeds": (77 + words, c.joint_attention_dim),
        "pooled_prompt_embeds": (c.pooled_projection_dim,),
    },
    "SanaSprintPipeline": lambda c, words: _masked("prompt_attention_mask", words, c.caption_channels),
    "PixArtAlphaPipeline": lambda c, words: _masked("prompt_attention_mask", words, c.caption_channels),
    "FluxPipeline": lambda c, words: {
        "prompt_embeds": (words, c.joint_attention_dim),
        "pooled_prompt_embeds": (c.pooled_projection_dim,),
    },
    "Flux2KleinPipeline": lambda c, words: {"prompt_embeds": (words, c.joint_attention_dim)},
    "Krea2Pipeline": lambda c, words: {
        "prompt_embeds": (words, c.num_text_layers, c.text_hidden_dim),
        "prompt_embeds_mask": (words,),
    },
    "QwenImagePipeline": lambda c, words: _masked("prompt_embeds_mask", PROMPT_TOKENS, c.joint_attention_dim),
    "ZImagePipeline": lambda c, words: _masked("prompt_embeds_mask", PROMPT_TOKENS, c.cap_feat_dim),
}


def _masked(mask: str, length: int, width: int) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (length, width), mask: (length,)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
