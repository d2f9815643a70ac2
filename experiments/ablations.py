"""The LoRA's rank, and whether f starts at zero, with everything else as in the recipe.

python -m experiments.ablations --output-dir runs/ablations
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import hypernoise as hn
from experiments.base import Bench, Seeded, main, pooled
from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.result_rows import by_prompt

OFF_ZERO = 0.02  # standard deviation of B's initial entries


@dataclass(frozen=True)
class Ablations(Seeded):
    """The gain at several ranks, and with B drawn from N(0, 0.02²) instead of 0.

    The paper's ranks are 8 to 128 on networks with layers of 1000 and more channels; the defaults are scaled to
    the embedded generator. alpha / rank is the recipe's at every rank.
    """

    ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
    """LoRA ranks; the largest is also trained from a start that is not zero."""
    pictures: int = 16384
    """Pictures per training run; 0: as many as in the recipe's."""

    def run(self) -> int:
        if not self.ranks or min(self.ranks) < 1:
            raise hn.InputError(f"--ranks takes numbers from 1, such as 4 16, not {list(self.ranks)}")
        bench = self.bench()
        updates = bench.updates(self.pictures)
        ranks = sorted(set(self.ranks))
        variants = {f"rank-{rank}": (rank, 0.0) for rank in ranks}
        variants[f"rank-{ranks[-1]}-nonzero-start"] = (ranks[-1], OFF_ZERO)
        runs: dict[str, list[str]] = {}
        methods = []
        for variant, (rank, start) in variants.items():
            for seed in self.seeds:
                name = f"{variant}-seed{seed}"
                (folder,) = bench.trained(name, bench.config(updates, seed), rank=rank, start=start).values()
                methods.append(hn.HyperNoise(folder, name=name))
                runs.setdefault(variant, []).append(name)
        found = bench.compare([hn.Plain(), *methods])
        rows = [found.rows[0]]
        rows += [pooled(found, variant, 1, names, bench.asked.categories) for variant, names in runs.items()]
        least, most, nonzero = f"rank-{ranks[0]}", f"rank-{ranks[-1]}", list(variants)[-1]
        pairs = [(most, nonzero), *([(most, least)] if least != most else [])]
        return bench.finish(rows, [compared(bench, found, runs, *pair) for pair in pairs])


def compared(bench: Bench, found: hn.Comparison, runs: dict[str, list[str]], ours: str, other: str) -> str:
    """The gain of one variant over another, and whether it is within chance."""
    groups = np.array(bench.asked.categories)
    told = []
    for measure, name, by in (("right", "judge", groups), ("reward", "reward", np.zeros(len(groups)))):
        change = _by_prompt(found, runs[ours], measure) - _by_prompt(found, runs[other], measure)
        between = interval(change, by)
        told.append(f"{name} {grouped_mean(change.mean(0), by):+.3f}" + _told(between))
    return f"{ours} over {other}: {', '.join(told)}"


def _told(between: Sequence[float] | None) -> str:
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
