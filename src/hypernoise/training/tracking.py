"""One line of JSON per step, in `metrics.jsonl`; a resumed run drops the lines it is about to write again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hypernoise.errors import InputError
from hypernoise.files import write_text
from hypernoise.training.checkpoint import writing
from hypernoise.training.metrics import METRICS, rows_of

PROJECT = "hypernoise"


class MetricsLog:
    """Appends rows to `folder`/metrics.jsonl, keeping of an older file only the steps up to `start`."""

    def __init__(self, folder: Path, start: int):
        self.file = folder / METRICS
        kept = [row for row in rows_of(folder) if row["step"] <= start]
        with writing(METRICS, "the checkpoints are whole"):
            write_text(self.file, "".join(json.dumps(row) + "\n" for row in kept))
        self.first = kept[0] if kept else {}

    def write(self, row: dict[str, Any]) -> None:
        with writing(METRICS, "the checkpoints are whole"), self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def check_trackers(names: Sequence[str], folder: Path | None) -> None:
    """Raises InputError for a tracker that is not installed, or that has nowhere to write."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"tracker {name} is not installed: pip install 'hypernoise[{name}]'")
    if names and folder is None:
        raise InputError(f"tracker {names[0]} needs an output folder")


def begin_tracking(accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
    """Tells the run's settings to the trackers."""
    plain = {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in settings.items()}
    accelerator.init_trackers(PROJECT, config=plain)


def track(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """The numbers of a step to the trackers, if there are any."""
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
    accelerator.log(numbers, step=row["step"])
