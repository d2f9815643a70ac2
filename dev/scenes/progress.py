"""How well a stage draws on its way: the judge on training captions.

python -m dev.scenes.progress --stage flow --steps 16
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from dev.scenes import lessons, networks
from dev.scenes.autoencoder import AutoencoderConfig, train_autoencoder
from dev.scenes.flow import FlowConfig, build, integrate
from dev.scenes.path import EulerPath
from hypernoise.scenes.judge import judge, score


@dataclass(frozen=True)
class ProgressConfig:
    output: Path = Path("runs/scenes")
    text_encoder: Path = Path("runs/teacher/generator/text_encoder")
    stage: str = "flow"
    steps: tuple[int, ...] = (16,)
    captions: int = 40
    """Of each category."""
    sheet: Path | None = None


@torch.no_grad()
def main(config: ProgressConfig) -> None:
    unet, encode = build(FlowConfig(output=config.output, text_encoder=config.text_encoder))
    saved = torch.load(config.output / f"{config.stage}.checkpoint.pt", weights_only=True)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter, average in zip(parameters, saved["average"], strict=False):
        parameter.copy_(average)
    autoencoder = train_autoencoder(AutoencoderConfig(output=config.output))
    rng = np.random.default_rng(7)
    asked = [
        lessons.TRAINED[c][i]
        for c in lessons.TRAINED
        for i in rng.integers(len(lessons.TRAINED[c]), size=config.captions)
    ]
    noise = torch.randn(len(asked), 4, 8, 8, generator=torch.Generator().manual_seed(7))
    path = EulerPath(networks.build_scheduler(), "cpu")
    encode.learn([request.caption for request in asked])
    embeds = encode([request.caption for request in asked])
    for steps in config.steps:
        latents = integrate(path, unet, noise, embeds, steps)
        pixels = ((autoencoder.decode(latents).sample + 1) / 2).clamp(0, 1)
        verdicts = [(r, judge(p.permute(1, 2, 0).numpy(), r)) for r, p in zip(asked, pixels, strict=True)]
        found = score(verdicts)
        categories = {name: round(value, 2) for name, value in found["categories"].items()}
        print(
            saved["step"],
            steps,
            round(found["score"], 3),
            "artefacts",
            round(found["artefacts"], 3),
            json.dumps(categories),
        )
    if config.sheet:
        rows = pixels[:: max(1, len(pixels) // 48)][:48].permute(0, 2, 3, 1).reshape(4, 12, 64, 64, 3)
        sheet = rows.permute(0, 2, 1, 3, 4).reshape(256, 768, 3).numpy()
        Image.fromarray((sheet * 255).astype("uint8")).resize((1536, 512), Image.Resampling.NEAREST).save(config.sheet)


if __name__ == "__main__":
    main(tyro.cli(ProgressConfig, description=__doc__))
