"""Judges a picture of the scenes world against its request, without a trained model.

Pixels that differ from the background are named by the nearest palette colour; connected pixels of one colour
are a *core*, and cores grow over their own soft edges. Each grown region is then compared with the world's
shapes, drawn at its position and size: the best fit, if good enough, names the object. Pixels that no object explains
count as artefacts. Requests are judged like GenEval's (Ghosh et al. 2023, arXiv 2310.11513;
djghosh13/geneval, evaluation/evaluate_images.py). With held-out captions that makes a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import Benchmark
from hypernoise.evaluation.geneval.rules import directions
from hypernoise.evaluation.records import Judgement
from hypernoise.scenes.prompts import ScenesRewriter, digest, evaluation_requests
from hypernoise.scenes.world import COLORS, RADII, SHAPES, Request, plural

# Distances between colours are Euclidean in RGB, each channel in [0, 1]; the two nearest in the palette are 0.30 apart.
LIGHT = 0.7  # a pixel is light if its darkest channel exceeds this (no palette colour's exceeds 0.24)
FOREGROUND = 0.2  # from the background; the palette lies 0.7 to 1.5 from it, so an edge covered by about a fifth counts
NEAR = 0.22  # largest distance of a pixel from its colour; the edges of black pass brown at 0.23
MIXED = 0.25  # largest distance of an edge pixel from the line between background and object
LEAST_CORE = 8  # 2 x 2 blocks; fewer are a speck, or the thin mixture along the seam of two touching objects
GROWTH = 3  # px, from a core to the outer end of its soft edge
MARGIN = 3  # px of surroundings also compared with the shapes
EDGE = 1.5  # px outside the fitted outline that still belong to the object
SHARPEN = 3.0  # contrast added to soft edges before comparison, so that slight blur costs little
LEAST_FIT, LEAST_LEAD = 0.85, 0.05  # intersection over union: at least this, and this much over the next shape
SCALES = np.array([0.94, 0.97, 1.0, 1.03, 1.06], np.float32)[:, None, None]  # radii tried, around that of equal area
RADIUS = (0.75 * min(low for low, _ in RADII.values()), 1.25 * max(high for _, high in RADII.values()))  # px

_NAMES = list(COLORS)
_PALETTE = np.array(list(COLORS.values()), np.float32) / 255  # [8, 3]


def _measure(shape: str) -> tuple[float, float, float]:
    """Area in radii squared, and offset (x, y) in radii from a shape's centre to its centroid."""
    y, x = (np.mgrid[:128, :128] - 63.5) / 40
    inside = SHAPES[shape](x, y, 1.0) < 0
    return inside.sum() / 40**2, x[inside].mean(), y[inside].mean()


_MEASURES = {shape: _measure(shape) for shape in SHAPES}


@dataclass(frozen=True)
class Found:
    """One recognised object: its centre, the size of its box, and its area, all in pixels."""

    shape: str
    color: str
    x: float
    y: float
    width: float
    height: float
    area: int


