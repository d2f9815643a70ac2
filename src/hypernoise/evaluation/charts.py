"""Small charts drawn with Pillow alone, for a page that must not need a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 520, 300  # px, of one chart
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 38, 54
INK, FAINT = (40, 40, 40), (224, 224, 224)
GLYPHS = str.maketrans({"‖": "|", "√": "sqrt ", "½": "0.5 ", "²": "^2"})  # which Pillow's own font lacks
COLORS = ((30, 90, 170), (200, 80, 30), (30, 140, 60), (130, 60, 160))


@dataclass(frozen=True)
class Line:
    """A named curve through (x, y) points; `dots` marks the points alone."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    across: str = "",
    with_zero: bool = True,
    marks: Mapping[float, str] | None = None,
) -> Image.Image:
    """Curves over common axes. `across` names the horizontal one, `marks` its ticks where they are no round numbers,
    as on a log axis; the vertical one holds 0, or only the points."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    marks = marks or {x: f"{x:g}" for x in _ticks(min(xs), max(xs))}
    x_ticks, y_ticks = sorted(marks), _ticks(min(ys + [0.0] * with_zero), max(ys))
    low_x, high_x = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    low_y, high_y = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across_ = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across_, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    chart = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font, small = ImageDraw.Draw(chart), ImageFont.load_default(14), ImageFont.load_default(11)
    pen.text((LEFT, 8), title.translate(GLYPHS), INK, font)
    for y in y_ticks:
        pen.line((place(low_x, y), place(high_x, y)), FAINT)
        pen.text((LEFT - 6, place(low_x, y)[1]), f"{y:g}", INK, small, anchor="rm")
    for x in x_ticks:
        pen.text((place(x, low_y)[0], HEIGHT - BOTTOM + 6), marks[x], INK, small, anchor="ma")
    pen.line((place(low_x, low_y), place(high_x, low_y)), INK)
    pen.text((WIDTH - RIGHT, HEIGHT - BOTTOM + 20), across, INK, small, anchor="ra")
    left = LEFT
    for line, color in zip(lines, COLORS, strict=False):
        places = [place(x, y) for x, y in line.points]
        if not line.dots:
            pen.line(places, color, 2)
        for x, y in places if line.dots or len(places) < 30 else ():
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), color)
        pen.line(((left, HEIGHT - 14), (left + 18, HEIGHT - 14)), color, 3)
        name = line.name.translate(GLYPHS)
        pen.text((left + 24, HEIGHT - 14), name, INK, small, anchor="lm")
        left += 40 + int(pen.textlength(name, small))
    return chart


def page(text: str, charts: Sequence[Image.Image]) -> Image.Image:
    """Charts two in a row under a text."""
    text, font = text.translate(GLYPHS), ImageFont.load_default(14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, _, text_height = measure.multiline_textbbox((0, 0), text, font, spacing=6)
    top = int(text_height) + 40
    rows = math.ceil(len(charts) / 2)
    sheet = Image.new("RGB", (2 * WIDTH, top + rows * HEIGHT), "white")
    ImageDraw.Draw(sheet).multiline_text((20, 20), text, INK, font, spacing=6)
    for number, chart in enumerate(charts):
        sheet.paste(chart, (number % 2 * WIDTH, top + number // 2 * HEIGHT))
    return sheet


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that cover low to high."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]
