"""Grids of pictures on the way: always the same prompts from the same noises, plain above, improved below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hypernoise.generators.base import Condition, Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.draws import SAMPLE_STEP, keyed_noise
from hypernoise.prompts import spread

COUNT = 8  # pictures in a row
GAP = 4  # px between pictures


@torch.no_grad()
def draw_samples(
    generator: Generator,
    network: NoiseNetwork,
    prompts: Sequence[str],
    encode: Callable[[list[str]], Condition],
    *,
    steps: int,
    seed: int,
) -> Image.Image:
    """Two rows of pictures: from the noises alone, and with f. Torch's own random numbers are left alone."""
    texts = spread(prompts, COUNT)
    noise = keyed_noise(generator.noise_shape, seed=seed, step=SAMPLE_STEP, samples=range(len(texts)))
    noise = noise.to(generator.device, network.trainable_parameters()[0].dtype)
    columns = []
    for i, text in enumerate(texts):  # one by one: as little memory as there can be
        x, c = noise[i : i + 1], encode([text])
        pair = [generator.sample(z, c, num_inference_steps=steps, seed=seed) for z in (x, x + network(x, c))]
        columns.append([pixels[0].float().cpu() for pixels in pair])
    return grid([[column[row] for column in columns] for row in range(2)])


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of pictures [3, H, W] in [0, 1] of one size."""
    height, width = rows[0][0].shape[1:]
    sheet = Image.new("RGB", (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            values = (picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            sheet.paste(Image.fromarray(values), (column * (width + GAP), number * (height + GAP)))
    return sheet
