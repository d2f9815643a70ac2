"""Which generator is loaded and how: the fields that recipes and commands share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from hypernoise.precision import MixedPrecision
from hypernoise.settings import MOST_SIDE, typed, whole


@dataclass(frozen=True)
class Memory:
    """What a generator does to need less memory; see `generators.memory`."""

    gradient_checkpointing: Annotated[bool, tyro.conf.arg(aliases=["--gradient-checkpointing"])] = False
    """Recompute the denoiser's and the decoder's activations for the gradient: less memory, more time."""
    decode_slice: int = 0
    """Pictures decoded at once; 0: all of them."""
    text_encoders: Literal["stay", "offload", "drop"] = "stay"
    """offload: on the CPU between encodings; drop: the prompts are encoded ahead and the encoders let go."""
    tiny_decoder: str = ""
    """A small decoder of the TAESD family in place of the generator's: a directory or a Hub repository."""
    quantise: Literal["none", "int8", "nf4"] = "none"
    """Of the frozen denoiser's linear layers, with torchao (int8) or bitsandbytes (nf4); what trains stays fp32."""
    fit: Annotated[str, tyro.conf.arg(aliases=["--fit"])] = ""
    """Of training: auto, the device at hand, or a size such as 24GB; the settings that its plan needs to fit, the ones
    that cost the least time first: rounds, then the fields here and reward_dtype. Empty: as they are."""

    def __post_init__(self) -> None:
        typed(self, Memory, "memory.")
        whole(self, "decode_slice", least=0, prefix="memory.")


@dataclass(frozen=True)
class Loading:
    """A generator, its precision and size, and what it does to need less memory; see `registry.load_as`."""

    generator: str = "scenes"
    """A registered name or a pipeline directory."""
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights and of autocast. auto: bf16 where the device has units for it, else no, which is fp32."""
    variant: str = ""
    """Of the weight files, such as fp16; empty: the registered generator's, or the plain ones of a directory."""
    revision: str = ""
    """Of the generator's repository; empty: the one that is pinned, or its newest."""
    height: int = 0
    """Of the pictures, in pixels; 0: the generator's own."""
    width: int = 0
    """As height, if 0."""
    few_step_lora: str = ""
    """An LCM, Hyper-SD or Lightning LoRA that is fused into the generator first: a safetensors file, or
    owner/name/file on the Hub."""
    scheduler: Literal["", "lcm", "tcd", "euler-trailing", "ddim-trailing"] = ""
    """As the few-step LoRA's card asks for; empty: the generator's own."""
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        typed(self, Loading)
        whole(self, "height", "width", least=0, most=MOST_SIDE)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, if either was given."""
        height, width = self.height or self.width, self.width or self.height
        return (height, width) if height else None
