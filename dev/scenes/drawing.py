"""Scenes that satisfy a request (objects at places, with sizes, on a light ground), drawn; and near misses of requests.

A scene is plain data; `draw` turns it into pixels with exact signed distances, so the truth is known for every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hypernoise.evaluation.geneval.rules import directions
from hypernoise.scenes.prompts import combination
from hypernoise.scenes.world import COLORS, RADII, RELATIONS, SHAPES, SIZE, Request

GAP = 3.0  # px, least distance between the circles of two objects


@dataclass(frozen=True)
class Placed:
    """One drawn object: centre and radius in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    objects: tuple[Placed, ...]
    ground: tuple[float, float, float] = (0.95, 0.95, 0.95)  # RGB in [0, 1]


def sample_scene(request: Request, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies the request exactly, and shows nothing else."""
    wanted = [(t.shape, t.color) for t in request.things for _ in range(t.count)]
    shared = str(rng.choice(list(COLORS)))  # the objects of a counting picture share one colour
    free = [str(c) for c in rng.choice(list(COLORS), size=len(wanted), replace=False)]
    chosen = [
        (shape, color or (shared if request.category == "counting" else other))
        for (shape, color), other in zip(wanted, free, strict=True)
    ]
    while True:
        radii = rng.uniform(*RADII[len(chosen)], size=len(chosen))
        centres = rng.uniform(radii + 1, SIZE - radii - 1, size=(2, len(chosen))).T
        if not _apart(centres, radii):
            continue
        objects = tuple(
            Placed(s, c, float(x), float(y), float(r)) for (s, c), (x, y), r in zip(chosen, centres, radii, strict=True)
        )
        if request.relation is None or _clearly(objects, request.relation):
            ground = rng.uniform(0.9, 1.0) + rng.uniform(-0.02, 0.02, size=3)
            red, green, blue = np.clip(ground, 0, 1).tolist()
            return Scene(objects, (red, green, blue))


def _apart(centres: np.ndarray, radii: np.ndarray) -> bool:
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    need = radii[:, None] + radii[None] + GAP
    return bool((distance + 1e9 * np.eye(len(radii)) >= need).all())


def _clearly(objects: tuple[Placed, ...], relation: str) -> bool:
    a, b = ((placed.x, placed.y, 2 * placed.radius, 2 * placed.radius) for placed in objects)
    return directions(a, b, of_the_rest=True) == {relation}


def draw(scene: Scene) -> np.ndarray:
    """Pixels of a scene: float32 [H, W, 3] in [0, 1], edges anti-aliased over one pixel."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5
    picture = np.broadcast_to(np.asarray(scene.ground, np.float32), (SIZE, SIZE, 3)).copy()
    for thing in scene.objects:
        distance = SHAPES[thing.shape](x - thing.x, y - thing.y, thing.radius)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        color = np.asarray(COLORS[thing.color], np.float32) / 255
        picture = picture * (1 - cover) + color * cover
    return picture.astype(np.float32)


def near_misses(request: Request, forbidden: frozenset[str]) -> list[Request]:
    """Requests like `request` with one thing changed, so that they are false of its scenes.

    None whose combination is in `forbidden`: so no evaluation caption is ever learned from.
    """
    found = [_with(request, i, shape=s) for i in range(len(request.things)) for s in SHAPES]
    found += [_with(request, i, color=c) for i, thing in enumerate(request.things) if thing.color for c in COLORS]
    if request.category == "counting":
        found += 3 * [_with(request, 0, count=n) for n in (2, 3, 4)]
    if request.category == "color_attr":
        a, b = request.things
        found += 4 * [replace(request, things=(replace(a, color=b.color), replace(b, color=a.color)))]
    if request.category == "position":
        found += 3 * [replace(request, relation=relation) for relation in RELATIONS]
        found += 3 * [replace(request, things=request.things[::-1])]
    own = combination(request)
    return [r for r in found if combination(r) != own and combination(r) not in forbidden and _is_drawable(r)]


def _with(request: Request, index: int, **change: object) -> Request:
    things = list(request.things)
    things[index] = replace(things[index], **change)
    return replace(request, things=tuple(things))


def _is_drawable(request: Request) -> bool:
    shapes, colors = [t.shape for t in request.things], [t.color for t in request.things if t.color]
    return len(set(shapes)) == len(shapes) and len(set(colors)) == len(colors)
