"""Generators by name: their weights and settings, data only.

Sizes, steps and guidance are from each model's card; the first step's conventions from its family. A revision is
pinned if at least two unrelated public repositories on GitHub name the same commit for the same model (searched on
22 November 2026; nothing was downloaded); otherwise the newest is used. `revision` of `load_generator` overrides
it, with "main" for example. An adapter recognises its base by the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Part:
    """A component from another repository than the pipeline's: its diffusers class and folder there, or a safetensors
    file of weights for the component as the pipeline configures it."""

    cls: str
    repository: str
    folder: str


@dataclass(frozen=True)
class Preset:
    """A named generator.

    repository: on the Hub; or packaged: a folder inside this package, and adapter: one with an adapter for it.
    family: its pipeline's class, a row of `families.FAMILIES`.
    revision: the commit to load; None: the newest.
    size: drawn height and width in pixels; None: the pipeline's default.
    steps: denoiser calls it was distilled to.
    variant: of the weight files.
    parts: components from elsewhere; lora: a few-step LoRA ("owner/name/file") fused into the base.
    scheduler: settings that override the pipeline's.
    call: `__call__` arguments that override the family's.
    gated: a licence must first be accepted on its page.
    """

    family: str
    repository: str | None = None
    packaged: str | None = None
    adapter: str | None = None
    revision: str | None = None
    size: tuple[int, int] | None = None
    steps: int = 1
    variant: str | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    lora: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False

    def reading(self, tokens: int) -> Preset:
        """With this max_sequence_length, unless it is 0."""
        return replace(self, call={**self.call, "max_sequence_length": tokens}) if tokens else self


_DMD = "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512"

PRESETS: dict[str, Preset] = {
    "scenes": Preset("StableDiffusionPipeline", packaged="scenes/weights/generator", adapter="scenes/weights/adapter"),
    "sd-turbo": Preset(
        "StableDiffusionPipeline",
        "stabilityai/sd-turbo",
        revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
        size=(512, 512),
        variant="fp16",
    ),
    "sdxl-turbo": Preset(
        "StableDiffusionXLPipeline",
        "stabilityai/sdxl-turbo",
        revision="71153311d3dbb46851df1931d3ca6e939de83304",
        size=(512, 512),
        variant="fp16",
        scheduler={"timestep_spacing": "trailing"},
    ),
    "sdxl-lightning": Preset(
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
        size=(1024, 1024),
        steps=4,
        variant="fp16",
        parts={
            "unet": Part("UNet2DConditionModel", "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors")
        },
        scheduler={"timestep_spacing": "trailing"},
    ),
    "sana-sprint-0.6b": Preset(
        "SanaSprintPipeline",
        "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
        revision="a7d9fc31dd5c3f5e22dbfd78360777ceed56ae97",
        size=(1024, 1024),
    ),
    "sana-sprint-1.6b": Preset(
        "SanaSprintPipeline",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        revision="19683c58b7ea290e55cedd8950ae1d86ada7ef96",
        size=(1024, 1024),
    ),
    "flux-schnell": Preset(
        "FluxPipeline",
        "black-forest-labs/FLUX.1-schnell",
        revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
        size=(512, 512),  # as in the paper; the model draws up to 1024
        steps=4,
        call={"max_sequence_length": 256},
        gated=True,
    ),
    "sd3.5-large-turbo": Preset(
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3.5-large-turbo",
        revision="ec07796fc06b096cc56de9762974a28f4c632eda",
        size=(1024, 1024),
        steps=4,
        gated=True,
    ),
    "pixart-dmd": Preset(
        "PixArtAlphaPipeline",
        "PixArt-alpha/PixArt-XL-2-512x512",
        revision="50f702106901db6d0f8b67eb88e814c56ded2692",
        size=(512, 512),
        parts={
            "transformer": Part("PixArtTransformer2DModel", _DMD, "transformer"),
            "scheduler": Part("DDPMScheduler", _DMD, "scheduler"),
        },
        call={"timesteps": [400]},
    ),
    "z-image-turbo": Preset(
        "ZImagePipeline",
        "Tongyi-MAI/Z-Image-Turbo",
        revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
        size=(1024, 1024),
        steps=8,
    ),
    "flux2-klein-4b": Preset(
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-4B",
        revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
        size=(1024, 1024),
        steps=4,
    ),
    "flux2-klein-9b": Preset(
        "Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-9B", size=(1024, 1024), steps=4, gated=True
    ),
    "krea-2-turbo": Preset("Krea2Pipeline", "krea/Krea-2-Turbo", size=(1024, 1024), steps=8),
    "qwen-image-lightning": Preset(
        "QwenImagePipeline",
        "Qwen/Qwen-Image",
        revision="75e0b4be04f60ec59a75f475837eced720f823b6",
        size=(1024, 1024),
        steps=4,
        lora="lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-4steps-V1.0.safetensors",
        # ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py: distilled with a shift of 3
        scheduler={
            "base_shift": math.log(3),
            "max_shift": math.log(3),
            "max_image_seq_len": 8192,
            "shift": 1.0,
            "shift_terminal": None,
            "use_dynamic_shifting": True,
        },
    ),
}
