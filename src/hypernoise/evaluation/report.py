"""A comparison to look at: a table, a Pareto plot and a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont, ImageOps

# heading, width, how a cell is written; a column no row has anything in is left out
COLUMNS: list[tuple[str, int, str, str]] = [
    ("score", 7, "score", ".3f"),
    ("gain", 8, "gain", "+.3f"),
    ("95 %", 19, "gain_ci95", "+.3f"),
    ("reward", 9, "reward", ".3f"),
    ("in reward", 11, "reward_gain", "+.3f"),
    ("95 %", 21, "reward_gain_ci95", "+.3f"),
    ("watched", 9, "watched_reward", ".3f"),
    ("artefacts", 10, "artefacts", ".3f"),
    ("diversity", 10, "diversity", ".3f"),
    ("KL", 8, "kl", ".2f"),
    ("forwards", 9, "denoiser_forwards", "g"),
    ("backwards", 10, "denoiser_backwards", "g"),
    ("decodes", 8, "decodes", "g"),
    ("rewards", 8, "reward_calls", "g"),
]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Calls and time are per image; gains are over plain, their intervals paired over prompts."""
    names = max([6, *(len(row["method"]) for row in rows)])
    shown = [column for column in COLUMNS if any(row[column[2]] is not None for row in rows)]
    timed = any(row["seconds_per_image"] is not None for row in rows)
    head = f"{'steps':>5} {'method':<{names}}" + "".join(f"{c[0]:>{c[1]}}" for c in shown)
    lines = [head + f"{'ms/image':>10}" * timed]
    for row in rows:
        cells = "".join(f"{_cell(row[field], spec):>{width}}" for _, width, field, spec in shown)
        time = f"{1000 * row['seconds_per_image']:>10.1f}" if timed else ""
        lines.append(f"{_cell(row['steps'], 'd'):>5} {row['method']:<{names}}{cells}{time}")
    return "\n".join(lines)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"[{value[0]:{spec}}, {value[1]:{spec}}]"
    return f"{value:{spec}}"


def network_calls(row: dict[str, Any]) -> float:
    """Denoiser calls per image, forwards and backwards alike."""
    return row["denoiser_forwards"] + row["denoiser_backwards"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) points that no other equals or beats in both, cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 440, 64, 40, 150, 52  # px
INK, PALE, FRONT = "#282828", "#d8d8d8", "#1e8c3c"


def pareto_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Score (or reward, where nothing is judged) over network calls per image, on a log axis, as SVG.

    Bars are the score's 95 % intervals; the line joins the methods that nothing cheaper equals.
    """
    field = "score" if rows[0]["score"] is not None else "reward"
    points = [(network_calls(row), row[field]) for row in rows]
    bars = [(row["score_ci95"] if field == "score" else None) or [row[field]] * 2 for row in rows]
    low, high = min(bar[0] for bar in bars), max(bar[1] for bar in bars)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    decades = (
        math.floor(math.log10(min(x for x, _ in points))),
        math.floor(math.log10(max(x for x, _ in points))) + 1,
    )

    def across(calls: float) -> float:
        return LEFT + (math.log10(calls) - decades[0]) / (decades[1] - decades[0]) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{field} over denoiser calls per image (forward and backward)</text>',
    ]
    for decade in range(decades[0], decades[1] + 1):
        x = across(10**decade)
        drawn.append(f'<path d="M{x:.1f} {TOP}V{floor}" stroke="{PALE}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{10**decade:g}</text>')
    for i in range(5):
        value = low + (high - low) * i / 4
        drawn.append(f'<path d="M{LEFT} {down(value):.1f}H{WIDTH - RIGHT}" stroke="{PALE}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    best = pareto_front(points)
    path = "L".join(f"{across(points[i][0]):.1f} {down(points[i][1]):.1f}" for i in best)
    drawn.append(f'<path d="M{path}" stroke="{FRONT}" stroke-width="1.5" fill="none"/>')
    several = len({row["steps"] for row in rows}) > 1
    heights = _apart([(across(calls), down(value)) for calls, value in points])
    for i, (row, (calls, value), bar) in enumerate(zip(rows, points, bars, strict=True)):
        x, y, colour = across(calls), down(value), FRONT if i in best else INK
        name = f"{row['method']}, {row['steps']} steps" if several else row["method"]
        drawn.append(f'<path d="M{x:.1f} {down(bar[0]):.1f}V{down(bar[1]):.1f}" stroke="{colour}"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 7:.1f}" y="{heights[i] + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*drawn, "</svg>\n"])


def _apart(places: Sequence[tuple[float, float]], near: float = 60, line: float = 13) -> list[float]:
    """Heights of labels at these (x, y), moved down where they would lie on one another."""
    heights = [y for _, y in places]
    order = sorted(range(len(places)), key=lambda i: places[i][1])
    for done, i in enumerate(order):
        for other in order[:done]:
            if abs(places[i][0] - places[other][0]) < near:
                heights[i] = max(heights[i], heights[other] + line)
    return heights


TILE, PAD, LABEL, HEAD = 128, 6, 150, 42  # px


def contact_sheet(prompts: Sequence[str], columns: Sequence[tuple[str, Sequence[Path]]], title: str) -> Image.Image:
    """Rows of prompts, columns of methods.

    Args:
        prompts: one per row.
        columns: (method, one picture's file per row).
        title: a line at the foot.
    """
    size = (LABEL + len(columns) * (TILE + PAD), HEAD + len(prompts) * (TILE + PAD) + 24)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (name, files) in enumerate(columns):
        left = LABEL + column * (TILE + PAD)
        heading = "\n".join(wrap(name, 18))
        pen.multiline_text((left + TILE // 2, HEAD - 6), heading, INK, font, anchor="md", align="center", spacing=1)
        for row, file in enumerate(files):
            with Image.open(file) as picture:
                shown = ImageOps.contain(picture.convert("RGB"), (TILE, TILE))
                sheet.paste(shown, (left, HEAD + row * (TILE + PAD)))
    for row, prompt in enumerate(prompts):
        text = "\n".join(wrap(prompt, 20)[:6])
        pen.multiline_text((PAD, HEAD + row * (TILE + PAD) + 8), text, INK, font, spacing=3)
    pen.text((PAD, size[1] - 19), title, INK, font)
    return sheet
