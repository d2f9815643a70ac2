"""GenEval's requests and its verdict on detections, as pure functions: no picture, no model.

A request is a line of the benchmark's metadata (evaluation_metadata.jsonl of github.com/djghosh13/geneval, arXiv
2310.11513):

    {"tag": "position", "include": [{"class": "dog", "count": 1},
     {"class": "cat", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a cat left of a dog"}

The rules are those of its evaluation/evaluate_images.py: a clause considers only its most confident objects, also for
colours and positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hypernoise.errors import InputError, shown
from hypernoise.files import json_lines

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # a detection's score must exceed it; the second for the tag "counting"
MOST = 16  # objects considered per class, the most confident first
MARGIN = 0.1  # share of the summed sizes by which an offset is shortened
HALF = 0.5  # share of the offset's length that must point in a direction


@dataclass(frozen=True)
class Clause:
    """At least `count` objects called `name`, each in `color`, each `relation` all objects of clause `target`.

    In an exclude clause: fewer than `count`.
    """

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = -1


@dataclass(frozen=True)
class Request:
    """One prompt. `source` is its line of metadata, which is stored with its pictures."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Detection:
    """One object: its class, box (left, top, right, bottom) in pixels, confidence and colour."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None


def parse(source: Any, where: str) -> Request:
    """A request from one line's JSON value; `where` begins the message of an InputError."""
    about: Any = source if isinstance(source, dict) else {}
    tag, prompt = about.get("tag"), about.get("prompt")
    if not (isinstance(tag, str) and tag and isinstance(prompt, str) and prompt.strip()):
        raise InputError(f"{where}: it needs a 'tag' such as two_object and the 'prompt' to draw, not {shown(source)}")
    parts = {name: about.get(name, []) for name in ("include", "exclude")}
    if not (all(isinstance(own, list) for own in parts.values()) and any(parts.values())):
        raise InputError(f"{where}: there is nothing to judge by; 'include' or 'exclude' must list objects")
    include = [_clause(part, f"{where}: include[{i}]", i) for i, part in enumerate(parts["include"])]
    exclude = [_clause(part, f"{where}: exclude[{i}]", 0) for i, part in enumerate(parts["exclude"])]
    return Request(tag, prompt, tuple(include), tuple(exclude), about)


def _clause(part: Any, where: str, earlier: int) -> Clause:
    """`earlier`: the number of clauses before it, which a position may refer to."""
    about: Any = part if isinstance(part, dict) else {}
    name, count, color, position = (about.get(key) for key in ("class", "count", "color", "position"))
    relation, target = position if isinstance(position, list) and len(position) == 2 else (None, -1)
    good = (
        isinstance(name, str) and type(count) is int and count > 0,
        color in (None, *COLORS),
        position is None or (relation in RELATIONS and type(target) is int and 0 <= target < earlier),
    )
    if not all(good):
        raise InputError(
            f"{where} is {shown(part)}; it needs a 'class' and a 'count' from 1, and may have a 'color' "
            f"({', '.join(COLORS)}) and a 'position': [{' | '.join(RELATIONS)}, the number of an earlier clause]"
        )
    return Clause(name, count, color, relation, target)


def parse_lines(text: str, where: str) -> list[Request]:
    """Every prompt of a metadata file's text; `where` begins the message of an InputError, which names the line."""
    requests = [parse(value, place) for place, value in json_lines(text, where)]
    if not requests:
        raise InputError(f"{where} has no prompts; it needs a JSON object per line")
    return requests


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count for a prompt of this category, by class, the most confident first."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            found.setdefault(detection.name, []).append(detection)
    return {name: same[:MOST] for name, same in found.items()}


def judge(request: Request, objects: Mapping[str, Sequence[Detection]]) -> list[str]:
    """Why these objects, as `kept` returns them, do not satisfy the request: a phrase for each clause that fails."""
    reasons: list[str] = []
    matched: list[Sequence[Detection]] = []  # for each clause, its objects if it holds, else none
    for clause in request.include:
        found = objects.get(clause.name, [])[: clause.count]
        reason = _fault(clause, found, matched)
        matched.append([] if reason else found)
        reasons += [reason] if reason else []
    for clause in request.exclude:
        number = len(objects.get(clause.name, []))
        if number >= clause.count:
            reasons.append(f"expected {clause.name} < {clause.count}, found {number}")
    return reasons


def _fault(clause: Clause, found: Sequence[Detection], matched: Sequence[Sequence[Detection]]) -> str:
    """Why these objects do not satisfy an include clause; empty if they do."""
    name, count = clause.name, clause.count
    if len(found) < count:
        return f"expected {name} >= {count}, found {len(found)}"
    colors = [detection.color for detection in found]
    if clause.color is not None and colors.count(clause.color) < count:
        seen = ", ".join(f"{colors.count(one)} {one}" for one in COLORS if one in colors)
        return f"expected {clause.color} {name} >= {count}, found {colors.count(clause.color)}: {seen}"
    if clause.relation is None:
        return ""
    if not matched[clause.target]:
        return f"nothing for the {name} to be {clause.relation}"
    for detection, target in product(found, matched[clause.target]):
        held = relations(detection, target)
        if clause.relation not in held:
            where = " and ".join(sorted(held)) or "neither left, right, above nor below"
            return f"expected {name} {clause.relation} {target.name}, found it {where}"
    return ""


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a lies relative to b: one direction, two on a diagonal, or none if they are too close."""
    one, other = (
        ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        for left, top, right, bottom in (a.box, b.box)
    )
    return directions(one, other)


def directions(a: Sequence[float], b: Sequence[float], *, of_the_rest: bool = False) -> set[str]:
    """Where box a lies relative to b, both (x, y, width, height) with the centre's x and y.

    The offset of the centres is shortened on each axis by a tenth of the summed sizes; a direction holds if its part of
    the rest exceeds half of the whole offset's length, or of the rest's, which rarely matters (docs/yardsticks.md).
    """
    dx, dy = a[0] - b[0], a[1] - b[1]
    short_x = math.copysign(max(abs(dx) - MARGIN * (a[2] + b[2]), 0), dx)
    short_y = math.copysign(max(abs(dy) - MARGIN * (a[3] + b[3]), 0), dy)
    if abs(short_x) < 1e-3 and abs(short_y) < 1e-3:
        return set()
    half = HALF * (math.hypot(short_x, short_y) if of_the_rest else math.hypot(dx, dy))
    held = {"left of": short_x < -half, "right of": short_x > half, "above": short_y < -half, "below": short_y > half}
    return {name for name, holds in held.items() if holds}
