"""metrics.jsonl: one row per step, with that step's columns. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hypernoise.errors import InputError
from hypernoise.files import check_file, parse_json, write_text, writing
from hypernoise.settings import MOST, finite

METRICS = "metrics.jsonl"
KEPT = 10_000  # newest rows kept in memory
PROJECT = "hypernoise"  # its name in trackers


def rows_of(folder: Path | None) -> list[dict[str, Any]]:
    """The rows of a run, oldest first, without damaged lines and values beyond fp32; none without a folder."""
    if folder is None or not (file := folder / METRICS).exists():
        return []
    check_file(file, str(file))
    return [row for row in map(_row, file.read_bytes().splitlines()) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode(), METRICS)
    except (InputError, UnicodeDecodeError):  # truncated
        return None
    if not (isinstance(row, dict) and type(row.get("step")) is int and 0 < row["step"] <= MOST):
        return None
    return {name: value for name, value in row.items() if name == "faults" or finite(value)}


def mean_of(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean of a column over the rows that have it; None without such rows."""
    values = [row[column] for row in rows if column in row]
    return sum(values) / len(values) if values else None


class Log:
    """Writes each step's row to the history, metrics.jsonl, the trackers and the progress bar.

    earlier: the rows before the first step, which an existing metrics.jsonl keeps. Only the first process writes files.
    """

    def __init__(self, accelerator: Any, folder: Path | None, earlier: Sequence[Any], settings: Any, bar: tqdm):
        self.accelerator, self.bar, self.skipped = accelerator, bar, 0
        self.history: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.file = folder / METRICS if folder is not None and accelerator.is_main_process else None
        if self.file is not None:
            with writing(METRICS, "the checkpoints are intact"):
                write_text(self.file, "".join(json.dumps(row) + "\n" for row in earlier))
        plain = {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in settings.items()}
        accelerator.init_trackers(PROJECT, config=plain)

    def write(self, row: Mapping[str, Any]) -> None:
        """Omits non-finite numbers."""
        row = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
        self.history.append(row)
        if self.file is not None:
            with writing(METRICS, "the checkpoints are intact"), self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=row["step"])
        self.skipped += "faults" in row
        shown = {"reward": f"{row.get('reward', math.nan):.4f}", "kl": f"{row.get('kl', math.nan):.3f}"}
        self.bar.set_postfix(shown | ({"skipped": self.skipped} if self.skipped else {}), refresh=False)
        self.bar.update()


def check_trackers(names: Sequence[str], folder: str | Path | None) -> None:
    """Raises InputError for a tracker that is not installed, or has no directory to write to."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"tracker {name} is not installed: pip install 'hypernoise[{name}]'")
    if names and folder is None:
        raise InputError(f"tracker {names[0]} needs an output_dir")
