"""Noise networks trained at one inference step, and at mixed ones, drawn at many.

    python -m experiments.steps --output-dir runs/steps

The gain can only persist as long as the noise determines the picture. So for every number of inference steps the
table shows how far f moves the picture, compared with another noise and a random shift of f's length,
and how far the picture is from the one at the fewest steps.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypernoise as hn
from experiments.base import Seeded, main, pooled, table
from hypernoise.evaluation.records import Records, mean_distance
from hypernoise.methods.base import Method, Problem, Result, fresh_noise, metered, per_sample

DISTANCES = {
    "steps": ("steps", "d"),
    "between noises": ("between_noises", ".3f"),
    "moved by f": ("moved_by_f", ".3f"),
    "by a random shift as long": ("moved_by_a_random_shift", ".3f"),
    "since the fewest steps": ("moved_since_first", ".3f"),
}


@dataclass(frozen=True)
class Steps(Seeded):
    """Gains of noise networks trained at one and at mixed inference steps, by the number of steps they draw with.

    Holds here if the gain in score of those trained at one step is above 0, with its interval, at every number of
    inference steps, and smaller at the last than at the first.
    """

    inference_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of steps to draw with."""
    mixed: tuple[int, ...] = (1, 2, 4)
    """Numbers of steps for mixed training: each batch uses one of them."""
    pictures: int = 0
    """Pictures per training run; 0: as many as in the recipe's."""
    adapter: tuple[str, ...] = ()
    """Adapter directories of networks trained at one step, such as amortisation's, instead of training them here."""

    def run(self) -> int:
        for name in ("inference_steps", "mixed"):
            counts = getattr(self, name)
            if not counts or min(counts) < 1:
                raise hn.InputError(
                    f"--{name.replace('_', '-')} takes numbers from 1, such as 1 2 4, not {list(counts)}"
                )
        bench = self.bench()
        for count in self.inference_steps:
            bench.generator.check_steps(count)
        updates = bench.updates(self.pictures)

        def trained(run: str, **changes: Any) -> list[Any]:
            runs = [(f"{run}-seed{seed}", bench.config(updates, seed, **changes)) for seed in self.seeds]
            return [folder for name, config in runs for folder in bench.trained(name, config).values()]

        folders = {
            "one": list(self.adapter) or trained("one", num_inference_steps=1),
            "mixed": trained(f"mixed-{'-'.join(map(str, self.mixed))}", num_inference_steps=self.mixed),
        }
        ours = {
            kind: [hn.HyperNoise(folder, name=f"{kind}-{number}") for number, folder in enumerate(own)]
            for kind, own in folders.items()
        }
        random = [RandomShift(method, f"random-{i}") for i, method in enumerate(ours["one"])]
        methods: list[Method] = [hn.Plain(), *ours["one"], *ours["mixed"], *random]
        found = bench.compare(methods, steps=self.inference_steps)
        rows, influence = [], []
        for steps in self.inference_steps:
            rows.append(next(row for row in found.rows if row["inference_steps"] == steps and row["method"] == "plain"))
            for kind, own in ours.items():
                names = [method.name for method in own]
                rows.append(pooled(found, f"hypernoise-{kind}", steps, names, bench.asked.categories))
            one = [method.name for method in ours["one"]]
            influence.append(self._influence(found, steps, one, [method.name for method in random]))
        notes = ["RMS distances between pictures, in units of that between two noises of a caption:"]
        notes.append(table([{"method": "", **row} for row in influence], DISTANCES))
        verdict = verdict_on([row for row in rows if row["method"] == "hypernoise-one"])
        return bench.finish(rows, [verdict], notes=notes, influence=influence)

    def _influence(
        self, found: hn.Comparison, steps: int, ours: Sequence[str], random: Sequence[str]
    ) -> dict[str, Any]:
        """RMS distances between pictures of the same prompt and noise, in units of that between noises."""
        plain = found.records[steps, "plain"]
        between = plain.diversity
        if not between:  # a single noise per caption, or pictures independent of it
            return {"steps": steps}
        first = found.records[self.inference_steps[0], "plain"]
        return {
            "steps": steps,
            "between_noises": between,
            "moved_by_f": _moved(plain, [found.records[steps, name] for name in ours]) / between,
            "moved_by_a_random_shift": _moved(plain, [found.records[steps, name] for name in random]) / between,
            "moved_since_first": _moved(first, [plain]) / between,
        }


def verdict_on(gains: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on the gains of networks trained at one step, from the fewest inference steps to the most."""
    lasts = all(row["gain_ci95"] is not None and row["gain_ci95"][0] > 0 for row in gains)
    shrinks = gains[-1]["gain"] < gains[0]["gain"]
    lasting = "above 0 at every number of inference steps" if lasts else "not above 0 at every number of steps"
    shrinking = "smaller at the last than at the first" if shrinks else "no smaller at the last than at the first"
    return f"{'holds' if lasts and shrinks else 'does not hold'}: the gain is {lasting}, and {shrinking}"


def _moved(plain: Records, others: Sequence[Records]) -> float:
    pairs = [(a, b) for other in others for a, b in zip(plain.files, other.files, strict=True)]
    return sum(map(mean_distance, pairs)) / len(pairs)


class RandomShift:
    """A control: moves the noise by the norm of f, in a random direction."""

    def __init__(self, like: hn.HyperNoise, name: str):
        self.like, self.name = like, name

    def settings(self) -> dict[str, Any]:
        return {"method": "random-shift", "like": self.like.settings()}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.like.adapter.on(problem.generator)
        with metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            length = network(noise, condition).flatten(1).norm(dim=1)
            direction = fresh_noise(noise, 1)
            shift = direction * per_sample(length / direction.flatten(1).norm(dim=1), noise)
            pixels = meter.draw(noise + shift, condition)
        return Result(pixels, noise + shift, prompts, hn.l2_kl(shift), meter.spent())


if __name__ == "__main__":
    sys.exit(main(Steps))
