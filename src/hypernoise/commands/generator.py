"""Shared by commands that draw with one generator: the fields that load it, from flags or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypernoise.generators.loading import Loading

if TYPE_CHECKING:
    from hypernoise.generators.diffusion import DiffusionGenerator


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

    def tell_precision(self, *, if_slow: bool = False) -> None:
        """Prints the precision that the generator computes in to stderr, after all other checks."""
        from hypernoise.generators.registry import pick_device
        from hypernoise.precision import resolve
        from hypernoise.training.processes import own_device, say_once

        precision = resolve(self.mixed_precision, pick_device(own_device(self.device)))
        if precision.slow or not if_slow:
            say_once(precision.line)
