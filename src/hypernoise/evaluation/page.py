"""Results as tables, and as one self-contained HTML file: tables, charts, bars by category, pictures side by side.

Pictures can be filtered by category and verdict. The file's content security policy forbids all requests.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageOps

from hypernoise.evaluation.charts import COLORS, Line, line_chart
from hypernoise.evaluation.picture_sheet import Example
from hypernoise.evaluation.pictures import opened
from hypernoise.evaluation.result_rows import name_of

Row = Mapping[str, Any]  # of summary.json
TILE = 160  # px, the longer side of a picture in the file

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
    rows: Mapping[str, Row]

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


def result_tables(rows: Sequence[Row]) -> list[Table]:
    """Results, and the score by category if any. Calls and seconds are per image, gains are over plain."""
    named = {name_of(row): row for row in rows}
    tables = [Table("Results", RESULTS, named)]
    names = list(dict.fromkeys(name for row in rows for name in row["categories"]))
    if names:
        columns = [(name, name, ".3f") for name in names]
        tables.append(Table("By category", columns, {name: row["categories"] for name, row in named.items()}))
    return tables


def score_tables(rows: Sequence[Row]) -> list[Table]:
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


def page(
    title: str,
    about: Mapping[str, Any],
    tables: Sequence[Table],
    charts: Sequence[Image.Image] = (),
    examples: Sequence[Example] = (),
) -> str:
    """The whole file's text. `about` is listed above the tables; a table called "By category" gets bars."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("hypernoise.evaluation").joinpath("page.html").read_text())
    return template.render(
        title=title,
        about=about,
        tables=tables,
        charts=[embedded(chart, "PNG") for chart in charts],
        examples=examples,
        judged=any(shown.right is not None for example in examples for shown in example.pictures),
        picture=lambda file: embedded(ImageOps.contain(opened(file), (TILE, TILE)), "JPEG"),
        colors=["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS],
        tile=TILE,
    )


def embedded(picture: Image.Image, kind: str) -> str:
    """A data: URL with the picture."""
    kept = io.BytesIO()
    picture.save(kept, kind, quality=88)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(kept.getvalue()).decode()


def network_calls(row: Row) -> float:
    """Denoiser calls per image, forward and backward."""
    return row["denoiser_forwards"] + row["denoiser_backwards"]


def charts_of(rows: Sequence[Row]) -> list[Image.Image]:
    """Score against calls, against inference steps if there are several, and against strength with reward and KL if
    there are several; reward instead of score without a judge."""
    field = next((field for field in ("score", "reward") if rows[0][field] is not None), None)
    if field is None or len(rows) < 2:
        return []
    calls = [math.log10(network_calls(row)) for row in rows]
    powers = {float(power): f"{10**power:g}" for power in range(math.floor(min(calls)), math.floor(max(calls)) + 2)}
    charts = [_curves(rows, calls, field, "denoiser calls per image", name_of, powers)]
    places = [math.log2(row["inference_steps"]) for row in rows]
    if len(set(places)) > 1:
        marks = {place: f"{2**place:g}" for place in places}
        charts.append(_curves(rows, places, field, "inference steps", lambda row: row["method"], marks))
    strengths = {"plain": 0.0, "hypernoise": 1.0} | {
        row["method"]: float(row["method"].partition("@")[2]) for row in rows if "@" in row["method"]
    }
    for name in ("score", "reward", "kl") if len(strengths) > 2 else ():
        own = [row for row in rows if row["method"] in strengths and row[name] is not None]
        places = [strengths[row["method"]] for row in own]
        if own:
            charts.append(_curves(own, places, name, "strength", lambda row: f"{row['inference_steps']} steps"))
    return charts


def _curves(
    rows: Sequence[Row],
    places: Sequence[float],
    field: str,
    across: str,
    name_of_line: Callable[[Row], str],
    marks: Mapping[float, str] | None = None,
) -> Image.Image:
    """A field of the rows, the score with its intervals, at their places on the horizontal axis; a line per name."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    for place, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0]):
        lines.setdefault(name_of_line(row), []).append((place, row))
    drawn = []
    for name, own in lines.items():
        spans = [row["score_ci95"] for _, row in own if field == "score" and row["score_ci95"] is not None]
        drawn.append(Line(name, [(place, row[field]) for place, row in own], spans=spans))
    return line_chart(drawn, title=f"{field} over {across}", across=across, marks=marks)
