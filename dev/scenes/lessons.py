"""What the scenes rewards learn from: drawn pictures, their captions, near misses, and flaws.

Everything is a function of the drawn truth and of training captions; the judge is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from dev.scenes.drawing import Placed, Scene, draw, near_misses, sample_scene
from hypernoise.scenes.prompts import combination, split
from hypernoise.scenes.world import CATEGORIES, COLORS, SHAPES, SIZE, Request

PATCH = 8  # px; where(...) names what each patch of this side shows
LEAST_BLEND = 0.3  # a second scene this visible in a picture makes it broken; up to a third of it is a mild corruption
LEAST_FLAW = 0.12  # Euclidean in RGB; a broken picture is broken in the patches with a pixel this far from the truth
PREFIXES = ("a picture of ", "a photo of ", "a drawing of ")


@dataclass(frozen=True)
class Lesson:
    """One picture with its caption and captions that are false of it."""

    request: Request
    scene: Scene
    broken: bool
    pixels: np.ndarray  # [H, W, 3], mildly corrupted, or broken: no clean picture of anything
    flawed: np.ndarray  # [patches], where it is broken
    misses: tuple[Request, ...]
    prefix: str  # of all its captions' wording, the true one's and the false ones'

    @property
    def caption(self) -> str:
        return self.prefix + self.request.caption

    @property
    def false_captions(self) -> tuple[str, ...]:
        return tuple(self.prefix + miss.caption for miss in self.misses)


TRAINED = {category: split(category)[0] for category in CATEGORIES}
EVALUATED = {category: split(category)[1] for category in CATEGORIES}
FORBIDDEN = frozenset(combination(request) for group in EVALUATED.values() for request in group)


def taught_request(rng: np.random.Generator, shares: Sequence[float] | None = None) -> Request:
    """A training request; half of the relations and counts are dressed, whatever their shapes.

    `shares` are those of the categories, in their order; without, they are equal.
    """
    category = str(rng.choice(CATEGORIES, p=shares))
    if category in ("position", "counting") and rng.random() < 0.5:
        group = TRAINED[category] + EVALUATED[category]
        return dressed(group[rng.integers(len(group))], rng)
    return TRAINED[category][rng.integers(len(TRAINED[category]))]


def dressed(request: Request, rng: np.random.Generator) -> Request:
    """A relation or a count with colours besides, which no caption of the benchmark has.

    These teach relations and counts of every shape without the captions that are evaluated.
    """
    colors = rng.choice(list(COLORS), size=len(request.things), replace=False)
    things = [replace(thing, color=str(color)) for thing, color in zip(request.things, colors, strict=True)]
    return replace(request, things=tuple(things))


def lesson(
    request: Request, forbidden: frozenset[str], misses: int, rng: np.random.Generator, *, broken: bool = False
) -> Lesson:
    """A picture of `request`, mildly corrupted or broken, with `misses` captions that are false of it."""
    scene = sample_scene(request, rng)
    false = near_misses(request, forbidden)
    chosen = tuple(false[i] for i in rng.integers(len(false), size=misses))
    prefix = "" if rng.random() < 0.8 else PREFIXES[rng.integers(len(PREFIXES))]
    clean = draw(scene)
    pixels = _break(scene, request, rng) if broken else _corrupt(clean, request, rng)
    while broken and not _flawed(pixels, clean).any():  # an invisible flaw does not count
        pixels = _break(scene, request, rng)
    return Lesson(
        request=request,
        scene=scene,
        broken=broken,
        pixels=pixels,
        flawed=_flawed(pixels, clean) & broken,
        misses=chosen,
        prefix=prefix,
    )


def _corrupt(clean: np.ndarray, request: Request, rng: np.random.Generator) -> np.ndarray:
    """A mild mix of what few-step generators do to a picture, after which its caption still holds."""
    picture = clean
    if rng.random() < 0.5:
        picture = gaussian_filter(picture, (*[rng.uniform(0, 1.2)] * 2, 0))
    if rng.random() < 0.3:
        picture = picture + rng.uniform(0, LEAST_BLEND / 3) * (draw(sample_scene(request, rng)) - picture)
    if rng.random() < 0.5:
        picture = picture + rng.normal(0, rng.uniform(0, 0.08), picture.shape)
    if rng.random() < 0.3:
        picture = picture * rng.uniform(0.93, 1.05, 3)
    return picture.clip(0, 1).astype(np.float32)


def _break(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """The flaws of a generator that cannot decide: in the whole picture, or in one object."""
    flaw = FLAWS[rng.integers(len(FLAWS))]
    return flaw(scene, request, rng).clip(0, 1).astype(np.float32)


def _ghost(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    return draw(scene) + rng.uniform(LEAST_BLEND, 0.5) * (draw(sample_scene(request, rng)) - draw(scene))


def _blur(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    return gaussian_filter(draw(scene), (*[rng.uniform(2, 5)] * 2, 0))


def _patchwork(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    edge = gaussian_filter(rng.standard_normal((SIZE, SIZE)), 6)
    return np.where(edge[..., None] > np.median(edge), draw(scene), draw(sample_scene(request, rng)))


def _between_shapes(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    flawed, others = _one_apart(scene, rng)
    other = str(rng.choice([shape for shape in SHAPES if shape != flawed.shape]))
    mix = rng.uniform(0.35, 0.65)
    distance = (1 - mix) * _distance(flawed, flawed.shape) + mix * _distance(flawed, other)
    return _drawn_over(draw(others), distance, _rgb(flawed.color))


def _between_colors(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    flawed, others = _one_apart(scene, rng)
    other = _other_color(flawed.color, rng)
    mix = rng.uniform(0.35, 0.65)
    color = (1 - mix) * _rgb(flawed.color) + mix * _rgb(other)
    return _drawn_over(draw(others), _distance(flawed, flawed.shape), color)


def _two_tone(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """One object that passes from one colour into another: over all of it, or at one end."""
    flawed, others = _one_apart(scene, rng)
    other = _other_color(flawed.color, rng)
    turn, middle = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6) * flawed.radius
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    along = (x - flawed.x) * np.cos(turn) + (y - flawed.y) * np.sin(turn) - middle
    mix = np.clip(0.5 + along / (rng.uniform(0.2, 2.0) * flawed.radius), 0, 1)[..., None]
    color = (1 - mix) * _rgb(flawed.color) + mix * _rgb(other)
    return _drawn_over(draw(others), _distance(flawed, flawed.shape), color)


def _other_color(color: str, rng: np.random.Generator) -> str:
    """Any other colour, or, half of the time, one of the two nearest, which generators confuse most."""
    others = sorted((name for name in COLORS if name != color), key=lambda name: _apart_by(name, color))
    return others[rng.integers(2 if rng.random() < 0.5 else len(others))]


def _apart_by(a: str, b: str) -> float:
    return float(np.linalg.norm(_rgb(a) - _rgb(b)))


def _bitten(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """One object with a round piece missing, or with a lump."""
    flawed, others = _one_apart(scene, rng)
    turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.8) * flawed.radius
    piece = replace(flawed, x=flawed.x + reach * np.cos(turn), y=flawed.y + reach * np.sin(turn))
    piece = replace(piece, radius=rng.uniform(0.45, 0.7) * flawed.radius)
    whole, round_piece = _distance(flawed, flawed.shape), _distance(piece, "circle")
    distance = np.maximum(whole, -round_piece) if rng.random() < 0.5 else np.minimum(whole, round_piece)
    return _drawn_over(draw(others), distance, _rgb(flawed.color))


def _faded(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """One object half there."""
    flawed, others = _one_apart(scene, rng)
    ground = draw(others)
    whole = _drawn_over(ground, _distance(flawed, flawed.shape), _rgb(flawed.color))
    return ground + rng.uniform(0.25, 0.65) * (whole - ground)


def _warped(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """Everything bent, by some pixels within an object's width."""
    bend = np.stack([gaussian_filter(rng.standard_normal((SIZE, SIZE)), 5) for _ in range(2)])
    bend *= rng.uniform(2.0, 4.0) / bend.std()
    at = np.mgrid[:SIZE, :SIZE] + bend
    picture = draw(scene)
    return np.stack([map_coordinates(picture[..., c], at, order=1, mode="nearest") for c in range(3)], -1)


