"""`hypernoise quickstart`: the method end to end on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hypernoise.commands.evaluate import Evaluate
from hypernoise.precision import MixedPrecision
from hypernoise.settings import AtOnce, Count, Seed
from hypernoise.training.config import LoRA, Recipe


@dataclass(frozen=True)
class Quickstart:
    """Train on the embedded generator, judge plain against hypernoise, and show both from the same noise.

    Writes before_after.png, report.html, summary.json, metrics.jsonl and the adapter to --output-dir. A second run
    resumes from the last checkpoint; if training is done, it only draws and judges again. `hypernoise train` has all
    settings.
    """

    max_train_steps: Count = 300
    """Number of updates."""
    train_batch_size: AtOnce = 32
    """Pictures per update."""
    judged: Count = 50
    """Held-out captions per category to judge on, two noises each."""
    seed: Seed = 0
    mixed_precision: MixedPrecision = "auto"
    """no: fp32. auto: bf16 if the device has bf16 units, else fp32."""
    output_dir: Path = Path("runs/quickstart")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @property
    def recipe(self) -> Recipe:
        """A shorter recipes/scenes.yaml."""
        return Recipe(
            rewards={"scenes": 1.0},
            lora=LoRA(rank=8, alpha=16.0),
            kl_weight=0.05,
            sample_clip=1.0,
            learning_rate=5e-4,
            lr_scheduler="cosine",
            max_train_steps=self.max_train_steps,
            train_batch_size=self.train_batch_size,
            checkpointing_steps=50,
            seed=self.seed,
            mixed_precision=self.mixed_precision,
        )

    def run(self) -> int:
        from hypernoise.commands.train import train_recipe

        result = train_recipe(self.recipe, self.output_dir, self.device)
        if result.signal:
            return 128 + result.signal
        judging = Evaluate(
            adapter=(str(self.output_dir / "adapter"),),
            count=self.judged,
            num_images_per_prompt=2,
            batch_size=32,
            mixed_precision=self.mixed_precision,
            output_dir=self.output_dir,
            device=self.device,
        )
        judging.evaluate("quickstart", self)
        sheet, adapter = self.output_dir / "before_after.png", self.output_dir / "adapter"
        print(f"pictures: {sheet}\nadapter:  {adapter}", file=sys.stderr)
        return 0
