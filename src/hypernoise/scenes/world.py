"""The scenes world: what a caption can request (category, shapes, colours, count, relation), and the shapes' outlines.

`dev/scenes/drawing.py` draws scenes that satisfy a request, for training the world's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from hypernoise.evaluation.geneval.official import NUMBERS, an
from hypernoise.evaluation.geneval.rules import RELATIONS

SIZE = 64  # pixels, both sides
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's six
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (242, 215, 40), "green": (45, 160, 70),
    "blue": (40, 90, 215), "purple": (135, 60, 175), "brown": (125, 75, 40), "black": (30, 30, 30),
}  # fmt: skip
RADII = {1: (10.0, 15.0), 2: (9.0, 13.0), 3: (8.0, 11.0), 4: (8.0, 10.0)}  # px, by number of objects


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Equilateral, pointing up, with circumradius r (y grows downwards)."""
    return np.maximum(y - r / 2, np.abs(x) * (np.sqrt(3) / 2) - y / 2 - r / 2)


# Signed distance in pixels to each shape's outline, negative inside. r is its nominal radius: extents lie within
# 1.13 r, and the corners of square and triangle up to 1.32 r from the centre.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda x, y, r: np.hypot(x, y) - 0.92 * r,
    "square": lambda x, y, r: _box(x, y, 0.8 * r, 0.8 * r),
    "triangle": lambda x, y, r: _triangle(x, y - 0.29 * r, 1.15 * r),
    "ring": lambda x, y, r: np.abs(np.hypot(x, y) - 0.75 * r) - 0.21 * r,
    "cross": lambda x, y, r: np.minimum(_box(x, y, r, 0.3 * r), _box(x, y, 0.3 * r, r)),
    "diamond": lambda x, y, r: (np.abs(x) * 1.25 + np.abs(y) - r) / np.hypot(1.25, 1.0),
}


@dataclass(frozen=True)
class Thing:
    """One kind of object in a caption: `count` of `shape`, in `color` or any colour."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Request:
    """A caption's content. `relation` reads: things[0] is `relation` things[1]."""

    category: str
    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        parts = [_phrase(thing) for thing in self.things]
        return f" {self.relation or 'and'} ".join(parts)


def _phrase(thing: Thing) -> str:
    shape = plural(thing.shape, thing.count)
    noun = f"{thing.color} {shape}" if thing.color else shape
    return f"{NUMBERS[thing.count]} {noun}" if thing.count > 1 else an(noun)


def plural(shape: str, count: int = 2) -> str:
    return shape if count == 1 else "crosses" if shape == "cross" else shape + "s"


def all_requests(category: str) -> list[Request]:
    """Every request of one category, in a fixed order."""
    shapes, colors = list(SHAPES), list(COLORS)
    pairs = list(permutations(shapes, 2))
    painted = product(pairs, permutations(colors, 2))
    found = {
        "single_object": (Request(category, (Thing(s),)) for s in shapes),
        "two_object": (Request(category, (Thing(a), Thing(b))) for a, b in pairs),
        "counting": (Request(category, (Thing(s, count=n),)) for s in shapes for n in (2, 3, 4)),
        "colors": (Request(category, (Thing(s, c),)) for s in shapes for c in colors),
        "position": (Request(category, (Thing(a), Thing(b)), r) for a, b in pairs for r in RELATIONS),
        "color_attr": (Request(category, (Thing(a, ca), Thing(b, cb))) for (a, b), (ca, cb) in painted),
    }
    return list(found[category])
