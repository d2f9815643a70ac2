"""`hypernoise quickstart`: the whole idea on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tyro

from hypernoise.errors import InputError
from hypernoise.training.config import Recipe, Weights

SHOWN = {"single_object": 4, "two_object": 3, "position": 2}  # columns of the sheet


@dataclass(frozen=True)
class Quickstart(Recipe):
    """Train on the embedded generator, judge base against hypernoise, and show both from the same noise.

    Writes before_after.png, summary.json, metrics.jsonl and the adapter to --output. Started again, it goes
    on from the last checkpoint, or only draws and judges again if the training is done.
    """

    steps: int = 200
    batch_size: int = 16
    lr: float = 1e-3
    decay: bool = True
    rewards: Weights = field(default_factory=lambda: {"redness": 250.0})
    checkpoint_every: int = 50
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    generator: tyro.conf.Suppress[str] = "scenes"
    prompts: tyro.conf.Suppress[str] = "scenes"
    output: Path = Path("runs/quickstart")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    judged: int = 10
    """Evaluation prompts per category that base and hypernoise are judged on, two noises each."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise quickstart")

    def run(self) -> int:
        if self.judged < 1:
            raise InputError(f"--judged must be at least 1, not {self.judged}")
        from tqdm import tqdm

        from hypernoise.commands.common import write_summary
        from hypernoise.commands.training import train_recipe
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.scenes.benchmark import evaluate
        from hypernoise.scenes.prompts import evaluation_requests

        trained = train_recipe(self, self.output, self.device)
        if not trained.result.finished:
            return 130
        generator, network = trained.generator, trained.network
        requests = evaluation_requests(self.judged)
        unweighted = WeightedSum(dict.fromkeys(self.rewards, 1.0))
        with tqdm(total=4 * len(requests), desc="judging", unit="picture") as bar:
            base, ours = (
                evaluate(generator, f, requests, unweighted, seeds=2, progress=bar.update) for f in (None, network)
            )
        write_summary(self.output, "quickstart", self, generator.device, [base.row, ours.row])
        reward = "+".join(self.rewards)
        print(_table([base.row, ours.row], reward))
        sheet = self.output / "before_after.png"
        _sheet(requests, base, ours, reward).save(sheet)
        print(f"pictures: {sheet}\nadapter:  {self.output / 'adapter'}", file=sys.stderr)
        return 0


def _table(rows: list[dict[str, Any]], reward: str) -> str:
    head = f"{'':<12}{reward:>10}{'KL':>8}{'judge':>8}{'artefacts':>11}{'calls':>7}{'ms/image':>10}"
    lines = [
        f"{row['method']:<12}{row['reward']:>10.4f}{row['kl']:>8.2f}{row['score']:>8.3f}{row['artefacts']:>11.3f}"
        f"{row['denoiser_forwards']:>7}{1000 * row['seconds_per_image']:>10.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _sheet(requests: Any, base: Any, ours: Any, reward: str) -> Any:
    """The first prompts of the categories that leave colours free: none is picked by its looks or its verdict."""
    from hypernoise.scenes.contact_sheet import before_after

    by_category = {c: [i for i, r in enumerate(requests) if r.category == c] for c in SHOWN}
    columns = [2 * i for category, count in SHOWN.items() for i in by_category[category][:count]]
    rows = [
        (
            f"{name}\n{reward} {e.row['reward']:.3f}\njudge {e.row['score']:.2f}",
            e.pixels[columns],
            [e.verdicts[i].correct for i in columns],
        )
        for name, e in (("base", base), ("hypernoise", ours))
    ]
    title = "Same prompts, same noise, one network call more. Green frame: the judge finds what was asked; red: not."
    return before_after([requests[i // 2].caption for i in columns], rows, title)
