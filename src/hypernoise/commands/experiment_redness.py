"""The paper's first experiment: a reward that any red picture satisfies, climbed by f and by fine-tuning.

Both LoRAs have the same rank, updates, prompts and noises, and each the learning rate of the same grid that
leaves its own training loss lowest. They are compared where they have raised the reward equally.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypernoise.commands.experiment_base import Bench, RednessTrained, pooled
from hypernoise.errors import InputError
from hypernoise.training.config import TrainConfig, Weights
from hypernoise.training.metrics import mean_of, rows_of

KINDS = ("hypernoise", "finetune")
AVERAGED = 20  # last updates whose mean loss a learning rate is chosen by


@dataclass(frozen=True)
class Redness(RednessTrained):
    """Reward against fidelity over training: hypernoise and fine-tuning at matched reward.

    Holds here if, at the reward that both reach, hypernoise's pictures score higher and have fewer artefacts for
    every training seed; does not hold if for none.
    """

    name: ClassVar[str] = "redness"
    watched: Weights = field(default_factory=lambda: {"scenes": 1.0})
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Learning rates tried for both, with the first seed."""
    looks: tuple[int, ...] = (5, 10, 15, 20, 40, 80, 120, 160, 200)
    """Updates after which pictures are judged, beside the last: early ones too, as fine-tuning climbs at once."""

    def run(self) -> int:
        if not self.lrs:
            raise InputError("--lrs takes at least one learning rate, such as 1e-3")
        if self.warm_rounds:
            raise InputError("--warm-rounds must be 0 here: fine-tuning has no warm start, and both are to train alike")
        if min(self.looks, default=1) < 1:
            raise InputError(f"--looks takes numbers of updates from 1, not {list(self.looks)}")
        from hypernoise.methods.finetune import FineTune
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain

        bench = self.bench()
        points = sorted({*(look for look in self.looks if look < self.train_steps), self.train_steps})
        rates = {kind: self._rate(bench, kind, points) for kind in KINDS}
        make = {"hypernoise": HyperNoise, "finetune": FineTune}
        methods: list[Any] = [Plain()]
        for kind in KINDS:
            for seed in self.seeds:
                config = self.config(seed, lr=rates[kind]["lr"])
                for point, folder in bench.adapters(_run(kind, config), config, kind=kind, at=points).items():
                    methods.append(make[kind](folder, name=f"{kind}-{seed}-{point}"))
        found = bench.compare(methods)
        by_name = {row["method"]: row for row in found.rows}
        rows = [by_name["plain"]]
        for kind in KINDS:
            for point in points:
                names = [f"{kind}-{seed}-{point}" for seed in self.seeds]
                rows.append({**pooled(found, f"{kind}-{point}", 1, names, bench.asked.categories), "updates": point})
        matched = []
        for seed in self.seeds:
            curves = {
                kind: [by_name["plain"], *(by_name[f"{kind}-{seed}-{point}"] for point in points)] for kind in KINDS
            }
            matched.append({"training_seed": seed, **at_matched_reward(curves["hypernoise"], curves["finetune"])})
        self._sheet(bench, found, points)
        return bench.finish(rows, learning_rates=rates, matched=matched, verdict=verdict(matched))

    def _sheet(self, bench: Bench, found: Any, points: Sequence[int]) -> None:
        """sheet.png: the first caption of each category from its first noise, along the first seed's training."""
        import torch

        from hypernoise.evaluation.html import first_of_each
        from hypernoise.evaluation.rewards import read_picture
        from hypernoise.scenes.contact_sheet import before_after

        def shown(name: str) -> tuple[torch.Tensor, list[bool]]:
            records = found.records[1, name]
            pixels = torch.stack([read_picture(records.files[i * self.noises]) for i in firsts])
            return pixels, [bool(records.values["right"][i, 0]) for i in firsts]

        firsts = first_of_each(bench.asked.categories, 1)
        rows = [("plain", *shown("plain"))]
        for kind, label, looks in (("hypernoise", "hypernoise", points[-1:]), ("finetune", "fine-tuning", points)):
            for point in looks:
                rows.append((f"{label}\n{point} updates", *shown(f"{kind}-{self.seeds[0]}-{point}")))
        title = f"Trained with seed {self.seeds[0]}, from the same noises. Green frame: the judge finds what was asked."
        before_after([bench.asked.prompts[i] for i in firsts], rows, title).save(self.output / "sheet.png")

    def _rate(self, bench: Bench, kind: str, points: Sequence[int]) -> dict[str, Any]:
        """The learning rate of least mean loss over the last updates of the first seed, and all that were tried."""
        losses = {}
        for lr in self.lrs:
            config = self.config(self.seeds[0], lr=lr)
            try:
                bench.adapters(_run(kind, config), config, kind=kind, at=points)
            except InputError as error:
                if "lower lr" not in str(error):
                    raise
                losses[lr] = None  # it diverged, which is an outcome
                continue
            rows = rows_of(bench.settings.output / "training" / _run(kind, config))
            losses[lr] = mean_of(rows[-AVERAGED:], "loss")
        left = {lr: loss for lr, loss in losses.items() if loss is not None}
        if not left:
            raise InputError(f"{kind} diverged at every learning rate of {list(self.lrs)}; give lower --lrs")
        return {"lr": min(left, key=lambda lr: left[lr]), "losses": {f"{lr:g}": loss for lr, loss in losses.items()}}


def _run(kind: str, config: TrainConfig) -> str:
    return f"{kind}-lr{config.lr:g}-seed{config.seed}"


def at_matched_reward(ours: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Both curves (rows along training, the plain generator first) at the reward of the one that ends lower.

    Between two looks the measures are interpolated in the reward; the first crossing counts.
    """
    reward = min(max(row["reward"] for row in curve) for curve in (ours, other))
    measures = ("score", "artefacts", "watched_reward", "diversity")
    return {
        "reward": reward,
        "plain_reward": ours[0]["reward"],
        **{
            kind: {name: _crossing(curve, reward, name) for name in measures}
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


def verdict(matched: list[dict[str, Any]]) -> str:
    if any(one["reward"] <= one["plain_reward"] for one in matched):
        return "undecided: one of them never raised the reward"
    better = [
        one["hypernoise"]["score"] > one["finetune"]["score"]
        and one["hypernoise"]["artefacts"] < one["finetune"]["artefacts"]
        for one in matched
    ]
    return "holds" if all(better) else "undecided" if any(better) else "does not hold"
