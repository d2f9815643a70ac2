"""Which of the scenes that a noise may stand for a generator's answer is held to: the one it all but draws.

A network of finite size reads a noise's free colours with an error, and where it wavers between two it draws a blend.
Told the coupling's own colour there it learns little, for the error is in its reading; told the nearer of the two it
learns to make up its mind (the least of several right answers' losses: Guzman-Rivera et al. 2012). Left to itself that
ends in one colour for all. So each colour has a price that rises as it is taken too often, for every shape: the
assignment of an optimal transport onto equally many of each (as in semi-discrete transport, and in Caron et al. 2020,
arXiv 2006.09882, within a batch).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hypernoise.scenes.coupling import readings
from hypernoise.scenes.world import COLORS, SHAPES, Request, Scene, pixel_centres

STEP = 0.02  # RGB distance
PALETTE = np.array(list(COLORS.values()), np.float32) / 255


class Settling(nn.Module):
    """Chooses free colours, and keeps the prices; a module so that they are saved with what trains beside them.

    Args:
        hold: what a colour costs per unit that its reading lies behind that of the coupling's own, in RGB distance.
        step: of a price, each time its colour is taken.
    """

    prices: Tensor  # [shapes, (first, second, shared by a count), colours]

    def __init__(self, hold: float, step: float = STEP) -> None:
        super().__init__()
        self.hold, self.step = hold, step
        self.register_buffer("prices", torch.zeros(len(SHAPES), 3, len(COLORS)))

    def choose(self, request: Request, noise: np.ndarray, scene: Scene, picture: np.ndarray) -> Scene:
        """`scene`, which `noise` is coupled with, in the free colours `picture` [H, W, 3] in [0, 1] is nearest to."""
        free = [i for i, thing in enumerate(_each(request)) if thing is None]
        if not free:
            return scene
        objects, counted = list(scene.objects), request.category == "counting"
        shapes = [list(SHAPES).index(objects[i].shape) for i in free]
        slots = [2] * len(free) if counted else list(range(len(free)))
        mean = readings(noise)[0][-len(COLORS) :]
        behind = [
            mean.max() - mean,
            mean - mean.min(),
        ]  # the first free colour is the greatest reading's, the second the least's
        costs = [
            _distances(scene, i, picture) + self.hold * behind[slot % 2] + self.prices[shape, slot].numpy(force=True)
            for i, shape, slot in zip(free, shapes, slots, strict=True)
        ]
        if counted:  # which share a colour
            chosen = [int(np.sum(costs, 0).argmin())] * len(free)
        elif len(free) == 2:  # which differ
            together = costs[0][:, None] + costs[1]
            np.fill_diagonal(together, np.inf)
            chosen = [int(i) for i in np.unravel_index(together.argmin(), together.shape)]
        else:
            chosen = [int(costs[0].argmin())]
        names = list(COLORS)
        for i, color in zip(free, chosen, strict=True):
            objects[i] = replace(objects[i], color=names[color])
        for shape, slot, color in set(zip(shapes, slots, chosen, strict=True)):
            self.prices[shape, slot] -= self.step / len(COLORS)
            self.prices[shape, slot, color] += self.step
        return replace(scene, objects=tuple(objects))


def _each(request: Request) -> list[str | None]:
    """The colour asked for, or None, of each object."""
    return [thing.color for thing in request.things for _ in range(thing.count)]


def _distances(scene: Scene, number: int, picture: np.ndarray) -> np.ndarray:
    """Mean Euclidean RGB distance [colours] of the pixels inside an object from each colour."""
    x, y = pixel_centres()
    thing = scene.objects[number]
    inside = SHAPES[thing.shape](x - thing.x, y - thing.y, thing.radius) < -0.5
    return np.linalg.norm(picture[inside][:, None] - PALETTE, axis=-1).mean(0)
