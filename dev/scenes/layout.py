"""The pictures that the generator learns from: scenes of the world whose objects stand on a loose grid of 3 x 3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dev.scenes.autoencoder import SHARES
from dev.scenes.drawing import GAP, Placed, Scene
from dev.scenes.lessons import taught_request
from hypernoise.evaluation.geneval.rules import directions
from hypernoise.scenes.world import COLORS, Request

LINES = (13.0, 32.0, 51.0)  # px, the grid's, along both axes
JITTER = 1.0  # px, farthest an object stands from its crossing
RADII = {1: (11.0, 13.0), 2: (9.5, 10.5), 3: (8.0, 8.5), 4: (8.0, 8.2)}  # px, by number of objects


def taught_scene(rng: np.random.Generator) -> tuple[Request, Scene]:
    """A random training request and a scene that satisfies it."""
    request = taught_request(rng, SHARES)
    return request, gridded(request, rng)


def gridded(request: Request, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies the request exactly, its objects on crossings of the grid."""
    wanted = [(thing.shape, thing.color) for thing in request.things for _ in range(thing.count)]
    shared = str(rng.choice(list(COLORS)))  # the objects of a counting picture share one colour
    free = [str(color) for color in rng.choice(list(COLORS), size=len(wanted), replace=False)]
    low, high = RADII[len(wanted)]
    while True:
        crossings = rng.choice(9, size=len(wanted), replace=False)
        objects = tuple(
            Placed(
                shape,
                color or (shared if request.category == "counting" else other),
                LINES[crossing % 3] + float(rng.uniform(-JITTER, JITTER)),
                LINES[crossing // 3] + float(rng.uniform(-JITTER, JITTER)),
                float(rng.uniform(low, high)),
            )
            for (shape, color), other, crossing in zip(wanted, free, crossings, strict=True)
        )
        if _apart(objects) and (request.relation is None or _clearly(objects, request.relation)):
            ground = rng.uniform(0.92, 0.98)
            return Scene(objects, (ground, ground, ground))


def _apart(objects: tuple[Placed, ...]) -> bool:
    return all(
        np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 2
        for i, a in enumerate(objects)
        for b in objects[:i]
    )


def _clearly(objects: tuple[Placed, ...], relation: str) -> bool:
    a, b = (replace(placed, radius=2 * placed.radius) for placed in objects)
    return directions((a.x, a.y, a.radius, a.radius), (b.x, b.y, b.radius, b.radius), of_the_rest=True) == {relation}
