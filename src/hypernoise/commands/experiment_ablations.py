"""Ablations: the LoRA's rank, and whether f starts at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hypernoise.commands.experiment_base import RednessTrained, pooled
from hypernoise.errors import InputError


@dataclass(frozen=True)
class Ablations(RednessTrained):
    """The gain at several ranks, and with B drawn from N(0, --start²) instead of 0, all else alike.

    The paper's ranks are 8 to 128 on networks with layers of 1000 and more channels; the defaults are scaled to
    the embedded generator. alpha / rank is the same at every rank. A warm start has no start of its own and its
    output layer needs no more than 16 ranks, so there is none, and the reward is one that is climbed without.
    """

    name: ClassVar[str] = "ablations"
    lr: float = 1e-3
    ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
    start: float = 0.02

    def run(self) -> int:
        if not self.ranks or min(self.ranks) < 1:
            raise InputError(f"--ranks takes numbers from 1, such as 4 16, not {list(self.ranks)}")
        if self.rank not in self.ranks:
            raise InputError(f"--rank {self.rank} must be among --ranks: from it starts the one that is not at zero")
        if not self.start > 0:
            raise InputError(f"--start must be above 0, not {self.start}")
        if self.warm_rounds:
            raise InputError("--warm-rounds must be 0 here: a warm start would be the start that is compared")
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain

        bench = self.bench()
        variants = {f"rank-{rank}": (rank, 0.0) for rank in self.ranks}
        variants[f"rank-{self.rank}-nonzero-start"] = (self.rank, self.start)
        methods: dict[str, list[Any]] = {}
        for variant, (rank, start) in variants.items():
            for seed in self.seeds:
                run = f"{variant}-seed{seed}"
                (folder,) = bench.adapters(run, self.config(seed), rank=rank, start=start).values()
                methods.setdefault(variant, []).append(HyperNoise(folder, name=f"{variant}-{seed}"))
        found = bench.compare([Plain(), *(method for runs in methods.values() for method in runs)])
        rows = [found.rows[0]]
        for variant, runs in methods.items():
            rows.append(pooled(found, variant, 1, [method.name for method in runs], bench.asked.categories))
        return bench.finish(rows)
