"""`hypernoise generate "a prompt"`: pictures from a generator, with or without an adapter."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hypernoise.commands.common import WithGenerator
from hypernoise.errors import InputError, no_traceback
from hypernoise.settings import AtOnce, Count, Seed


@dataclass(frozen=True)
class Generate(WithGenerator):
    """Draw each prompt; with --adapter, from improved noise (the same seed gives the same starting noise)."""

    ESSENTIAL: ClassVar = ("adapter", "strength", "num_inference_steps", "num_images_per_prompt", "seed", "output_dir")
    POSITIONAL: ClassVar = "prompts"

    prompts: tuple[str, ...] = ()
    """The prompts to draw; quote each."""
    adapter: Path | None = None
    """An adapter directory; without it, the plain generator draws."""
    strength: float = 1.0
    """Strength of the adapter, 0 to 1.5: the noise becomes x + strength · f."""
    check_base: bool = True
    """Refuse a base with other weights than the adapter was trained on; off (for a merge or a fine-tune of the base):
    only warn."""
    num_inference_steps: Count = 1
    """Denoiser calls per picture."""
    num_images_per_prompt: AtOnce = 1
    """Pictures per prompt, with seeds from --seed on."""
    seed: Seed = 0
    output_dir: Path = Path("runs/generate")

    def run(self) -> int:
        if self.strength != 1 and self.adapter is None:
            raise InputError("--strength needs an adapter: name one with --adapter")
        if not self.prompts:
            raise InputError('give at least one prompt: hypernoise generate "a red circle"')
        import torch

        from hypernoise.evaluation.summary import write_summary
        from hypernoise.files import output_folder
        from hypernoise.generators.presets import PRESETS
        from hypernoise.pipeline import attach

        generator, steps = self.load(), self.num_inference_steps
        pipeline = generator.pipeline
        generator.check_steps(steps)
        generator.check_prompts(list(self.prompts))
        preset = PRESETS.get(generator.name)
        if preset and preset.packaged:  # its tokenizer has one token for each word of its world
            words = " ".join(self.prompts).lower().split()
            if new := [word for word in words if len(pipeline.tokenizer(word).input_ids) > 3]:
                print(f"{generator.name} does not know these words: {', '.join(new)}", file=sys.stderr)
        if self.adapter is not None:
            attach(pipeline, self.adapter, strength=self.strength, check_base=self.check_base)
        output_folder(self.output_dir)
        self.log_precision(generator.device, only_if_slow=True)
        pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
        rows, seeds = [], range(self.seed, self.seed + self.num_images_per_prompt)
        for number, prompt in enumerate(self.prompts):
            condition = generator.encode([prompt] * len(seeds))
            with no_traceback(f"{generator.name} cannot draw"), generator.decoding():
                pictures = pipeline(
                    generator=[torch.Generator(generator.device).manual_seed(seed) for seed in seeds],
                    **generator.family.arguments(condition.tensors),
                    **generator.call(steps),
                ).images
            for seed, picture in zip(seeds, pictures, strict=True):
                file = f"{number:03d}-seed{seed}.png"
                picture.save(self.output_dir / file)
                print(self.output_dir / file)
                rows.append({"prompt": prompt, "seed": seed, "inference_steps": steps, "file": file})
        write_summary(self.output_dir, "generate", self, generator.device, rows)
        return 0