def _bent(scene: Scene, request: Request, rng: np.random.Generator) -> np.ndarray:
    """One object out of shape, the others as they were."""
    flawed, others = _one_apart(scene, rng)
    alone = _warped(replace(scene, objects=(flawed,)), request, rng)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    near = np.clip(2 - np.hypot(x - flawed.x, y - flawed.y) / flawed.radius, 0, 1)[..., None]
    return draw(others) + near * (alone - np.asarray(scene.ground))


FLAWS = (_ghost, _blur, _patchwork, _between_shapes, _between_colors, _bitten, _faded, _warped, _bent, *[_two_tone] * 4)


def _flawed(pixels: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The patches in which some pixel is far from the drawn truth [patches]."""
    far = np.square(pixels - clean).sum(-1) > LEAST_FLAW**2
    cells = SIZE // PATCH
    return far.reshape(cells, PATCH, cells, PATCH).any((1, 3)).ravel()


def _one_apart(scene: Scene, rng: np.random.Generator) -> tuple[Placed, Scene]:
    """One object, and the scene without it."""
    index = int(rng.integers(len(scene.objects)))
    others = scene.objects[:index] + scene.objects[index + 1 :]
    return scene.objects[index], replace(scene, objects=others)


def _distance(placed: Placed, shape: str) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return SHAPES[shape](x - placed.x, y - placed.y, placed.radius)


def _rgb(color: str) -> np.ndarray:
    return np.asarray(COLORS[color], np.float32) / 255


def _drawn_over(picture: np.ndarray, distance: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return picture * (1 - cover) + rgb * cover


def shown(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each 8 px patch's centre is near: index of shape and of colour, from 1, and 0 where nothing is [patches].

    And where that object's centre is, from -1 to 1 across the picture [patches, 2]; NaN where nothing is.
    """
    cells = SIZE // PATCH
    y, x = (np.mgrid[:cells, :cells] + 0.5) * PATCH
    shape, color = np.zeros((cells, cells), np.int64), np.zeros((cells, cells), np.int64)
    place = np.full((cells, cells, 2), np.nan, np.float32)
    for thing in scene.objects:
        near = np.hypot(x - thing.x, y - thing.y) < thing.radius
        shape[near] = 1 + list(SHAPES).index(thing.shape)
        color[near] = 1 + list(COLORS).index(thing.color)
        place[near] = 2 * thing.x / SIZE - 1, 2 * thing.y / SIZE - 1
    return shape.ravel(), color.ravel(), place.reshape(-1, 2)


def is_false(request: Request, scene: Scene) -> bool:
    """Whether a caption is plainly false of a scene: something it names is missing, or has another count.

    What is not plainly false may be true: relations are not looked at.
    """
    for thing in request.things:
        count = sum(o.shape == thing.shape and thing.color in (None, o.color) for o in scene.objects)
        if count == 0 or (request.category == "counting" and count != thing.count):
            return True
    return False


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Pixels [B, 3, H, W] of pictures [H, W, 3]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
