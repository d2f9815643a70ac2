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

    family: its pipeline's class, a row of `families.FAMILIES`.
    repository: on the Hub; or packaged: a folder inside this package, and adapter: one with an adapter for it.
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
    revision: str | None = None
    size: tuple[int, int] | None = None
    steps: int = 1
    packaged: str | None = None
    adapter: str | None = None
    variant: str | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    lora: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False

    def reading(self, tokens: int) -> Preset:
        """With this max_sequence_length, unless it is 0."""
        return replace(self, call={**self.call, "max_sequence_length": tokens}) if tokens else self


_HALF, _FULL = (512, 512), (1024, 1024)
_TRAILING = {"timestep_spacing": "trailing"}
_LIGHTNING = Part("UNet2DConditionModel", "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors")
_DMD = "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512"
_DMD_PARTS = {
    "transformer": Part("PixArtTransformer2DModel", _DMD, "transformer"),
    "scheduler": Part("DDPMScheduler", _DMD, "scheduler"),
}
_SHIFTED = {  # ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py: distilled with a shift of 3
    "base_shift": math.log(3), "max_shift": math.log(3), "max_image_seq_len": 8192, "shift": 1.0,
    "shift_terminal": None, "use_dynamic_shifting": True,
}  # fmt: skip
_SANA = "Efficient-Large-Model/Sana_Sprint_{}_1024px_diffusers"

PRESETS: dict[str, Preset] = {
    "scenes": Preset("StableDiffusionPipeline", packaged="scenes/weights/generator", adapter="scenes/weights/adapter"),
    "sd-turbo": Preset(
        "StableDiffusionPipeline", "stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2", _HALF,
        variant="fp16",
    ),
    "sdxl-turbo": Preset(
        "StableDiffusionXLPipeline", "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", _HALF,
        variant="fp16", scheduler=_TRAILING,
    ),
    "sdxl-lightning": Preset(
        "StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0", None, _FULL, 4,
        variant="fp16", parts={"unet": _LIGHTNING}, scheduler=_TRAILING,
    ),
    "sana-sprint-0.6b": Preset(
        "SanaSprintPipeline", _SANA.format("0.6B"), "a7d9fc31dd5c3f5e22dbfd78360777ceed56ae97", _FULL
    ),
    "sana-sprint-1.6b": Preset(
        "SanaSprintPipeline", _SANA.format("1.6B"), "19683c58b7ea290e55cedd8950ae1d86ada7ef96", _FULL
    ),
    "flux-schnell": Preset(  # 512 pixels as in the paper; the model draws up to 1024
        "FluxPipeline", "black-forest-labs/FLUX.1-schnell", "741f7c3ce8b383c54771c7003378a50191e9efe9", _HALF, 4,
        call={"max_sequence_length": 256}, gated=True,
    ),
    "sd3.5-large-turbo": Preset(
        "StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-large-turbo",
        "ec07796fc06b096cc56de9762974a28f4c632eda", _FULL, 4, gated=True,
    ),
    "pixart-dmd": Preset(
        "PixArtAlphaPipeline", "PixArt-alpha/PixArt-XL-2-512x512", "50f702106901db6d0f8b67eb88e814c56ded2692", _HALF,
        parts=_DMD_PARTS, call={"timesteps": [400]},
    ),
    "z-image-turbo": Preset(
        "ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo", "f332072aa78be7aecdf3ee76d5c247082da564a6", _FULL, 8
    ),
    "flux2-klein-4b": Preset(
        "Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-4B", "e7b7dc27f91deacad38e78976d1f2b499d76a294", _FULL, 4
    ),
    "flux2-klein-9b": Preset("Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-9B", None, _FULL, 4, gated=True),
    "krea-2-turbo": Preset("Krea2Pipeline", "krea/Krea-2-Turbo", None, _FULL, 8),
    "qwen-image-lightning": Preset(
        "QwenImagePipeline", "Qwen/Qwen-Image", "75e0b4be04f60ec59a75f475837eced720f823b6", _FULL, 4,
        lora="lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-4steps-V1.0.safetensors", scheduler=_SHIFTED,
    ),
}  # fmt: skip
