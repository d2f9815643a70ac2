"""`hypernoise generate "a prompt"`: pictures from a generator, with or without an adapter."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tyro

from hypernoise.commands.generator import WithGenerator
from hypernoise.errors import InputError, at_least_one


@dataclass(frozen=True)
class Generate(WithGenerator):
    """Draw each prompt; with --adapter, from improved noise (the same seed gives the same starting noise)."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to draw; quote each."""
    adapter: Path | None = None
    """An adapter directory; without it, the plain generator draws."""
    steps: int = 1
    """Denoiser calls per picture."""
    images: int = 1
    """Pictures per prompt."""
    seed: int = 0
    output: Path = Path("runs/generate")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("generate", arguments)

    def run(self) -> int:
        at_least_one(self, "steps", "images", flags=True)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be from 0 to 2**63 - 1, not {self.seed}")
        if not self.prompts:
            raise InputError('give at least one prompt: hypernoise generate "a red circle"')
        import torch

        from hypernoise.commands.common import write_summary
        from hypernoise.files import output_folder
        from hypernoise.pipeline import attach

        generator = self.load()
        pipeline = generator.pipeline
        generator.check_prompts(list(self.prompts))
        generator.encode_ahead(list(self.prompts))
        if self.adapter is not None:
            attach(pipeline, self.adapter)
        output_folder(self.output)
        pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
        rows = []
        for number, prompt in enumerate(self.prompts):
            seeds = [self.seed + i for i in range(self.images)]
            generators = [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
            condition = generator.encode([prompt] * self.images)
            with generator.decoding():
                pictures = pipeline(
                    height=generator.size[0],
                    width=generator.size[1],
                    generator=generators,
                    **generator.family.arguments(condition.tensors),
                    **generator.call(self.steps),
                ).images
            for seed, picture in zip(seeds, pictures, strict=True):
                file = self.output / f"{number:03d}-seed{seed}.png"
                picture.save(file)
                rows.append({"prompt": prompt, "seed": seed, "steps": self.steps, "file": file.name})
                print(file)
        write_summary(self.output, "generate", self, generator.device, rows)
        return 0
