"""Pictures side by side: each column one prompt and one noise, drawn in as many ways as there are rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hypernoise.evaluation.records import Records

TILE, PAD, LABEL, HEAD = 144, 8, 118, 46  # px
INK, RIGHT, WRONG = (40, 40, 40), (30, 140, 60), (200, 50, 40)


def picture_sheet(
    captions: Sequence[str], rows: Sequence[tuple[str, Sequence[Path], Sequence[bool]]], title: str
) -> Image.Image:
    """A sheet of labelled rows of pictures under their captions.

    Args:
        captions: one per column.
        rows: (label, pictures, right or wrong per picture) from top to bottom; a line break in the label starts a
            smaller second line.
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
    for number, (label, files, right) in enumerate(rows):
        top = HEAD + number * (TILE + PAD)
        first, _, rest = label.partition("\n")
        pen.text((PAD, top + TILE // 2 - 20), first, INK, font)
        pen.multiline_text((PAD, top + TILE // 2 + 2), rest, INK, small)
        for column, (file, correct) in enumerate(zip(files, right, strict=True)):
            left = LABEL + column * (TILE + PAD)
            with Image.open(file) as picture:
                sheet.paste(ImageOps.pad(picture.convert("RGB"), (TILE, TILE), color="white"), (left, top))
            pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=RIGHT if correct else WRONG, width=2)
    pen.text((PAD, height - 20), title, INK, small)
    return sheet


def first_noise(records: Records, prompts: Sequence[int]) -> tuple[list[Path], list[bool]]:
    """The pictures of these prompts, by number, from their first noise, and whether the judge found them right."""
    right = records.values["right"]
    assert right is not None  # the sheet is of judged pictures
    noises = right.shape[1]
    return [records.files[i * noises] for i in prompts], [bool(right[i, 0]) for i in prompts]
