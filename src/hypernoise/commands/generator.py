"""What commands that draw with one generator share: the fields that load it, from flags or from a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import tyro

from hypernoise.generators.loading import Loading
from hypernoise.training.config import read_recipe

if TYPE_CHECKING:
    from hypernoise.generators.diffusion import DiffusionGenerator


@dataclass(frozen=True)
class WithGenerator(Loading):
    """The fields of a recipe that are about its generator, as flags, and a recipe to take them from."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen weights. auto: what a registered generator is published to run in, float32 for a directory."""
    recipe: Path | None = None
    """A recipe: its generator is loaded as it says, and spared memory as it says; flags override it."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse_as(cls, command: str, arguments: list[str]) -> Self:
        asked = tyro.cli(cls, args=arguments, prog=f"hypernoise {command}")
        if asked.recipe is None:
            return asked
        recipe = read_recipe(asked.recipe)
        loading = {own.name: getattr(recipe, own.name) for own in dataclasses.fields(Loading)}
        return tyro.cli(cls, default=cls(**loading), args=arguments, prog=f"hypernoise {command}")

    def load(self) -> DiffusionGenerator:
        from hypernoise.generators.registry import load_as
        from hypernoise.training.processes import own_device

        return load_as(self, device=own_device(self.device))
