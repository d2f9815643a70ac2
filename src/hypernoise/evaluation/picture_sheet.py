"""Sheets of pictures: a column per prompt and noise, a row per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hypernoise.evaluation.benchmarks import first_of_each
from hypernoise.evaluation.pictures import opened
from hypernoise.evaluation.records import Records
from hypernoise.evaluation.tables import name_of

TILE, PAD, LABEL, HEAD = 144, 8, 118, 46  # px
INK, RIGHT, WRONG = (40, 40, 40), (30, 140, 60), (200, 50, 40)
FRAMES = {True: RIGHT, False: WRONG, None: (255, 255, 255)}


def before_and_after(
    prompts: Sequence[str],
    categories: Sequence[str] | None,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Records],
) -> Image.Image:
    """The first two prompts of each category (the first 12 without categories) from their first noise, with a row of
    pictures for each of `rows`, taken from `records`."""
    chosen = first_of_each(categories, 2) if categories else list(range(min(12, len(prompts))))
    sheet = []
    for row, own in zip(rows, records, strict=True):
        judge = "" if row["score"] is None else f"\njudge {row['score']:.2f}"
        files, verdicts = first_noise(own, chosen, len(own.files) // len(prompts))
        sheet.append((name_of(row).replace(", ", "\n") + judge, files, verdicts))
    judged = "" if rows[0]["score"] is None else " Green frame: right by the judge; red: wrong."
    return picture_sheet([prompts[i] for i in chosen], sheet, "Same prompts, same noise." + judged)


def picture_sheet(
    captions: Sequence[str], rows: Sequence[tuple[str, Sequence[Path], Sequence[bool | None]]], title: str
) -> Image.Image:
    """A sheet of labelled rows of pictures under captions.

    Args:
        captions: one per column.
        rows: (label, pictures, right, wrong or not judged per picture) from top to bottom; text after a line break in
            the label is smaller.
        title: a line at the bottom.
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
            with opened(file) as picture:
                sheet.paste(ImageOps.pad(picture.convert("RGB"), (TILE, TILE), color="white"), (left, top))
            pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=FRAMES[correct], width=2)
    pen.text((PAD, height - 20), title, INK, small)
    return sheet


def first_noise(records: Records, prompts: Sequence[int], noises: int) -> tuple[list[Path], list[bool | None]]:
    """The pictures of these prompts, by number, from their first noises, and the judge's verdicts on them."""
    right = records.values["right"]
    verdicts = [None if right is None else bool(right[i, 0]) for i in prompts]
    return [records.files[i * noises] for i in prompts], verdicts