def detect(pixels: np.ndarray) -> tuple[tuple[Found, ...], float]:
    """The objects of one picture, and its artefacts: the share of foreground pixels in no recognised object.

    `pixels` are floats [H, W, 3] in [0, 1], else ValueError. A picture without foreground has no artefacts.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"pixels must be floats [H, W, 3] in [0, 1], got {pixels.dtype} {list(pixels.shape)}")
    if not (pixels.min() > -1e-3 and pixels.max() < 1 + 1e-3):
        raise ValueError(f"pixels must lie in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}")
    pixels = pixels.astype(np.float32)
    ground = _ground(pixels)
    foreground = np.square(pixels - ground).sum(-1) > FOREGROUND**2
    cores, colors = _cores(pixels, foreground)
    owner, seam = _grow(cores, foreground)

    found = []
    unexplained = foreground.copy()
    boxes = ndimage.find_objects(owner)
    for label, (color, tight) in enumerate(zip(colors, boxes, strict=True), start=1):
        box = tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in tight)
        color_offset = np.median(pixels[box][cores[box] == label], axis=0) - ground
        offset = pixels[box] - ground  # [h, w, 3]
        cover = offset @ color_offset / (color_offset @ color_offset)  # [h, w]: 0 ground, 1 object
        astray = np.square(offset - cover[..., None] * color_offset).sum(-1) > MIXED**2
        mine = (owner[box] == label) & (~astray | seam[box])
        fit = _fit(np.where(mine, cover, 0).clip(0, 1))
        if fit is None:
            continue
        shape, x, y, distance = fit
        mine &= distance < EDGE
        unexplained[box] &= ~mine
        solid = mine & (cover > 0.5)
        height, width = (np.ptp(np.flatnonzero(solid.any(axis))) + 1.0 for axis in (1, 0))
        top, left = box[0].start, box[1].start
        found.append(Found(shape, _NAMES[color], left + x, top + y, float(width), float(height), int(solid.sum())))
    return tuple(found), float(unexplained.sum() / max(foreground.sum(), 1))


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The background colour [3]: the median of the light pixels, or a default if there are hardly any."""
    sparse = pixels[::2, ::2]
    light = sparse[sparse.min(-1) > LIGHT]
    if len(light) < 0.05 * sparse[..., 0].size:
        return np.full(3, 0.95, np.float32)
    return np.median(light, axis=0)


