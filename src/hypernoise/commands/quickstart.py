"""`hypernoise quickstart`: the whole idea on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hypernoise.commands.flags import parse
from hypernoise.errors import at_least_one
from hypernoise.precision import MixedPrecision
from hypernoise.training.config import LoRA, Recipe


@dataclass(frozen=True)
class Quickstart:
    """Train on the embedded generator, judge plain against hypernoise, and show both from the same noise.

    Writes before_after.png, summary.json, metrics.jsonl and the adapter to --output-dir. Started again, it resumes from
    the last checkpoint, or only draws and judges again if the training is done. `hypernoise train` has every setting.
    """

    max_train_steps: int = 300
    """Updates."""
    train_batch_size: int = 32
    """Pictures per update."""
    judged: int = 50
    """Held-out captions per category that plain and hypernoise are judged on, two noises each."""
    seed: int = 0
    mixed_precision: MixedPrecision = "auto"
    """auto: bf16 where the device has units for it, else no, which is fp32."""
    output_dir: Path = Path("runs/quickstart")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return parse(cls, "quickstart", arguments)

    @property
    def recipe(self) -> Recipe:
        """What is trained: recipes/scenes.yaml, shorter."""
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
        at_least_one(self, "judged", flags=True)
        from tqdm import tqdm

        from hypernoise.commands.common import write_summary
        from hypernoise.commands.evaluate_scenes import grid, table
        from hypernoise.commands.training import train_recipe
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.scenes.benchmark import evaluate, pool
        from hypernoise.scenes.prompts import evaluation_requests

        recipe = self.recipe
        trained = train_recipe(recipe, self.output_dir, self.device)
        if not trained.result.finished:
            return 128 + trained.result.signal
        generator, network = trained.generator, trained.network
        requests, reward = evaluation_requests(self.judged), WeightedSum(recipe.rewards)
        with tqdm(total=4 * len(requests), desc="judging", unit="picture") as bar:
            base, ours = (
                evaluate(generator, f, requests, reward, seeds=2, progress=bar.update) for f in (None, network)
            )
        rows = [base.row, pool(base, [ours])]
        write_summary(self.output_dir, "quickstart", self, generator.device, rows)
        print(table(rows))
        sheet = self.output_dir / "before_after.png"
        grid(requests, 2, {1: base}, {1: ours}).save(sheet)
        print(f"pictures: {sheet}\nadapter:  {self.output_dir / 'adapter'}", file=sys.stderr)
        return 0
