"""What commands that draw with one generator share: the fields that load it, from flags or from a recipe."""

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
    """The fields of a recipe that are about its generator, as flags, and a recipe to take them from."""

    recipe: Path | None = None
    """A recipe: its generator is loaded as it says, and spared memory as it says; flags override it."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def load(self) -> DiffusionGenerator:
        from hypernoise.generators.registry import load_as
        from hypernoise.training.processes import own_device

        return load_as(self, device=own_device(self.device))

    def precision(self) -> Precision:
        """What the generator computes in."""
        from hypernoise.generators.registry import pick_device
        from hypernoise.precision import resolve
        from hypernoise.training.processes import own_device

        return resolve(self.mixed_precision, pick_device(own_device(self.device)))

    def tell_precision(self) -> None:
        """Says on stderr what the generator computes in, once all else is known to be right."""
        from hypernoise.training.processes import say_once

        say_once(self.precision().line)
