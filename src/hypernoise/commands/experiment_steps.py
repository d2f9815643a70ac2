"""The third experiment: noise networks trained at one step, and at mixed steps, drawn at many.

The gain can only last as long as the noise still decides the picture. So beside the gain stands, at every
number of steps, how far f moves the picture, against how far another noise would, and a random shift of f's
length; and how much of the one-step picture is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hypernoise.commands.experiment_base import Experiment, pooled
from hypernoise.errors import InputError


@dataclass(frozen=True)
class Steps(Experiment):
    """Gains of noise networks trained at one and at mixed steps, over the steps they are drawn at.

    Holds here if the gain in score of those trained at one step is above 0, its interval too, at every number of
    steps, and smaller at the last than at the first.
    """

    name: ClassVar[str] = "steps"
    adapter: tuple[str, ...] = ()
    """Adapter directories of runs trained at one step, to be used instead of training --seeds at one step here."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Denoiser calls per picture that are drawn."""
    mixed: tuple[int, ...] = (1, 2, 4)
    """Denoiser calls per picture of mixed training: each batch takes one of them."""

    def run(self) -> int:
        for name in ("steps", "mixed"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InputError(f"--{name} takes numbers from 1, such as 1 2 4, not {list(getattr(self, name))}")
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain

        bench = self.bench()
        mixed = f"mixed-{'-'.join(map(str, self.mixed))}-"
        folders = {
            "one": list(self.adapter) or bench.trained(),
            "mixed": bench.trained(mixed, generator_steps=self.mixed),
        }
        ours = {
            kind: [HyperNoise(folder, name=f"{kind}-{number}") for number, folder in enumerate(own)]
            for kind, own in folders.items()
        }
        random = [RandomShift(method, f"random-{i}") for i, method in enumerate(ours["one"])]
        found = bench.compare([Plain(), *ours["one"], *ours["mixed"], *random], steps=self.steps)
        rows, influence = [], []
        for steps in self.steps:
            rows.append(next(row for row in found.rows if row["steps"] == steps and row["method"] == "plain"))
            for kind, methods in ours.items():
                names = [method.name for method in methods]
                rows.append(pooled(found, f"hypernoise-{kind}", steps, names, bench.asked.categories))
            one = [method.name for method in ours["one"]]
            influence.append(self._influence(found, steps, one, [method.name for method in random]))
        gains = [row for row in rows if row["method"] == "hypernoise-one"]
        lasts = all(row["gain_ci95"] is not None and row["gain_ci95"][0] > 0 for row in gains)
        holds = lasts and gains[-1]["gain"] < gains[0]["gain"]
        return bench.finish(rows, influence=influence, verdict="holds" if holds else "does not hold")

    def _influence(self, found: Any, steps: int, ours: Sequence[str], random: Sequence[str]) -> dict[str, Any]:
        """RMS distances between pictures of the same prompt and noise, in units of that between noises."""
        plain = found.records[steps, "plain"]
        between = plain.diversity
        if not between:  # one noise per caption, or pictures that do not depend on it
            return {"steps": steps}
        first = found.records[self.steps[0], "plain"]
        return {
            "steps": steps,
            "between_noises": between,
            "moved_by_f": _moved(plain, [found.records[steps, name] for name in ours]) / between,
            "moved_by_a_random_shift": _moved(plain, [found.records[steps, name] for name in random]) / between,
            f"moved_since_{self.steps[0]}_steps": _moved(first, [plain]) / between,
        }


def _moved(plain: Any, others: Sequence[Any]) -> float:
    from hypernoise.evaluation.records import distance

    pairs = [(a, b) for other in others for a, b in zip(plain.files, other.files, strict=True)]
    return sum(distance(a, b) for a, b in pairs) / len(pairs)


class RandomShift:
    """A control: the noise moved by as much as f would move it, in a random direction."""

    def __init__(self, like: Any, name: str):
        self.like, self.name = like, name

    def settings(self) -> dict[str, Any]:
        return {"method": "random-shift", "like": self.like.settings()}

    def generate(self, problem: Any, prompts: list[str], noise: Any) -> Any:
        import torch

        from hypernoise.methods.base import Result, fresh_noise, metered, per_sample
        from hypernoise.objective import l2_kl

        network = self.like.adapter.on(problem.generator)
        with torch.no_grad(), metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            length = network(noise, condition).flatten(1).norm(dim=1)
            direction = fresh_noise(noise, 1)
            shift = direction * per_sample(length / direction.flatten(1).norm(dim=1), noise)
            pixels = meter.draw(noise + shift, condition)
        return Result(pixels, noise + shift, prompts, l2_kl(shift), None, meter.spent())
