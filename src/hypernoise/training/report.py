"""A run's curves as one HTML page, drawn from its metrics.jsonl alone. Imports no torch."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypernoise.training.metrics import rows_of
from hypernoise.training.run_status import end_of

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 200, 58, 24, 10  # px of a chart, and its margins
POINTS = 400  # of a curve at most: beyond, stretches of steps are averaged
BLUE, GREY = "#1e5aaa", "#ddd"
LEVELS = {"lipschitz": 1.0}  # a height that a chart shows with its curve
SHOWN = 3  # sample grids, the newest
CHARTS = {  # title of each column's chart; columns that begin with "reward/" are added
    "loss": "loss",
    "reward": "reward",
    "watched_reward": "watched reward",
    "kl": "KL as ½‖f‖², nats",
    "kl_whole": "KL, whole, nats",
    "lipschitz": "Lipschitz constant seen, against 1",
    "gap_bound": "most that the L2 term can leave out, nats",
    "kl_gap": "what the L2 term leaves out, nats",
    "gradient_norm": "gradient norm before clipping",
    "saturated": "share of clipped pixel values",
    "images_per_second": "images per second",
    "memory_gib": "memory, GiB",
}


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every column that there is a chart for and that has values."""
    members = sorted({name for row in rows for name in row if name.startswith("reward/")})
    found = {}
    for name in [*CHARTS, *members]:
        points = [(float(row["step"]), float(row[name])) for row in rows if name in row]
        if points:
            found[name] = _thinned(points)
    whole = [(float(r["step"]), r["kl"] + r["kl_gap"]) for r in rows if {"kl", "kl_gap"} <= r.keys()]
    return found | ({"kl_whole": whole} if whole else {})


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    length = math.ceil(len(points) / POINTS)
    stretches = [points[i : i + length] for i in range(0, len(points), length)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def svg(title: str, points: Sequence[tuple[float, float]], level: float | None = None) -> str:
    """One curve over its own axes, as SVG, with a dashed line at `level`."""
    xs, ys = [x for x, _ in points], [y for _, y in points] + ([] if level is None else [level])
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = min(ys), max(ys)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / span_x * (WIDTH - LEFT - 10)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - low_y) / span_y * (HEIGHT - TOP - BOTTOM):.1f}"

    lines = []
    for share in (0.0, 0.5, 1.0):
        y = low_y + share * span_y
        left, height = place(low_x, y).split(",")
        lines.append(f'<line x1="{left}" y1="{height}" x2="{WIDTH - 10}" y2="{height}" stroke="{GREY}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{height}" text-anchor="end" dy="4">{y:.4g}</text>')
    for x, anchor in ((low_x, "start"), (high_x, "end")):
        left = place(x, low_y).split(",")[0]
        lines.append(f'<text x="{left}" y="{HEIGHT - 6}" text-anchor="{anchor}">{x:g}</text>')
    if level is not None:
        height = place(low_x, level).split(",")[1]
        lines.append(
            f'<line x1="{LEFT}" y1="{height}" x2="{WIDTH - 10}" y2="{height}" stroke="black" stroke-dasharray="4"/>'
        )
    path = " ".join(place(x, y) for x, y in points)
    shape = f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(lines)}{shape}</svg></figure>'
    )


def state_line(rows: Sequence[Mapping[str, Any]], ended: str = "") -> str:
    """Where the run is, in a line."""
    last = rows[-1]
    told = [f"step {last['step']}"]
    for name, form in (("reward", ".4f"), ("kl", ".3f"), ("images_per_second", ".1f"), ("memory_gib", ".2f")):
        if name in last:
            told.append(f"{name.replace('_', ' ')} {last[name]:{form}}")
    skipped = sum(row.get("skipped", 0) for row in rows)
    told += [f"{skipped} steps skipped"] if skipped else []
    left = last.get("eta_seconds", 0)
    told.append(ended or (f"{left // 3600:.0f} h {left % 3600 // 60:.0f} min left" if left else "done"))
    return ", ".join(told)


def page(folder: Path, refresh: int = 0) -> str:
    """The whole page, with its pictures inside; reloaded by the browser every `refresh` seconds if that is not 0."""
    rows = rows_of(folder)
    charts = "".join(svg(CHARTS.get(name, name), points, LEVELS.get(name)) for name, points in curves(rows).items())
    faults = [f"step {row['step']}: {fault}" for row in rows for fault in row.get("faults", [])][-10:]
    grids = sorted((folder / "samples").glob("step-*.png"))[-SHOWN:]
    pictures = "".join(
        f"<figure><figcaption>{file.stem}: plain above, improved below</figcaption>"
        f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"></figure>'
        for file in reversed(grids)
    )
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    told = state_line(rows, end_of(folder) or "")
    skipped = "<h2>Skipped</h2><pre>" + html.escape("\n".join(faults)) + "</pre>" if faults else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>{html.escape(folder.name)}</title>'
        "<style>body{font:14px sans-serif;margin:24px}figure{display:inline-block;margin:0 16px 16px 0}"
        "svg text{font-size:11px}img{max-width:100%}</style>"
        f"<h1>{html.escape(folder.name)}</h1><p>{html.escape(told)}</p>{charts}{skipped}{pictures}</html>\n"
    )
