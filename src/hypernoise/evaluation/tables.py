"""Tables of results, as plain text; the page shows the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Column = tuple[str, str, str]
"""Heading, field, format."""

RESULTS: list[Column] = [
    ("score", "score", ".3f"), ("95 %", "score_ci95", ".3f"), ("gain", "gain", "+.3f"), ("95 %", "gain_ci95", "+.3f"),
    ("reward", "reward", ".3f"), ("reward gain", "reward_gain", "+.3f"), ("95 %", "reward_gain_ci95", "+.3f"),
    ("validation", "validation_reward", ".3f"), ("artefacts", "artefacts", ".3f"), ("diversity", "diversity", ".3f"),
    ("KL", "kl", ".2f"), ("forwards", "denoiser_forwards", "g"), ("backwards", "denoiser_backwards", "g"),
    ("decodes", "decodes", "g"), ("rewards", "reward_calls", "g"), ("s/image", "seconds_per_image", ".2g"),
]  # fmt: skip
COUNTS: list[Column] = [("pictures", "images", "d"), ("prompts", "prompts", "d")]


@dataclass(frozen=True)
class Table:
    """Rows by name, without columns that no row fills."""

    heading: str
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def shown(self) -> list[Column]:
        return [column for column in self.columns if any(row.get(column[1]) is not None for row in self.rows.values())]

    def cells(self, name: str) -> list[str]:
        return [cell(self.rows[name].get(field), spec) for _, field, spec in self.shown]


def cell(value: Any, spec: str) -> str:
    """The text of a number, an interval, or nothing."""
    if value is None:
        return ""
    return f"[{value[0]:{spec}}, {value[1]:{spec}}]" if isinstance(value, list) else f"{value:{spec}}"


def name_of(row: Mapping[str, Any]) -> str:
    """Method and inference steps: the name of a row."""
    steps = row["inference_steps"]
    return row["method"] if steps is None else f"{row['method']}, {steps} step{'s' * (steps > 1)}"


def result_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Results, and the score by category if any. Calls and seconds are per image, gains are over plain."""
    named = {name_of(row): row for row in rows}
    tables = [Table("Results", RESULTS, named)]
    names = list(dict.fromkeys(name for row in rows for name in row["categories"]))
    if names:
        columns = [(name, name, ".3f") for name in names]
        tables.append(Table("By category", columns, {name: row["categories"] for name, row in named.items()}))
    return tables


def score_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of folders: their pictures, results, the score by category if any, and the mean of each reward."""
    results, *categories = result_tables(rows)
    tables = [Table("Results", [*COUNTS, *RESULTS], results.rows), *categories]
    rewards: list[Column] = [("95 %" if "_ci95" in name else name, name, ".4f") for name in rows[0]["rewards"]]
    return [*tables, Table("Rewards", rewards, {row["method"]: row["rewards"] for row in rows})] if rewards else tables


def as_text(table: Table) -> str:
    lines = [["", *(heading for heading, _, _ in table.shown)]]
    lines += [[name, *table.cells(name)] for name in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        line[0].ljust(widths[0]) + "".join(f"  {text:>{wide}}" for text, wide in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
