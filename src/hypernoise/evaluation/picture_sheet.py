"""Before and after on one sheet: each column one caption and one noise, drawn twice."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, PAD, LABEL, HEAD = 144, 8, 118, 46  # px
INK, RIGHT, WRONG = (40, 40, 40), (30, 140, 60), (200, 50, 40)


def before_after(
    captions: Sequence[str], rows: Sequence[tuple[str, Tensor, Sequence[bool]]], title: str
) -> Image.Image:
    """A sheet of labelled rows of pictures under their captions.

    Args:
        captions: one per column.
        rows: (label, pixels [columns, 3, H, W] in [0, 1], right or wrong per picture) from top to bottom;
            a line break in the label starts a smaller second line.
        title: a line at the foot.
    """
    width = LABEL + len(captions) * (TILE + PAD)
    height = HEAD + len(rows) * (TILE + PAD) + 26
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(13)
    for column, caption in enumerate(captions):
        lines = "\n".join(wrap(caption, 20))
        centre = LABEL + column * (TILE + PAD) + TILE // 2
        pen.multiline_text((centre, HEAD - 8), lines, INK, small, anchor="md", align="center", spacing=2)
    for number, (label, pixels, right) in enumerate(rows):
        top = HEAD + number * (TILE + PAD)
        first, _, rest = label.partition("\n")
        pen.text((PAD, top + TILE // 2 - 20), first, INK, font)
        pen.multiline_text((PAD, top + TILE // 2 + 2), rest, INK, small)
        for column, (picture, correct) in enumerate(zip(pixels, right, strict=True)):
            values = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            left = LABEL + column * (TILE + PAD)
            sheet.paste(Image.fromarray(values).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
            pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=RIGHT if correct else WRONG, width=2)
    pen.text((PAD, height - 20), title, INK, small)
    return sheet
