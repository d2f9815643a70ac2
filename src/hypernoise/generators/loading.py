"""How a generator is loaded: the fields that recipes and commands share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hypernoise.precision import MixedPrecision
from hypernoise.settings import Natural, Side, typed


@dataclass(frozen=True)
class Memory:
    """Ways for a generator to need less memory; see `generators.memory`."""

    gradient_checkpointing: bool = False
    """Recompute the denoiser's and the decoder's activations for the gradient: less memory, more time."""
    decode_slice: Natural = 0
    """Pictures decoded at once; 0: all of them."""
    text_encoders: Literal["stay", "offload"] = "stay"
    """offload: on the CPU between encodings."""
    fit: str = ""
    """Choose settings so that training fits the current device (auto) or a size such as 24GB, the cheapest in time
    first: gradient_accumulation_steps, then the fields here and reward_dtype. Empty: keep the settings."""

    def __post_init__(self) -> None:
        typed(self, Memory, "memory.")


@dataclass(frozen=True)
class Loading:
    """A generator, its precision and size, and ways to need less memory; see `registry.load_as`."""

    generator: str = "scenes"
    """A registered name or a pipeline directory."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the frozen weights and autocast. no: fp32. auto: bf16 if the device has bf16 units, else fp32."""
    revision: str = ""
    """Revision of the generator's repository; empty: the pinned one, or else the newest."""
    height: Side = 0
    """Height of the pictures in pixels; 0: the width, or the generator's default."""
    width: Side = 0
    """Width of the pictures in pixels; 0: the height."""
    max_sequence_length: Side = 0
    """Tokens of a prompt that the text encoder reads, where its length can be chosen; 0: the generator's default."""
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        typed(self, Loading)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, if either was given."""
        height, width = self.height or self.width, self.width or self.height
        return (height, width) if height else None
