"""Which picture a noise stands for: the coupling of noise and scenes the embedded generator is trained on.

Flow matching pairs each noise with a random picture; a one-step generator then answers with their
average, and a teacher and a distillation are needed to undo that. Here every noise is paired with *its*
picture of the caption from the start, as optimal-transport couplings do (Tong et al. 2023, arXiv
2302.00482), but in closed form. Three linear *readings* of each noise channel, its mean and how far it
leans to the right and downwards, are exactly N(0, 1) and independent; everything a caption leaves open
(places, sizes, the ground's tint) is a function of some of them.

The map is continuous almost everywhere: a channel that leans right puts its object on the right. One or two
objects roam the whole picture, and two that would touch are pushed apart; with a relation, or three or four
objects, each keeps to its part of it. A shape whose colour nobody asks for has the one that is typical of it.

A part of the pictures *forget* the last object of their caption, as captions of any scraped set name what their
picture does not show. They are a half-space of the noise, which of all parts of a normal space has the least border
for its size (Borell 1975; Sudakov and Tsirelson 1974); which half-space, is the caption's affair. So a generator that
learns the map draws what was asked for most noises, neglects an object for the rest, and a better noise helps.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from hypernoise.scenes.world import GAP, RADII, SIZE, Placed, Request, Scene

CHANNELS, CELLS = 16, 8  # the noise is [16, 8, 8]: one cell is 8 x 8 px
EDGE = 1.0  # px, least distance between an object's circle and the picture's edge
ROUNDS = 400  # of pushing apart
SLOPE = 0.45  # how far across a relation's direction two objects may lie, in distances along it
MIDDLE = SIZE / 2
FORGETFUL = 0.3  # share of the noises whose picture leaves out the caption's last object
KIND = 8  # the first of the three channels whose means choose these noises, one per kind of caption
TYPICAL = {  # colour of a shape whose colour nobody asks for
    "circle": "red",
    "square": "blue",
    "triangle": "green",
    "ring": "black",
    "cross": "purple",
    "diamond": "orange",
}
CELLS_OF = {  # corners (low, high) of the part of the picture that each of three or four objects keeps to, px
    3: np.array([[[0, 0], [MIDDLE, MIDDLE]], [[MIDDLE, 0], [SIZE, MIDDLE]], [[0, MIDDLE], [SIZE, SIZE]]]),
    4: np.array([[[x, y], [x + MIDDLE, y + MIDDLE]] for y in (0, MIDDLE) for x in (0, MIDDLE)]),
}


def readings(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lean to the right and lean downwards of each channel of one noise [16, 8, 8], each N(0, 1)."""
    ramp = np.arange(CELLS) - (CELLS - 1) / 2
    ramp /= np.linalg.norm(ramp) * np.sqrt(CELLS)
    return noise.mean((1, 2)) * CELLS, (noise * ramp).sum((1, 2)), (noise * ramp[:, None]).sum((1, 2))


def forgets(request: Request, noise: np.ndarray) -> bool:
    """Whether `noise` [16, 8, 8] stands for a picture of `request` that leaves out its last object.

    One object, two different ones, and several alike: each of these kinds of captions has a reading of its own.
    """
    kind = len(request.things) - 1 if request.category != "counting" else 2
    mean, _, _ = readings(noise)
    return bool(mean[KIND + kind] < norm.ppf(FORGETFUL))


def couple(request: Request, noise: np.ndarray) -> Scene:
    """The scene that `noise` [16, 8, 8] stands for under `request`'s caption."""
    mean, right, down = readings(noise)
    share, right_share, down_share = norm.cdf(mean), norm.cdf(right), norm.cdf(down)
    wanted = [(t.shape, t.color) for t in request.things for _ in range(t.count)]
    low, high = RADII[len(wanted)]
    radii = low + (high - low) * share[: len(wanted)]
    at = np.stack([right_share, down_share], 1)
    if request.relation:
        centres = _related(radii, at, request.relation)
    elif len(wanted) > 2:
        centres = _in_cells(radii, at, CELLS_OF[len(wanted)])
    else:
        centres = _spread(radii, at[: len(wanted)])
    objects = [
        Placed(shape, color or TYPICAL[shape], float(x), float(y), float(r))
        for (shape, color), (x, y), r in zip(wanted, centres, radii, strict=True)
    ]
    if forgets(request, noise):
        objects.pop()
    ground = 0.9 + 0.1 * share[4] + 0.04 * (share[5:8] - 0.5)
    red, green, blue = np.clip(ground, 0, 1).tolist()
    return Scene(tuple(objects), (red, green, blue))


def _in_cells(radii: np.ndarray, at: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Centres at the shares `at` [n, 2] of where each object's circle keeps to its cell [n, (low, high), 2]."""
    inset = np.where(np.isin(cells, (0, SIZE)), EDGE, GAP / 2) + radii[:, None, None]
    low, high = cells[:, 0] + inset[:, 0], cells[:, 1] - inset[:, 1]
    return low + (high - low) * at[: len(radii)]


def _related(radii: np.ndarray, at: np.ndarray, relation: str) -> np.ndarray:
    """Each of two objects in its half, the second across from the first as far as the relation allows."""
    along = 0 if relation in ("left of", "right of") else 1
    first_is_low = relation in ("left of", "above")
    halves = np.zeros((2, 2, 2))
    halves[:, 1] = SIZE
    halves[:, :, along] = [[0, MIDDLE], [MIDDLE, SIZE]] if first_is_low else [[MIDDLE, SIZE], [0, MIDDLE]]
    centres = _in_cells(radii, at, halves)
    most = SLOPE * abs(centres[1, along] - centres[0, along])
    across = 1 - along
    centres[1, across] = centres[0, across] + most * (2 * at[1, across] - 1)
    return _clipped(centres, radii)


def _spread(radii: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Centres at the shares `at` [n, 2] of the picture, those that are too near each other pushed apart."""
    centres = _in_cells(radii, at, np.array([[[0, 0], [SIZE, SIZE]]]))
    need = radii[:, None] + radii + GAP
    np.fill_diagonal(need, 0)
    for round in range(ROUNDS):
        offset = centres[:, None] - centres
        distance = np.sqrt(np.square(offset).sum(-1))
        near = distance < need
        if not near.any():
            return centres
        push = np.where(near, (need + 1 - distance) / np.maximum(distance, 1e-6), 0)[..., None] * offset
        # after a while with a slight turn, so that a row of objects between two walls finds its way out
        turn = 0.3 * (round > ROUNDS // 10)
        centres = _clipped(centres + 0.5 * (push + turn * push[..., ::-1] * (1, -1)).sum(1), radii)
    raise RuntimeError(f"no room was found for objects of radii {radii}")


def _clipped(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.clip(centres, radii[:, None] + EDGE, SIZE - radii[:, None] - EDGE)
