"""Stage 2: latents of drawn training pictures, and their captions.

python -m dev.scenes.latents --output runs/scenes
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dev.scenes.autoencoder import AutoencoderConfig, train_autoencoder
from dev.scenes.drawing import draw
from dev.scenes.layout import taught_scene
from hypernoise.commands.flags import parse
from hypernoise.errors import InputError


@dataclass(frozen=True)
class LatentsConfig:
    output: Path = Path("runs/scenes")
    seed: int = 0
    chunks: int = 30
    pictures: int = 4096
    """In each chunk, which is a file."""


@torch.no_grad()
def make_latents(config: LatentsConfig) -> None:
    autoencoder = train_autoencoder(AutoencoderConfig(output=config.output))
    folder = config.output / "latents"
    folder.mkdir(exist_ok=True)
    for chunk in range(config.chunks):
        file = folder / f"{chunk:03}.safetensors"
        if file.exists():
            continue
        rng = np.random.default_rng([config.seed, 2, chunk])
        taught = [taught_scene(rng) for _ in range(config.pictures)]
        parts = []
        for start in range(0, config.pictures, 64):
            drawn = [draw(scene) for _, scene in taught[start : start + 64]]
            pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1
            parts.append(autoencoder.encode(pictures).latents.half())
        captions = [("a picture of " if rng.random() < 0.1 else "") + request.caption for request, _ in taught]
        save_file(
            {"latents": torch.cat(parts).contiguous()}, file.with_suffix(".tmp"), {"captions": json.dumps(captions)}
        )
        file.with_suffix(".tmp").replace(file)


def read_latents(output: Path) -> tuple[Tensor, list[str]]:
    """All latents [N, 4, 8, 8] there are, and their captions; raises InputError if there are none."""
    from safetensors import safe_open

    latents, captions = [], []
    for file in sorted((output / "latents").glob("*.safetensors")):
        latents.append(load_file(file)["latents"])
        with safe_open(file, "pt") as opened:
            captions += json.loads(opened.metadata()["captions"])
    if not latents:
        raise InputError(f"no latents in {output / 'latents'}: run python -m dev.scenes.latents --output {output}")
    return torch.cat(latents), captions


if __name__ == "__main__":
    make_latents(parse(LatentsConfig))
