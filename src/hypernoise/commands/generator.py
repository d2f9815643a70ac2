"""Shared by commands that draw with one generator: the fields that load it, from flags or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypernoise.generators.loading import Loading

if TYPE_CHECKING:
    from hypernoise.generators.diffusion import DiffusionGenerator
    from hypernoise.precision import Precision


@dataclass(frozen=True)
class WithGenerator(Loading):
    """A recipe's generator fields as flags, and a recipe to take them from."""

    recipe: Path | None = None
    """Take the generator's settings from this recipe; flags override it."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def load(self) -> DiffusionGenerator:
        from hypernoise.generators.registry import load_as
        from hypernoise.training.processes import own_device

        return load_as(self, device=own_device(self.device))

    def precision(self) -> Precision:
        """The precision that the generator computes in."""
        from hypernoise.generators.registry import pick_device
        from hypernoise.precision import resolve
        from hypernoise.training.processes import own_device

        return resolve(self.mixed_precision, pick_device(own_device(self.device)))

    def tell_precision(self) -> None:
        """Prints the generator's precision to stderr, after all other checks."""
        from hypernoise.training.processes import say_once

        say_once(self.precision().line)
