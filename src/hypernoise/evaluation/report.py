"""Results as one self-contained HTML file, and the charts and pictures of a comparison in it.

Tables, charts, bars by category, and pictures of the same prompts side by side, with filters for category and
verdict. Its content security policy forbids all requests.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageOps

from hypernoise.evaluation.benchmarks import Benchmark, first_of_each
from hypernoise.evaluation.charts import COLORS, Line, line_chart
from hypernoise.evaluation.pictures import opened
from hypernoise.evaluation.records import Records
from hypernoise.evaluation.tables import Table, name_of

Row = Mapping[str, Any]  # of summary.json
SHOWN, SHOWN_EACH = 60, 10  # prompts with pictures, in total or per category
TILE = 160  # px, the longer side of a picture in the file
KINDS = {True: "right", False: "wrong", None: "unjudged"}
VERDICTS = {"": "right and wrong", "right": "right", "wrong": "wrong", "differ": "different verdicts"}


@dataclass(frozen=True)
class Shown:
    """One picture of an example: its method, whether it is right (None: not judged), and a note."""

    column: str
    picture: Path
    right: bool | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        return KINDS[self.right]


@dataclass(frozen=True)
class Example:
    """A prompt with its pictures from the same noise, one per column."""

    prompt: str
    category: str
    pictures: Sequence[Shown]


def page(
    title: str,
    about: Mapping[str, str],
    tables: Sequence[Table],
    charts: Sequence[Image.Image] = (),
    examples: Sequence[Example] = (),
) -> str:
    """The whole file's text. `about` is listed above the tables; a table called "By category" gets bars."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("hypernoise.evaluation").joinpath("page.html").read_text())
    columns = dict.fromkeys(shown.column for example in examples for shown in example.pictures)
    categories = dict.fromkeys(example.category for example in examples)
    picks = {"category": {"": "every category", **{name: name for name in categories}}}
    if any(shown.right is not None for example in examples for shown in example.pictures):
        picks |= {"verdict": VERDICTS, "column": {"": "any column", **{name: name for name in columns}}}
    return template.render(
        title=title,
        about=about,
        tables=tables,
        bars=next((table for table in tables if table.heading == "By category"), None),
        charts=[embedded(chart, "PNG") for chart in charts],
        examples=examples,
        picks=picks,
        picture=_thumbnail,
        colors=["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS],
        tile=TILE,
    )


def _thumbnail(file: Path) -> str:
    with opened(file) as picture:
        return embedded(ImageOps.contain(picture.convert("RGB"), (TILE, TILE)), "JPEG")


def embedded(picture: Image.Image, kind: str) -> str:
    """A data: URL with the picture."""
    kept = io.BytesIO()
    picture.save(kept, kind, quality=88)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(kept.getvalue()).decode()


def network_calls(row: Row) -> float:
    """Denoiser calls per image, forward and backward."""
    return row["denoiser_forwards"] + row["denoiser_backwards"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) points on the Pareto front, cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def charts_of(rows: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    """Score against calls, against inference steps if there are several, and against strength with reward and KL if
    there are several; reward instead of score without a judge."""
    field = next((field for field in ("score", "reward") if rows[0][field] is not None), None)
    if field is None or len(rows) < 2:
        return []
    charts = [_over_calls(rows, field)]
    steps = sorted({row["inference_steps"] for row in rows})
    if len(steps) > 1:
        marks = {float(place): str(count) for place, count in enumerate(steps)}
        places = [float(steps.index(row["inference_steps"])) for row in rows]
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
    """A field of the rows, at their places on the horizontal axis, with a line per name."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    for place, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0]):
        lines.setdefault(name_of_line(row), []).append((place, row))
    drawn = [
        Line(name, [(place, row[field]) for place, row in own], spans=_spans([row for _, row in own], field))
        for name, own in lines.items()
    ]
    return line_chart(drawn, title=f"{field} over {across}", across=across, marks=marks, with_zero=False)


def _over_calls(rows: Sequence[Row], field: str) -> Image.Image:
    """Every row by its calls, on a log axis; the line joins the Pareto front."""
    points = [(math.log10(network_calls(row)), row[field]) for row in rows]
    front = [points[i] for i in pareto_front(points)]
    lines = [Line("best for the calls", front)] if len(front) > 1 else []
    for row, point in zip(rows, points, strict=True):
        lines.append(Line(name_of(row), [point], dots=True, spans=_spans([row], field)))
    low, high = (math.floor(end(x for x, _ in points)) for end in (min, max))
    marks = {float(power): f"{10**power:g}" for power in range(low, high + 2)}
    title = f"{field} over denoiser calls per image"
    return line_chart(lines, title=title, across="calls, forward and backward", marks=marks, with_zero=False)


def _spans(rows: Sequence[Row], field: str) -> list[Sequence[float]]:
    return [row["score_ci95"] for row in rows if field == "score" and row["score_ci95"] is not None]


def examples_of(benchmark: Benchmark, drawn: Mapping[str, Records]) -> list[Example]:
    """The first prompts of each category with each row's picture from the first noise; `drawn` has records by name."""
    count = len(benchmark.prompts)
    names = benchmark.categories or ["all"] * count
    chosen = first_of_each(names, SHOWN_EACH if benchmark.categories else SHOWN)

    def shown(name: str, records: Records, prompt: int) -> Shown:
        place = prompt * (len(records.files) // count)
        picture = records.pictures[place]
        right = picture.get("right")
        verdict = bool(right) if right in (0, 1) else None  # some judges return degrees
        return Shown(name, records.files[place], verdict, picture.get("note", ""))

    return [
        Example(benchmark.prompts[i], names[i], [shown(name, records, i) for name, records in drawn.items()])
        for i in chosen
    ]
