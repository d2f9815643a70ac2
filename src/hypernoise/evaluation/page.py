"""Results as one self-contained HTML file.

Tables, charts, bars by category, and pictures of the same prompts side by side, with filters for category and
verdict. Its content security policy forbids all requests.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageOps

from hypernoise.evaluation.charts import COLORS
from hypernoise.evaluation.pictures import opened
from hypernoise.evaluation.tables import Table

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
