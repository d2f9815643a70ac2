"""Shared by commands: the generator that they draw with, and reports."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hypernoise.files import write_text
from hypernoise.generators.loading import Loading
from hypernoise.precision import resolve
from hypernoise.version import __version__

if TYPE_CHECKING:
    import torch

    from hypernoise.evaluation.page import Table
    from hypernoise.generators.diffusion import DiffusionGenerator


@dataclass(frozen=True)
class WithGenerator(Loading):
    """A recipe's generator fields as flags, and a recipe to take them from."""

    WITHOUT: ClassVar = ("memory.fit",)  # it plans a training step

    recipe: Path | None = None
    """Take the generator's settings from this recipe; flags override it."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def load(self) -> DiffusionGenerator:
        from hypernoise.generators.registry import load_as

        return load_as(self, device=self.device)

    def log_precision(self, device: torch.device, *, only_if_slow: bool = False) -> None:
        """Prints to stderr what the generator computes in; called after all checks, whose errors are one line."""
        from hypernoise.training.processes import say_once

        precision = resolve(self.mixed_precision, device)
        if precision.slow or not only_if_slow:
            say_once(precision.line)


def write_report(
    output: Path,
    command: str,
    about: Mapping[str, Any],
    tables: Sequence[Table],
    charts: Sequence[Any] = (),
    examples: Sequence[Any] = (),
) -> None:
    """Prints the tables, and writes `output`/report.html with them and the rest."""
    from hypernoise.evaluation.page import as_text, page

    print("\n\n".join(as_text(table) for table in tables))
    facts = {**about, "version": __version__}
    write_text(output / "report.html", page(f"hypernoise {command}", facts, tables, charts, examples))
    print(f"report: {output / 'report.html'}", file=sys.stderr)
