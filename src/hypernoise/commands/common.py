"""What every command writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypernoise
from hypernoise.files import write_json


def write_summary(
    output: Path, command: str, arguments: Any, device: Any, results: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """`output`/summary.json: what was run, with what, its result rows, and what `more` the command has to say."""
    fields = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
    summary = {
        "command": command,
        "version": hypernoise.__version__,
        "seed": fields.get("seed"),
        "device": str(device),
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()},
        **more,
        "results": list(results),
    }
    write_json(output / "summary.json", summary)
