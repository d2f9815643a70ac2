"""GenEval's verdict on detections, as pure functions: no picture, no model.

The rules are those of evaluation/evaluate_images.py in github.com/djghosh13/geneval (arXiv 2310.11513):
a clause considers only its most confident objects, also for colours and positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.requests import COLORS, Request

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # a detection's score must exceed it; the second for the tag "counting"
MOST = 16  # objects considered per class, the most confident first
MARGIN = 0.1  # share of the summed sizes by which an offset is shortened
HALF = 0.5  # share of the offset's length that must point in a direction


@dataclass(frozen=True)
class Detection:
    """One object: its class, box (left, top, right, bottom) in pixels, confidence and colour."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None


Objects = Mapping[str, Sequence[Detection]]
"""Detections by class, the most confident first."""


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count for a prompt of this category."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            found.setdefault(detection.name, []).append(detection)
    return {name: same[:MOST] for name, same in found.items()}


def judge(request: Request, objects: Objects) -> list[str]:
    """Why these objects do not satisfy the request: a phrase for each clause that fails.

    Raises InputError for an object whose colour decides and that has none.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []  # for each clause, its objects if it holds
    for clause in request.include:
        found = objects.get(clause.name, [])[: clause.count]
        reason = ""
        if len(found) < clause.count:
            reason = f"expected {clause.name} >= {clause.count}, found {len(found)}"
        if not reason and clause.color is not None:
            reason = _color_fault(clause.name, clause.color, found)
        if not reason and clause.relation is not None and clause.target is not None:
            reason = _position_fault(clause.name, clause.relation, found, matched[clause.target])
        matched.append(None if reason else found)
        reasons += [reason] if reason else []
    for clause in request.exclude:
        number = len(objects.get(clause.name, []))
        if number >= clause.count:
            reasons.append(f"expected {clause.name} < {clause.count}, found {number}")
    return reasons


def deciding_colors(request: Request, objects: Objects) -> list[Detection]:
    """The objects whose colour `judge` needs."""
    asked: list[Detection] = []
    for clause in request.include:
        found = objects.get(clause.name, [])[: clause.count]
        if clause.color is not None and len(found) == clause.count:
            asked += [detection for detection in found if detection not in asked]
    return asked


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a lies relative to b: one direction, two on a diagonal, or none if they are too close."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = _centre_and_size(a), _centre_and_size(b)
    return directions(ax - bx, ay - by, aw + bw, ah + bh)


def directions(dx: float, dy: float, width: float, height: float, *, of_the_rest: bool = False) -> set[str]:
    """The directions of an offset between two boxes' centres with these summed sizes.

    The offset is shortened on each axis by a tenth of the summed sizes; a direction holds if its part of the rest
    exceeds half of the whole offset's length, or of the rest's.
    """
    short_x = math.copysign(max(abs(dx) - MARGIN * width, 0), dx)
    short_y = math.copysign(max(abs(dy) - MARGIN * height, 0), dy)
    if abs(short_x) < 1e-3 and abs(short_y) < 1e-3:
        return set()
    half = HALF * (math.hypot(short_x, short_y) if of_the_rest else math.hypot(dx, dy))
    held = {"left of": short_x < -half, "right of": short_x > half, "above": short_y < -half, "below": short_y > half}
    return {name for name, holds in held.items() if holds}


def _centre_and_size(detection: Detection) -> tuple[float, float, float, float]:
    left, top, right, bottom = detection.box
    return (left + right) / 2, (top + bottom) / 2, abs(right - left), abs(bottom - top)


def _color_fault(name: str, color: str, found: Sequence[Detection]) -> str:
    colors = [detection.color for detection in found]
    if None in colors:
        raise InputError(f"the color of the {name} decides, and its detection has none")
    if all(one == color for one in colors):
        return ""
    seen = ", ".join(f"{colors.count(one)} {one}" for one in COLORS if one in colors)
    return f"expected {color} {name} >= {len(found)}, found {colors.count(color)}: {seen}"


def _position_fault(name: str, relation: str, found: Sequence[Detection], targets: Sequence[Detection] | None) -> str:
    if targets is None:
        return f"nothing for the {name} to be {relation}"
    for detection in found:
        for target in targets:
            held = relations(detection, target)
            if relation not in held:
                where = " and ".join(sorted(held)) or "neither left, right, above nor below"
                return f"expected {name} {relation} {target.name}, found it {where}"
    return ""