def _cores(pixels: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Connected pixels of one palette colour: labels from 1 [H, W], 0 elsewhere; and each label's colour."""
    shown = pixels[foreground]
    apart = np.square(shown).sum(-1)[:, None] - 2 * shown @ _PALETTE.T + np.square(_PALETTE).sum(-1)  # [pixels, 8]
    named = np.full(foreground.shape, -1)
    named[foreground] = np.where(apart.min(-1) < NEAR**2, apart.argmin(-1), -1)
    corner = named[:-1, :-1]
    block = (corner >= 0) & (corner == named[1:, :-1]) & (corner == named[:-1, 1:]) & (corner == named[1:, 1:])
    cores, colors = np.zeros(foreground.shape, np.int32), []
    for color, blocks_named in enumerate(np.bincount(corner[block], minlength=len(_PALETTE))):
        if blocks_named < LEAST_CORE:
            continue
        labels, _ = ndimage.label(named == color)  # pyright: ignore[reportGeneralTypeIssues]
        for label, blocks in enumerate(np.bincount(labels[:-1, :-1][block])):
            if label > 0 and blocks >= LEAST_CORE:
                colors.append(color)
                cores[labels == label] = len(colors)
    return cores, colors


def _grow(cores: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cores spread over the adjacent foreground; and where two meet, which may show both colours mixed."""
    owner, seam = cores.copy(), np.zeros_like(foreground)
    for _ in range(GROWTH):
        highest = ndimage.maximum_filter(owner, 3)
        lowest = ndimage.minimum_filter(np.where(owner > 0, owner, cores.size), 3)
        new = (owner == 0) & foreground & (highest > 0)
        owner[new] = highest[new]
        seam |= new & (lowest < highest)
    return owner, seam


def _fit(cover: np.ndarray) -> tuple[str, float, float, np.ndarray] | None:
    """The shape shown by one object's cover [h, w] in [0, 1]: name, centre, signed distance; None if unclear.

    Every shape is drawn with the cover's centroid and area, give or take a few per cent.
    """
    area = float(cover.sum())
    y, x = np.ogrid[: cover.shape[0], : cover.shape[1]]
    y, x = y.astype(np.float32) + 0.5, x.astype(np.float32) + 0.5
    center_x, center_y = float((cover * x).sum() / area), float((cover * y).sum() / area)
    sharp = _sharpened(cover)
    fits = []
    for shape, (unit_area, offset_x, offset_y) in _MEASURES.items():
        radius = np.sqrt(area / unit_area)
        if not RADIUS[0] <= radius <= RADIUS[1]:
            continue
        at_x, at_y = center_x - offset_x * radius, center_y - offset_y * radius
        distance = SHAPES[shape](x - at_x, y - at_y, radius * SCALES)  # [radii, h, w]
        drawn = _sharpened(0.5 - distance)
        both = np.minimum(drawn, sharp).sum((1, 2))
        ratio = both / (drawn.sum((1, 2)) + sharp.sum() - both)
        best = int(ratio.argmax())
        fits.append((float(ratio[best]), shape, at_x, at_y, distance[best]))
    fits.sort(key=lambda fit: fit[0], reverse=True)
    if not fits or fits[0][0] < LEAST_FIT or (len(fits) > 1 and fits[0][0] - fits[1][0] < LEAST_LEAD):
        return None
    return fits[0][1:]


def _sharpened(cover: np.ndarray) -> np.ndarray:
    return (SHARPEN * (cover - 0.5) + 0.5).clip(0, 1)


def judge(pixels: np.ndarray, request: Request) -> Judgement:
    """Whether one picture, floats [H, W, 3] in [0, 1], shows the request.

    Only counting forbids extra objects; if several objects match one in the
    caption, one suitable pair is enough for a relation.
    """
    found, artefacts = detect(pixels)
    reason = _first_fault(found, request)
    return Judgement(float(not reason), artefacts, reason)


def _first_fault(found: tuple[Found, ...], request: Request) -> str:
    """Why these objects do not satisfy the request, in a phrase; empty if they do."""
    for thing in request.things:
        same = [f for f in found if f.shape == thing.shape]
        if request.category == "counting":
            if len(same) != thing.count:
                return f"counted {len(same)} {plural(thing.shape, len(same))}, asked {thing.count}"
        elif not same:
            return f"no {thing.shape}"
        elif thing.color and all(f.color != thing.color for f in same):
            colors = " and ".join(dict.fromkeys(f.color for f in same))
            verb = "is" if len(same) == 1 else "are"
            return f"no {thing.color} {thing.shape}: the {plural(thing.shape, len(same))} {verb} {colors}"
    if request.relation is None:
        return ""
    firsts, seconds = ([f for f in found if f.shape == thing.shape] for thing in request.things)
    pairs = [((a.x, a.y, a.width, a.height), (b.x, b.y, b.width, b.height)) for a in firsts for b in seconds]
    held = [directions(a, b, of_the_rest=True) for a, b in pairs]
    if any(request.relation in relations for relations in held):
        return ""
    where = " and ".join(sorted(set().union(*held))) or "in the same place as"
    return f"the {firsts[0].shape} is {where} the {seconds[0].shape}, asked {request.relation}"


def benchmark(file: str = "", count: int = 0, judge: str = "", colors: str = "") -> Benchmark:
    """`count` held-out captions per category (0: 50)."""
    if file:
        raise InputError(f"--prompts scenes takes no file, not {file!r}")
    if judge or colors:
        raise InputError("--prompts scenes has a judge of its own: leave out --judge and --colors")
    requests = evaluation_requests(count or 50)
    about = {"count": len(requests), "sha256": digest(requests)}
    return benchmark_of(requests, about)


def benchmark_of(requests: Sequence[Request], about: Mapping[str, Any]) -> Benchmark:
    """These requests' captions, judged without a trained model."""
    by_caption = {request.caption: request for request in requests}

    def scenes_judge(picture: np.ndarray, prompt: str) -> Judgement:
        return judge(picture, by_caption[prompt])

    scenes_judge.name = "scenes"  # pyright: ignore[reportFunctionMemberAccess]
    return Benchmark(
        prompts=[request.caption for request in requests],
        categories=[request.category for request in requests],
        load_judge=lambda device: scenes_judge,
        about=about,
        rewards={"scenes": 1.0},
        rewriter=ScenesRewriter(),
    )
