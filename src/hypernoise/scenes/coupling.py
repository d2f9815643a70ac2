"""Which picture a noise stands for: the coupling of noise and scenes the embedded generator is trained on.

Flow matching pairs each noise with a random picture; a one-step generator then answers with their
average, and a teacher and a distillation are needed to undo that. Here every noise is paired with *its*
picture of the caption from the start, as optimal-transport couplings do (Tong et al. 2023, arXiv
2302.00482), the transport cost being taken on linear readings of the noise:

- four smoothed *fields*, one per object: the layout with the greatest summed field at its objects'
  centres, among those the caption allows, is the noise's layout;
- sixteen channel *means*: sizes, the colours the caption leaves free, and the ground's tint.

The means are exactly N(0, 1) and independent, so sizes, free colours and tints keep their marginals; places
are no longer uniform but the peaks of a random field. Where two peaks nearly tie the
map is discontinuous, and that is where a network of finite capacity fails and a better noise helps.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from hypernoise.scenes.world import COLORS, GAP, RADII, SIZE, Placed, Request, Scene

CHANNELS, CELLS = 16, 8  # the noise is [16, 8, 8]: one cell is 8 x 8 px
SMOOTHING = 1.0  # cells, standard deviation of the kernel that turns noise into a field
CANDIDATES = 1024  # layouts tried at random, then moved uphill in rounds
ROUNDS = ((128, 5.0), (128, 2.5), (128, 1.2))  # (layouts, px) tried around the best so far
MARGIN = 0.45  # a relation must hold with this much of the offset to spare


def read_fields(noise: np.ndarray) -> np.ndarray:
    """Four smooth fields [4, 8, 8] of one noise [16, 8, 8], each cell of variance about 1."""
    mixed = noise.reshape(4, 4, CELLS, CELLS).sum(0) / 2
    smooth = gaussian_filter(mixed, (0, SMOOTHING, SMOOTHING), mode="constant")
    return smooth * (2 * np.sqrt(np.pi) * SMOOTHING)


def read_means(noise: np.ndarray) -> np.ndarray:
    """Sixteen channel means of one noise, scaled to N(0, 1)."""
    return noise.mean((1, 2)) * CELLS


def couple(request: Request, noise: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene of `request` that `noise` [16, 8, 8] stands for; `rng` only drives the layout search."""
    fields, means = read_fields(noise), read_means(noise)
    uniform = norm.cdf(means)
    wanted = [(t.shape, t.color) for t in request.things for _ in range(t.count)]
    low, high = RADII[len(wanted)]
    radii = low + (high - low) * uniform[: len(wanted)]
    first, second = (_sector(means[4], means[5]), _sector(means[6], means[7]))
    names = list(COLORS)
    first_color = names[int(8 * first)]
    second_color = names[(int(8 * first) + 1 + int(7 * second)) % 8]
    free = [first_color] * len(wanted) if request.category == "counting" else [first_color, second_color]
    centres = _best_layout(fields, radii, request.relation, rng)
    objects = tuple(
        Placed(shape, color or other, float(x), float(y), float(r))
        for (shape, color), other, (x, y), r in zip(wanted, free, centres, radii, strict=False)
    )
    ground = 0.9 + 0.1 * uniform[8] + 0.04 * (uniform[9:12] - 0.5)
    red, green, blue = np.clip(ground, 0, 1).tolist()
    return Scene(objects, (red, green, blue))


def _sector(a: float, b: float) -> float:
    """The angle of two independent normals as a share of the full turn: uniform on [0, 1)."""
    return float((np.arctan2(b, a) / (2 * np.pi)) % 1.0)


def _best_layout(fields: np.ndarray, radii: np.ndarray, relation: str | None, rng: np.random.Generator) -> np.ndarray:
    n = len(radii)
    low, high = radii + 1, SIZE - radii - 1
    centres = rng.uniform(low[:, None], high[:, None], size=(CANDIDATES, n, 2))
    best, best_score = None, -np.inf
    for count, spread in ((0, 0.0), *ROUNDS):
        if best is not None:
            centres = np.clip(best + rng.normal(0, spread, (count, n, 2)), low[:, None], high[:, None])
        while best is None and not _allowed(centres, radii, relation).any():
            centres = rng.uniform(low[:, None], high[:, None], size=(CANDIDATES, n, 2))
        score = np.where(_allowed(centres, radii, relation), _field_at(fields, centres).sum(1), -np.inf)
        if score.max() > best_score:
            best, best_score = centres[score.argmax()], score.max()
    assert best is not None
    return best


def _field_at(fields: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Bilinear values [layouts, n] of field j at object j's centre, centres [layouts, n, 2] in px."""
    cell = np.clip(centres * (CELLS / SIZE) - 0.5, 0, CELLS - 1.001)
    whole = cell.astype(int)
    fx, fy = (cell - whole)[..., 0], (cell - whole)[..., 1]
    x, y = whole[..., 0], whole[..., 1]
    j = np.arange(centres.shape[1])
    top = fields[j, y, x] * (1 - fx) + fields[j, y, x + 1] * fx
    bottom = fields[j, y + 1, x] * (1 - fx) + fields[j, y + 1, x + 1] * fx
    return top * (1 - fy) + bottom * fy


def _allowed(centres: np.ndarray, radii: np.ndarray, relation: str | None) -> np.ndarray:
    offset = centres[:, :, None] - centres[:, None]
    distance = np.linalg.norm(offset, axis=-1) + 1e9 * np.eye(len(radii))
    apart = (distance >= radii[:, None] + radii[None] + GAP).all((1, 2))
    if relation is None:
        return apart
    dx, dy = offset[:, 0, 1, 0], offset[:, 0, 1, 1]
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return apart & (along * MARGIN > np.abs(across))
