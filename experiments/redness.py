"""The paper's first experiment: a reward that any red picture satisfies, trained by f and by fine-tuning.

    python -m experiments.redness --output-dir runs/redness

Both LoRAs have the same rank, updates, prompts and noises, and each the learning rate of the same grid with
the lowest training loss. They are compared where their rewards have risen equally.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypernoise as hn
from experiments.base import RECIPES, Bench, Seeded, main, pooled, table
from hypernoise.evaluation.picture_sheet import examples_of, picture_sheet
from hypernoise.methods.base import Method
from hypernoise.training.metrics import mean_of, rows_of

METHODS = {"hypernoise": hn.HyperNoise, "finetune": hn.FineTune}
VALIDATED = {"scenes": 1.0}  # whether the picture still shows its prompt
AVERAGED = 20  # last updates whose mean loss selects the learning rate
MEASURES = {"score": "judge", "artefacts": "artefacts", "validation_reward": "validation", "diversity": "diversity"}


@dataclass(frozen=True)
class Redness(Seeded):
    """Reward against fidelity over training: hypernoise and fine-tuning at matched reward.

    Holds here if, at the reward that both reach, hypernoise's pictures score higher and have fewer artefacts for
    every training seed; does not hold if for none.
    """

    recipe: Path = RECIPES / "scenes-red.yaml"
    """The recipe of both; the learning rate does not decay, so that runs can be judged midway."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Multiples of the recipe's learning rate to try for both, with the first seed."""
    looks: tuple[int, ...] = (5, 10, 15, 20, 40, 80, 120, 160, 200)
    """Updates after which pictures are judged, the last being the end; some are early, as fine-tuning rises
    quickly."""

    def run(self) -> int:
        if not self.rates or not min(self.rates) > 0:
            raise hn.InputError(f"--rates takes numbers above 0, such as 0.3 1 3, not {list(self.rates)}")
        if not self.looks or min(self.looks) < 1:
            raise hn.InputError(f"--looks takes numbers of updates from 1, not {list(self.looks)}")
        bench = self.bench(VALIDATED)
        points = sorted(set(self.looks))
        rates = {kind: self._rate(bench, kind, points) for kind in METHODS}
        methods: list[Method] = [hn.Plain()]
        for kind, make in METHODS.items():
            for seed in self.seeds:
                config = self._config(bench, seed, rates[kind]["learning_rate"])
                for point, folder in bench.trained(_run(kind, config), config, kind=kind, at=points).items():
                    methods.append(make(folder, name=f"{kind}-{seed}-{point}"))
        found = bench.compare(methods)
        by_name = {row["method"]: row for row in found.rows}
        rows = [by_name["plain"]]
        for kind in METHODS:
            for point in points:
                names = [f"{kind}-{seed}-{point}" for seed in self.seeds]
                rows.append({**pooled(found, kind, 1, names, bench.asked.categories), "updates": point})
        matched = []
        for seed in self.seeds:
            curves = {
                kind: [by_name["plain"], *(by_name[f"{kind}-{seed}-{point}"] for point in points)] for kind in METHODS
            }
            matched.append({"training_seed": seed, **at_matched_reward(curves["hypernoise"], curves["finetune"])})
        self._sheet(bench, found, points)
        notes = ["At the reward that both reach:", table(_side_by_side(matched), _columns())]
        return bench.finish(rows, [verdict(matched)], notes=notes, learning_rates=rates, matched=matched)

    def _config(self, bench: Bench, seed: int, lr: float) -> hn.TrainConfig:
        return bench.config(max(self.looks), seed, learning_rate=lr, lr_scheduler="constant")

    def _rate(self, bench: Bench, kind: str, points: Sequence[int]) -> dict[str, Any]:
        """The learning rate with the lowest mean loss over the first seed's last updates, and all losses."""
        losses: dict[float, float | None] = {}
        for lr in [rate * bench.recipe.learning_rate for rate in self.rates]:
            config = self._config(bench, self.seeds[0], lr)
            try:
                bench.trained(_run(kind, config), config, kind=kind, at=points)
            except hn.InputError as error:
                if "lower learning_rate" not in str(error):
                    raise
                losses[lr] = None  # it diverged, which is a result
                continue
            losses[lr] = mean_of(rows_of(bench.folder(_run(kind, config)))[-AVERAGED:], "loss")
        left = {lr: loss for lr, loss in losses.items() if loss is not None}
        if not left:
            raise hn.InputError(f"{kind} diverged at every learning rate of {list(losses)}; give lower --rates")
        return {
            "learning_rate": min(left, key=lambda lr: left[lr]),
            "losses": {f"{lr:g}": loss for lr, loss in losses.items()},
        }

    def _sheet(self, bench: Bench, found: hn.Comparison, points: Sequence[int]) -> None:
        """Writes sheet.png: each category's first caption from its first noise, along the first seed's training."""
        drawn = {"plain": found.records[1, "plain"]}
        for kind, label, looks in (("hypernoise", "hypernoise", points[-1:]), ("finetune", "fine-tuning", points)):
            for point in looks:
                drawn[f"{label}\n{point} updates"] = found.records[1, f"{kind}-{self.seeds[0]}-{point}"]
        title = f"Trained with seed {self.seeds[0]}, from the same noises. Green frame: the judge finds what was asked."
        examples = examples_of(bench.asked, drawn, each=1, most=6)
        picture_sheet(examples, title).save(self.output_dir / "sheet.png")


