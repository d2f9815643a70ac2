"""One thing changed at a time, with everything else as in the recipe: the LoRA's rank, its start, a training field.

python -m experiments.ablations --output-dir runs/ablations
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import hypernoise as hn
from experiments.base import Bench, Seeded, main, pooled
from hypernoise.errors import unknown
from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.result_rows import by_prompt
from hypernoise.settings import NotNegative

OFF_ZERO = 0.02  # standard deviation of B's initial entries


@dataclass(frozen=True)
class Ablations(Seeded):
    """The gain at several ranks, with B drawn from N(0, 0.02²) instead of 0, and with other training settings.

    The paper's ranks are 8 to 128 on networks with layers of 1000 and more channels; the defaults are scaled to
    the embedded generator. alpha / rank is the recipe's at every rank.
    """

    ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
    """LoRA ranks; the largest is also trained from a start that is not zero."""
    vary: tuple[str, ...] = ()
    """Training fields to change, one per run and at the recipe's rank, such as kl_weight=0.01 sample_clip=0."""
    nearby: NotNegative = 0.0
    """Also trains, at the recipe's rank, on rewards of noises this far from the improved one: (z + s·e) / √(1 + s²)."""
    pictures: int = 16384
    """Pictures per training run; 0: as many as in the recipe's."""

    def run(self) -> int:
        if not self.ranks or min(self.ranks) < 1:
            raise hn.InputError(f"--ranks takes numbers from 1, such as 4 16, not {list(self.ranks)}")
        bench = self.bench()
        updates = bench.updates(self.pictures)
        ranks = sorted(set(self.ranks) | ({bench.recipe.lora.rank} if self.vary or self.nearby else set()))
        changes = {change: changed(change) for change in self.vary}
        variants: dict[str, dict[str, Any]] = {f"rank-{rank}": {"rank": rank} for rank in ranks}
        variants[f"rank-{ranks[-1]}-nonzero-start"] = {"rank": ranks[-1], "start": OFF_ZERO}
        variants |= {change: {} for change in changes}
        if self.nearby:
            variants[f"nearby-{self.nearby:g}"] = {"nearby": self.nearby}
        runs: dict[str, list[str]] = {}
        methods = []
        for variant, settings in variants.items():
            for seed in self.seeds:
                name = f"{variant}-seed{seed}"
                config = bench.config(updates, seed, **changes.get(variant, {}))
                (folder,) = bench.trained(name, config, **settings).values()
                methods.append(hn.HyperNoise(folder, name=name))
                runs.setdefault(variant, []).append(name)
        found = bench.compare([hn.Plain(), *methods])
        rows = [found.rows[0]]
        rows += [pooled(found, variant, 1, names, bench.asked.categories) for variant, names in runs.items()]
        least, most, own = (f"rank-{rank}" for rank in (ranks[0], ranks[-1], bench.recipe.lora.rank))
        pairs = [(most, f"{most}-nonzero-start"), *([(most, least)] if least != most else [])]
        pairs += [(variant, own) for variant, settings in variants.items() if "rank" not in settings]
        return bench.finish(rows, [compared(bench, found, runs, *pair) for pair in pairs])


def changed(change: str) -> dict[str, str]:
    """The field and value of "field=value"."""
    field, equals, value = change.partition("=")
    known = [f.name for f in dataclasses.fields(hn.TrainConfig)]
    if not (equals and field.isidentifier()):
        raise hn.InputError(f"--vary takes field=value, such as kl_weight=0.01, not {change!r}")
    if field not in known:
        raise unknown("field of training", field, known)
    return {field: value}


def compared(bench: Bench, found: hn.Comparison, runs: dict[str, list[str]], ours: str, other: str) -> str:
    """The gain of one variant over another, and whether it is within chance."""
    groups = np.array(bench.asked.categories)
    parts = []
    for measure, name, by in (("right", "judge", groups), ("reward", "reward", np.zeros(len(groups)))):
        change = _by_prompt(found, runs[ours], measure) - _by_prompt(found, runs[other], measure)
        between = interval(change, by)
        parts.append(f"{name} {grouped_mean(change.mean(0), by):+.3f}" + _interval_text(between))
    return f"{ours} over {other}: {', '.join(parts)}"


def _interval_text(between: Sequence[float] | None) -> str:
    if between is None:
        return ""
    chance = "" if between[0] > 0 or between[1] < 0 else ", within chance"
    return f" [{between[0]:+.3f}, {between[1]:+.3f}]{chance}"


def _by_prompt(found: hn.Comparison, names: Sequence[str], measure: str) -> np.ndarray:
    """[runs, prompts]"""
    values = by_prompt([found.records[1, name] for name in names], measure)
    assert values is not None  # scenes are judged
    return values


if __name__ == "__main__":
    sys.exit(main(Ablations))
