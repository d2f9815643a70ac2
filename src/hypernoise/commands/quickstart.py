"""`hypernoise quickstart`: the method end to end on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hypernoise.precision import MixedPrecision
from hypernoise.settings import whole
from hypernoise.training.config import LoRA, Recipe


@dataclass(frozen=True)
class Quickstart:
    """Train on the embedded generator, judge plain against hypernoise, and show both from the same noise.

    Writes before_after.png, summary.json, metrics.jsonl and the adapter to --output-dir. Started again, it resumes from
    the last checkpoint, or only redraws and judges if training is done. `hypernoise train` has all settings.
    """

    max_train_steps: int = 300
    """Number of updates."""
    train_batch_size: int = 32
    """Pictures per update."""
    judged: int = 50
    """Held-out captions per category to judge on, two noises each."""
    seed: int = 0
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
        whole(self, "judged", flags=True)
        from tqdm import tqdm

        from hypernoise.commands.training import train_recipe
        from hypernoise.evaluation.benchmarks import load_benchmark
        from hypernoise.evaluation.engine import compare
        from hypernoise.evaluation.picture_sheet import before_and_after
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.evaluation.tables import as_text, result_tables
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain
        from hypernoise.rewards.ensemble import WeightedSum

        recipe = self.recipe
        trained = train_recipe(recipe, self.output_dir, self.device)
        if not trained.result.finished:
            return 128 + trained.result.signal
        generator = trained.generator
        benchmark = load_benchmark("scenes", self.judged)
        assert benchmark.load_judge is not None
        with tqdm(total=4 * len(benchmark.prompts), desc="judging", unit="picture") as bar:
            found = compare(
                generator,
                [Plain(), HyperNoise(trained.network)],
                benchmark.prompts,
                WeightedSum(recipe.rewards),
                num_images_per_prompt=2,
                batch_size=32,
                judge=benchmark.load_judge(generator.device),
                categories=benchmark.categories,
                output=self.output_dir,
                progress=bar.update,
            )
        write_summary(self.output_dir, "quickstart", self, generator.device, found.rows)
        print("\n\n".join(as_text(table) for table in result_tables(found.rows)))
        sheet = self.output_dir / "before_after.png"
        before_and_after(benchmark.prompts, benchmark.categories, found.rows, list(found.records.values())).save(sheet)
        print(f"pictures: {sheet}\nadapter:  {self.output_dir / 'adapter'}", file=sys.stderr)
        return 0
