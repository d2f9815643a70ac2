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
        from hypernoise.commands.evaluate_scenes import grid, table
        from hypernoise.commands.training import reward_settings, train_recipe
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.scenes.benchmark import evaluate, pool
        from hypernoise.scenes.prompts import evaluation_requests

        trained = train_recipe(self, self.output, self.device)
        if not trained.result.finished:
            return 128 + trained.result.signal
        generator, network = trained.generator, trained.network
        requests = evaluation_requests(self.judged)
        reward = WeightedSum(self.rewards, settings=reward_settings(self))
        with tqdm(total=4 * len(requests), desc="judging", unit="picture") as bar:
            base, ours = (
                evaluate(generator, f, requests, reward, seeds=2, progress=bar.update) for f in (None, network)
            )
        rows = [base.row, pool(base, [ours])]
        write_summary(self.output, "quickstart", self, generator.device, rows)
        print(table(rows))
        sheet = self.output / "before_after.png"
        grid(requests, 2, {1: base}, {1: ours}).save(sheet)
        print(f"pictures: {sheet}\nadapter:  {self.output / 'adapter'}", file=sys.stderr)
        return 0
