"""`hypernoise quickstart`: the whole idea on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import tyro

from hypernoise.errors import at_least_one
from hypernoise.training.config import Recipe, Sources, Weights


@dataclass(frozen=True)
class Quickstart(Recipe):
    """Train on the embedded generator, judge base against hypernoise, and show both from the same noise.

    Writes before_after.png, summary.json, metrics.jsonl and the adapter to --output. Started again, it goes
    on from the last checkpoint, or only draws and judges again if the training is done.
    """

    rewards: Weights = field(default_factory=lambda: {"scenes": 1.0})
    rank: int = 8
    alpha: float = 16.0
    kl_weight: float = 0.05
    sample_clip: float = 1.0
    steps: int = 300
    batch_size: int = 32
    lr: float = 5e-4
    decay: bool = True
    checkpoint_every: int = 50
    generator: tyro.conf.Suppress[str] = "scenes"
    prompts: tyro.conf.Suppress[Sources] = field(default_factory=lambda: {"scenes": 1.0})
    output: Path = Path("runs/quickstart")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    judged: int = 50
    """Evaluation prompts per category that base and hypernoise are judged on, two noises each."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise quickstart")

    def run(self) -> int:
        at_least_one(self, "judged", flags=True)
        from tqdm import tqdm

        from hypernoise.commands.common import write_summary
        from hypernoise.commands.training import reward_settings, train_recipe
        from hypernoise.evaluation.benchmarks import first_of_each, load_benchmark
        from hypernoise.evaluation.engine import compare
        from hypernoise.evaluation.picture_sheet import first_noise, picture_sheet
        from hypernoise.evaluation.tables import as_text, result_tables
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain
        from hypernoise.rewards.ensemble import WeightedSum

        trained = train_recipe(self, self.output, self.device)
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
                WeightedSum(self.rewards, settings=reward_settings(self)),
                num_images_per_prompt=2,
                batch_size=32,
                judge=benchmark.load_judge(generator.device),
                categories=benchmark.categories,
                output=self.output,
                progress=bar.update,
            )
        write_summary(self.output, "quickstart", self, generator.device, found.rows)
        print("\n\n".join(as_text(table) for table in result_tables(found.rows)))
        firsts = first_of_each(benchmark.categories or [], 2)
        rows = [
            (f"{row['method']}\njudge {row['score']:.2f}", *first_noise(records, firsts))
            for row, records in zip(found.rows, found.records.values(), strict=True)
        ]
        sheet = self.output / "before_after.png"
        title = "Same prompts, same noise. Green frame: the judge finds what was asked for; red: it does not."
        picture_sheet([benchmark.prompts[i] for i in firsts], rows, title).save(sheet)
        print(f"pictures: {sheet}\nadapter:  {self.output / 'adapter'}", file=sys.stderr)
        return 0
