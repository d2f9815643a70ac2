"""A noise network of one generator on others (an open question of arXiv 2508.09968).

    python -m experiments.transfer --to DIR [DIR ...] --output-dir runs/transfer

The recipe's generator and each of --to get their own noise networks, by the same recipe; then the recipe's drive the
others. Generators with the same latent layout share the noise; otherwise `experiments.noise_map` converts it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypernoise as hn
from experiments.base import Bench, Seeded, main, pooled
from experiments.noise_map import NoiseMap
from hypernoise.generators.base import Generator
from hypernoise.generators.registry import load_as
from hypernoise.methods.base import Method, Problem, Result, metered
from hypernoise.methods.hypernoise import Adapter
from hypernoise.noise.base import NoiseNetwork


@dataclass(frozen=True)
class Transfer(Seeded):
    """Gains of noise networks on their own generator, and on others that they were not trained on.

    Carries over if the driven generator's gain in reward is above 0, with its interval.
    """

    to: tuple[str, ...] = ()
    """Generators to drive: registered names or pipeline directories."""
    pictures: int = 0
    """Pictures per training run; 0: as many as in the recipe's."""

    def run(self) -> int:
        if not self.to:
            raise hn.InputError("name generators to drive: python -m experiments.transfer --to DIR [DIR ...]")
        bench = self.bench()
        updates = bench.updates(self.pictures)
        others = [
            dataclasses.replace(
                bench,
                generator=load_as(dataclasses.replace(bench.recipe, generator=name), device=self.device),
            )
            for name in self.to
        ]
        for other in others:  # checks all generators before training
            other.generator.check_prompts(bench.asked.prompts)
            layouts_between(other.generator, bench.generator)
        ours = self._trained(bench, "source", updates)
        rows = self._rows(bench, {"hypernoise": [hn.HyperNoise(folder, name=name) for name, folder in ours.items()]})
        verdicts = []
        for number, other in enumerate(others):
            own = self._trained(other, f"to{number}", updates)
            methods: dict[str, list[Any]] = {
                "hypernoise": [hn.HyperNoise(folder, name=name) for name, folder in own.items()],
                "transfer": [Driven(folder, bench.generator, name=f"driven-{name}") for name, folder in ours.items()],
            }
            found = self._rows(other, methods)
            verdicts.append(f"{self.to[number]}: {verdict(*found[1:])}")
            rows += found
        named = [{**row, "method": f"{row['generator']}: {row['method']}"} for row in rows]
        return bench.finish(named, verdicts)

    def _trained(self, bench: Bench, run: str, updates: int) -> dict[str, Path]:
        names = {f"{run}-seed{seed}": bench.config(updates, seed) for seed in self.seeds}
        return {name: folder for name, config in names.items() for folder in bench.trained(name, config).values()}

    def _rows(self, bench: Bench, methods: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """Plain, and a row per method, on one generator."""
        drawn: list[Method] = [hn.Plain(), *(method for own in methods.values() for method in own)]
        found = bench.compare(drawn)
        rows = [found.rows[0]]
        for kind, own in methods.items():
            rows.append(pooled(found, kind, 1, [method.name for method in own], bench.asked.categories))
        return [{"generator": bench.generator.name, **row} for row in rows]


def verdict(own: Mapping[str, Any], driven: Mapping[str, Any]) -> str:
    """Whether the foreign network gains anything, compared with the generator's own."""
    between = driven["reward_gain_ci95"]
    carries = between is not None and between[0] > 0
    share = f", {driven['reward_gain'] / own['reward_gain']:.2f} of its own network's" if own["reward_gain"] > 0 else ""
    gain = f"{driven['reward_gain']:+.3f}" + (f" [{between[0]:+.3f}, {between[1]:+.3f}]" if between else "")
    return f"{'carries over' if carries else 'does not carry over'}: {gain} in reward{share}"


def layouts_between(generator: Generator, source: Generator) -> NoiseMap | None:
    """The map from a generator's noise to the source's; None for equal layouts. Raises InputError if there is none."""
    here, there = tuple(generator.noise_shape), tuple(source.noise_shape)
    return None if here == there else NoiseMap(here, there)


class Driven:
    """x + Mᵀ f(M x, c), with f on its own generator and M its noise space's map; then this generator.

    Args:
        network: a trained noise network, or an adapter directory.
        source: the generator it was trained on, which evaluates it with its own conditioning. Its calls count
            as this generator's.

    For equal latent layouts M is the identity. Otherwise see `NoiseMap`; noise in tokens is refused.
    """

    def __init__(self, network: NoiseNetwork | str | Path, source: Generator, *, name: str = "transfer"):
        self.adapter, self.source, self.name = Adapter(network), source, name

    def settings(self) -> dict[str, Any]:
        return {"method": "transfer", "weights": self.adapter.digest(), "source": self.source.name}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.adapter.on(self.source)
        between = layouts_between(problem.generator, self.source)
        with metered(problem) as meter, metered(dataclasses.replace(problem, generator=self.source)) as before:
            condition = self.source.encode(prompts)
            if between is None:
                residual = network(noise, condition)
            else:
                residual = between.adjoint(network(between(noise), condition))
            better = noise + residual.to(noise.dtype)
            pixels = meter.draw(better, problem.generator.encode(prompts))
        spent = meter.spent() + dataclasses.replace(before.spent(), seconds=0.0)
        return Result(pixels, better, prompts, hn.l2_kl(residual), spent)


if __name__ == "__main__":
    sys.exit(main(Transfer))
