"""A comparison's report: curves, costs, and pictures from the same noise side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from hypernoise.evaluation.benchmarks import Benchmark, first_of_each
from hypernoise.evaluation.charts import Line, line_chart
from hypernoise.evaluation.page import Example, Shown
from hypernoise.evaluation.records import Records
from hypernoise.evaluation.tables import name_of

SHOWN, SHOWN_EACH = 60, 10  # prompts with pictures, in total or per category


def network_calls(row: Mapping[str, Any]) -> float:
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
        methods = dict.fromkeys(row["method"] for row in rows)
        own = {method: [row for row in rows if row["method"] == method] for method in methods}
        lines = [
            Line(method, [(steps.index(r["inference_steps"]), r[field]) for r in of], spans=_spans(of, field))
            for method, of in own.items()
        ]
        marks = {float(place): str(count) for place, count in enumerate(steps)}
        charts.append(
            line_chart(
                lines, title=f"{field} over inference steps", across="inference steps", marks=marks, with_zero=False
            )
        )
    return charts + _over_strength(rows)


def _over_strength(rows: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    """Score, reward and KL of the noise network against strength, from plain on."""
    strengths = {"plain": 0.0, "hypernoise": 1.0} | {
        row["method"]: float(row["method"].partition("@")[2]) for row in rows if "@" in row["method"]
    }
    if len(strengths) == 2:
        return []
    steps = sorted({row["inference_steps"] for row in rows})
    known = [row for row in rows if row["method"] in strengths]
    found = sorted(((strengths[row["method"]], row) for row in known), key=lambda pair: pair[0])
    charts = []
    for field in ("score", "reward", "kl"):
        seen = [(strength, row) for strength, row in found if row[field] is not None]
        points = {count: [(at, row[field]) for at, row in seen if row["inference_steps"] == count] for count in steps}
        lines = [Line(f"{count} steps", own) for count, own in points.items() if own]
        if lines:
            charts.append(line_chart(lines, title=f"{field} over strength", across="strength", with_zero=False))
    return charts


def _over_calls(rows: Sequence[Mapping[str, Any]], field: str) -> Image.Image:
    """Every row by its calls, on a log axis; the line joins the Pareto front."""
    points = [(math.log10(network_calls(row)), row[field]) for row in rows]
    front = [points[i] for i in pareto_front(points)]
    lines = [Line("best for the calls", front)] if len(front) > 1 else []
    lines += [
        Line(name_of(row), [point], dots=True, spans=_spans([row], field))
        for row, point in zip(rows, points, strict=True)
    ]
    low, high = math.floor(min(x for x, _ in points)), math.floor(max(x for x, _ in points)) + 1
    marks = {float(power): f"{10**power:g}" for power in range(low, high + 1)}
    title = f"{field} over denoiser calls per image"
    return line_chart(lines, title=title, across="calls, forward and backward", marks=marks, with_zero=False)


def _spans(rows: Sequence[Mapping[str, Any]], field: str) -> list[Sequence[float]]:
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
