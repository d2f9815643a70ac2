"""What differs between families of diffusers pipelines: one row per pipeline class, data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypernoise.errors import InputError


@dataclass(frozen=True)
class Family:
    """How one class of pipeline is driven.

    denoiser: attribute that holds the network f adapts.
    output_layer: name of the denoiser's last layer, whose base path f leaves out (paper, section 4).
    embeddings: `__call__` arguments that take what `encode_prompt` returns, in its order; None: not passed on.
    call: fixed `__call__` arguments of few-step drawing.
    """

    denoiser: str
    output_layer: str
    embeddings: tuple[str | None, ...]
    call: dict[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        denoiser="unet",
        output_layer="conv_out",
        embeddings=("prompt_embeds", None),
        call={"guidance_scale": 0.0},
    ),
}


def family_of(pipeline: Any) -> Family:
    """The row of a pipeline's class, or of the nearest class it derives from."""
    for cls in type(pipeline).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise InputError(
        f"no family is known for {type(pipeline).__name__}; known: {', '.join(sorted(FAMILIES))} "
        "(add a row to hypernoise.generators.families.FAMILIES: denoiser, output layer, embeddings)"
    )
