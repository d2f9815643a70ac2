"""summary.json: the settings of a command or an experiment, and its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hypernoise.files import write_json
from hypernoise.precision import resolve
from hypernoise.version import __version__


def write_summary(
    output: Path, command: str, arguments: Any, device: Any, results: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """Writes `output`/summary.json: the command, its settings, its result rows, and `more` entries."""
    fields = dataclasses.asdict(arguments)
    asked = fields.get("mixed_precision")
    computed = {"mixed_precision": resolve(asked, torch.device(device)).name} if asked else {}
    summary = {
        "command": command,
        "version": __version__,
        "seed": fields.get("seed"),
        "device": str(device),
        **computed,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()},
        **more,
        "results": list(results),
    }
    write_json(output / "summary.json", summary)
