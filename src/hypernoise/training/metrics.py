"""metrics.jsonl, read: a row per step, with the columns that the step had. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The whole rows of a run, oldest first; a line that a killed process cut short is left out."""
    file = folder / METRICS
    lines = file.read_text().splitlines() if file.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def mean_of(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean of a column over the rows that have it; None if none has."""
    values = [row[column] for row in rows if column in row]
    return sum(values) / len(values) if values else None
