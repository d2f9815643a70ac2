"""The scenes world as a GenEval benchmark: its requests as metadata, its judge's eye as the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypernoise.evaluation.geneval.requests import Request, parse
from hypernoise.evaluation.geneval.rules import Detection
from hypernoise.evaluation.rewards import read_picture
from hypernoise.scenes import judge, world
from hypernoise.scenes.prompts import evaluation_requests

SURE = 0.9  # what the judge recognises exceeds GenEval's thresholds; of several, the larger comes first


class ScenesDetector:
    """What the scenes judge recognises, with its colour. It has no trained part and no confidence."""

    name, label = "scenes judge", "geneval-scenes"
    classes = frozenset(world.SHAPES)

    def __call__(self, file: Path, request: Request) -> list[Detection]:
        pixels = read_picture(file).permute(1, 2, 0).numpy()
        return [as_detection(found, pixels.shape[0] * pixels.shape[1]) for found in judge.detect(pixels)[0]]


def as_detection(found: judge.Found, pixels: int) -> Detection:
    """`pixels`: of the whole picture."""
    x, y, width, height = found.x, found.y, found.width / 2, found.height / 2
    score = SURE + (1 - SURE) * found.area / pixels
    return Detection(found.shape, (x - width, y - height, x + width, y + height), score, found.color)


def requests(judged: int) -> list[Request]:
    """The held-out requests of the scenes benchmark, `judged` per category."""
    return [as_request(asked) for asked in evaluation_requests(judged)]


def as_request(asked: world.Request) -> Request:
    include: list[dict[str, Any]] = [
        {"class": thing.shape, "count": thing.count, **({"color": thing.color} if thing.color else {})}
        for thing in asked.things
    ]
    exclude = []
    if asked.category == "counting":
        exclude = [{"class": thing.shape, "count": thing.count + 1} for thing in asked.things]
    if asked.relation:  # GenEval names the object that another is placed by first
        include = [include[1], {**include[0], "position": [asked.relation, 0]}]
    source = {"tag": asked.category, "include": include, "prompt": asked.caption}
    return parse({**source, "exclude": exclude} if exclude else source, asked.caption)