def _run(kind: str, config: hn.TrainConfig) -> str:
    return f"{kind}-lr{config.learning_rate:g}-seed{config.seed}"


def at_matched_reward(ours: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Both curves (rows along training, the plain generator first) at the final reward of the lower one.

    Measures are interpolated between looks by the reward; the first crossing counts.
    """
    reward = min(max(row["reward"] for row in curve) for curve in (ours, other))
    return {
        "reward": reward,
        "plain_reward": ours[0]["reward"],
        **{
            kind: {name: _crossing(curve, reward, name) for name in MEASURES}
            for kind, curve in (("hypernoise", ours), ("finetune", other))
        },
    }


def _crossing(curve: list[dict[str, Any]], reward: float, name: str) -> float | None:
    if curve[0][name] is None:
        return None
    for before, after in itertools.pairwise(curve):
        if before["reward"] <= reward <= after["reward"] and after["reward"] > before["reward"]:
            share = (reward - before["reward"]) / (after["reward"] - before["reward"])
            return before[name] + share * (after[name] - before[name])
    return max(curve, key=lambda row: row["reward"])[name]  # it never rose above the plain generator


def _side_by_side(matched: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"method": f"seed {one['training_seed']}", "reward": one["reward"]}
        | {f"{name} {kind}": one[kind][name] for name in MEASURES for kind in METHODS}
        for one in matched
    ]


def _columns() -> dict[str, tuple[str, str]]:
    columns = {
        f"{heading}: {kind}": (f"{name} {kind}", ".3f") for name, heading in MEASURES.items() for kind in METHODS
    }
    return {"reward": ("reward", ".3f"), **columns}


def verdict(matched: Sequence[Mapping[str, Any]]) -> str:
    if any(one["reward"] <= one["plain_reward"] for one in matched):
        return "undecided: one of them never raised the reward"
    better = [
        one["hypernoise"]["score"] > one["finetune"]["score"]
        and one["hypernoise"]["artefacts"] < one["finetune"]["artefacts"]
        for one in matched
    ]
    text = f"at equal reward hypernoise is better by judge and artefacts for {sum(better)} of {len(better)} seeds"
    return f"{'holds' if all(better) else 'undecided' if any(better) else 'does not hold'}: {text}"


if __name__ == "__main__":
    sys.exit(main(Redness))
