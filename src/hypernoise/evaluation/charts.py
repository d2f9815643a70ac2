"""Small charts drawn with Pillow only, so that no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 520, 300  # px, of one chart
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 38, 54
INK, FAINT = (40, 40, 40), (224, 224, 224)
GLYPHS = str.maketrans({"‖": "|", "√": "sqrt ", "½": "0.5 ", "²": "^2"})  # missing in Pillow's built-in font
COLORS = (
    *((30, 90, 170), (200, 80, 30), (30, 140, 60), (130, 60, 160)),
    *((150, 110, 40), (50, 150, 160), (200, 60, 90), (110, 110, 110)),
)


@dataclass(frozen=True)
class Line:
    """A named curve through (x, y) points; `dots` draws only the points. `spans` are intervals of their y."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    spans: Sequence[Sequence[float]] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    across: str = "",
    marks: Mapping[float, str] | None = None,
) -> Image.Image:
    """Curves on shared axes, with a line of legend for each below.

    Args:
        across: label of the horizontal axis.
        marks: ticks of the horizontal axis if they are not round numbers, as on a log axis.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for span in line.spans for y in span]
    marks = marks or {x: f"{x:g}" for x in _ticks(min(xs), max(xs))}
    x_ticks, y_ticks = sorted(marks), _ticks(min(ys), max(ys))
    low_x, high_x = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    low_y, high_y = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])
    small = ImageFont.load_default(11)

    def place(x: float, y: float) -> tuple[float, float]:
        across_ = LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT)
        return across_, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    chart = Image.new("RGB", (WIDTH, HEIGHT + 16 * (len(lines) - 1)), "white")
    pen, font = ImageDraw.Draw(chart), ImageFont.load_default(14)
    pen.text((LEFT, 8), title.translate(GLYPHS), INK, font)
    for y in y_ticks:
        pen.line((place(low_x, y), place(high_x, y)), FAINT)
        pen.text((LEFT - 6, place(low_x, y)[1]), f"{y:g}", INK, small, anchor="rm")
    for x in x_ticks:
        pen.text((place(x, low_y)[0], HEIGHT - BOTTOM + 6), marks[x], INK, small, anchor="ma")
    pen.line((place(low_x, low_y), place(high_x, low_y)), INK)
    pen.text((WIDTH - RIGHT, HEIGHT - BOTTOM + 20), across, INK, small, anchor="ra")
    for number, line in enumerate(lines):
        color, low = COLORS[number % len(COLORS)], HEIGHT - 14 + 16 * number
        places = [place(x, y) for x, y in line.points]
        if not line.dots:
            pen.line(places, color, 2)
        for x, y in places if line.dots or len(places) < 30 else ():
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), color)
        for (x, _), span in zip(line.points, line.spans, strict=False):
            pen.line([place(x, y) for y in span], color)
        pen.line(((LEFT, low), (LEFT + 18, low)), color, 3)
        pen.text((LEFT + 24, low), line.name.translate(GLYPHS), INK, small, anchor="lm")
    return chart


def page(text: str, charts: Sequence[Image.Image]) -> Image.Image:
    """Charts in rows of two under a text."""
    text, font = text.translate(GLYPHS), ImageFont.load_default(14)
    top = 40 + 20 * len(text.splitlines())
    tall = max((chart.height for chart in charts), default=0)
    sheet = Image.new("RGB", (2 * WIDTH, top + math.ceil(len(charts) / 2) * tall), "white")
    ImageDraw.Draw(sheet).multiline_text((20, 20), text, INK, font, spacing=6)
    for number, chart in enumerate(charts):
        sheet.paste(chart, (number % 2 * WIDTH, top + number // 2 * tall))
    return sheet


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that cover low to high."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]
