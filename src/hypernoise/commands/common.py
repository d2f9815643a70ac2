"""Shared by commands: reports and notices."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypernoise.files import write_text
from hypernoise.version import __version__

if TYPE_CHECKING:
    from hypernoise.evaluation.tables import Table
    from hypernoise.rewards.ensemble import WeightedSum


def write_report(
    output: Path,
    command: str,
    about: Mapping[str, Any],
    tables: Sequence[Table],
    charts: Sequence[Any] = (),
    examples: Sequence[Any] = (),
) -> None:
    """Prints the tables, and writes `output`/report.html with them and the rest."""
    from hypernoise.evaluation.report import page
    from hypernoise.evaluation.tables import as_text

    print("\n\n".join(as_text(table) for table in tables))
    title = f"hypernoise {command}"
    facts = {name: str(value) for name, value in {**about, "version": __version__}.items()}
    write_text(output / "report.html", page(title, facts, tables, charts, examples))
    print(f"report: {output / 'report.html'}", file=sys.stderr)


def tell_cut_prompts(reward: WeightedSum) -> dict[str, int]:
    """How many prompts each reward truncated to its text encoder's length, if any; also printed to stderr."""
    cut = {name: number for name, number in reward.truncated.items() if number}
    for name, number in cut.items():
        print(
            f"{name}: {number} prompts are longer than its text encoder, and their ends were not scored "
            "(see --long-prompts)",
            file=sys.stderr,
        )
    return cut
