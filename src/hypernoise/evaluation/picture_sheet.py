"""Pictures of the same prompts from the same noises, side by side: examples for a report, and sheets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hypernoise.evaluation.benchmarks import Benchmark, first_of_each
from hypernoise.evaluation.pictures import opened
from hypernoise.evaluation.records import Records
from hypernoise.evaluation.result_rows import name_of

TILE, PAD, LABEL, HEAD = 144, 8, 118, 46  # px
INK, RIGHT, WRONG = (40, 40, 40), (30, 140, 60), (200, 50, 40)
FRAMES = {True: RIGHT, False: WRONG, None: (255, 255, 255)}


@dataclass(frozen=True)
class Shown:
    """One picture of an example: its method, whether it is right (None: not judged), and a note."""

    method: str
    picture: Path
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt with its pictures from the same noise, one per method."""

    prompt: str
    category: str
    pictures: Sequence[Shown]


def examples_of(benchmark: Benchmark, drawn: Mapping[str, Records], *, each: int, most: int) -> list[Example]:
    """The first `each` prompts of each category, `most` without categories, from their first noise; `drawn` has the
    records of each method."""
    count = len(benchmark.prompts)
    names = benchmark.categories or ["all"] * count

    def shown(method: str, records: Records, prompt: int) -> Shown:
        place = prompt * (len(records.files) // count)
        picture = records.pictures[place]
        right = {0.0: False, 1.0: True}.get(picture.get("right", 0.5))  # some judges return degrees
        return Shown(method, records.files[place], right, picture.get("note", ""))

    return [
        Example(benchmark.prompts[i], names[i], [shown(method, records, i) for method, records in drawn.items()])
        for i in first_of_each(names, each if benchmark.categories else most)
    ]


def before_and_after(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], records: Sequence[Records]
) -> Image.Image:
    """A sheet of the first prompts with a row of pictures for each result row, taken from its records."""
    judged = rows[0]["score"] is not None
    labels = [name_of(row).replace(", ", "\n") + (f"\njudge {row['score']:.2f}" if judged else "") for row in rows]
    examples = examples_of(benchmark, dict(zip(labels, records, strict=True)), each=2, most=12)
    frames = " Green frame: right by the judge; red: wrong." if judged else ""
    return picture_sheet(examples, "Same prompts, same noise." + frames)


def picture_sheet(examples: Sequence[Example], title: str) -> Image.Image:
    """A column of pictures per example under its prompt, a row per method, framed by verdict; the title at the bottom.

    Text after a line break in a method's name is smaller.
    """
    methods = [shown.method for shown in examples[0].pictures]
    width, height = LABEL + len(examples) * (TILE + PAD), HEAD + len(methods) * (TILE + PAD) + 26
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(13)
    tops = [HEAD + number * (TILE + PAD) for number in range(len(methods))]
    for top, method in zip(tops, methods, strict=True):
        first, _, rest = method.partition("\n")
        pen.text((PAD, top + TILE // 2 - 20), first, INK, font)
        pen.multiline_text((PAD, top + TILE // 2 + 2), rest, INK, small)
    for column, example in enumerate(examples):
        left, caption = LABEL + column * (TILE + PAD), "\n".join(wrap(example.prompt, 20))
        centre = (left + TILE // 2, HEAD - 8)
        pen.multiline_text(centre, caption, INK, small, anchor="md", align="center", spacing=2)
        for top, shown in zip(tops, example.pictures, strict=True):
            sheet.paste(ImageOps.pad(opened(shown.picture), (TILE, TILE), color="white"), (left, top))
            pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=FRAMES[shown.right], width=2)
    pen.text((PAD, height - 20), title, INK, small)
    return sheet
