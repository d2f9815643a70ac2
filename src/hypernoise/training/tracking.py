"""One line of JSON per step, in `metrics.jsonl`; a resumed run drops the lines it is about to write again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypernoise.files import write_text


class MetricsLog:
    """Appends rows to `folder`/metrics.jsonl, keeping of an older file only the steps up to `start`."""

    def __init__(self, folder: Path, start: int):
        self.file = folder / "metrics.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [line for line in lines if _step(line) <= start]
        write_text(self.file, "".join(line + "\n" for line in kept))

    def write(self, row: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut short when the process was killed
        return float("inf")
