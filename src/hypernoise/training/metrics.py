"""metrics.jsonl, read: a row per step, with the columns that the step had. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError

METRICS = "metrics.jsonl"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The whole rows of a run, oldest first; a line that a killed process cut short, or that is no row, is left out."""
    file = folder / METRICS
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def mean_of(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean of a column over the rows that have it; None if none has."""
    values = [row[column] for row in rows if column in row]
    return sum(values) / len(values) if values else None
