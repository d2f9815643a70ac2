"""`hypernoise train RECIPE`: a training run on any registered generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tyro

from hypernoise.errors import InputError
from hypernoise.training.config import Recipe, read_recipe
from hypernoise.training.metrics import mean_of, rows_of
from hypernoise.training.parting import Reading, readings


@dataclass(frozen=True)
class Train(Recipe):
    """Train a noise hypernetwork from a recipe; every field of the recipe is also a flag.

    Writes metrics.jsonl, checkpoints, the adapter and summary.json to --output. Started again with the same
    --output, it goes on from the last checkpoint.
    """

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A YAML file of fields; flags override it."""
    output: Path = Path("runs/train")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        default = cls()
        if arguments and not arguments[0].startswith("-"):
            recipe = read_recipe(arguments[0])
            default = cls(recipe=Path(arguments[0]), **vars(recipe))
        elif "-h" not in arguments and "--help" not in arguments:
            raise InputError("name a recipe first: hypernoise train recipes/scenes-red.yaml [--field value]")
        return tyro.cli(cls, default=default, args=arguments, prog="hypernoise train")

    def run(self) -> int:
        from hypernoise.commands.common import write_summary
        from hypernoise.commands.training import train_recipe
        from hypernoise.training.processes import launched

        started = train_recipe(self, self.output, self.device)
        if not started.result.finished:
            return 128 + started.result.signal  # as a shell tells what ended a command: 130 after Ctrl-C
        if launched()[0] > 0:
            return 0
        metrics = self.output / "metrics.jsonl"
        seen = readings(metrics, started.result.step)
        rows = [{"method": "hypernoise", "steps": self.generator_steps, **_last_means(metrics), **_last_watched(seen)}]
        more = {"ended_early": started.result.parted, "watched": [vars(reading) for reading in seen]}
        write_summary(self.output, "train", self, started.generator.device, rows, **more)
        if seen:
            print(table(seen))
        print(f"adapter: {self.output / 'adapter'}")
        return 0


def table(seen: Sequence[Reading], lines: int = 12) -> str:
    """Trained against watched reward over training, each line the mean of a stretch of readings."""
    length = math.ceil(len(seen) / lines)
    told = [f"{'step':>14}{'trained reward':>18}{'watched reward':>18}"]
    for start in range(0, len(seen), length):
        part = seen[start : start + length]
        trained, watched = (sum(getattr(r, name) for r in part) / len(part) for name in ("reward", "watched_reward"))
        steps = f"{part[0].step}-{part[-1].step}" if len(part) > 1 else str(part[0].step)
        told.append(f"{steps:>14}{trained:>18.4f}{watched:>18.4f}")
    return "\n".join(told)


def _last_watched(seen: Sequence[Reading], last: int = 5) -> dict[str, float | None]:
    part = [reading.watched_reward for reading in seen[-last:]]
    return {"watched_reward": sum(part) / len(part) if part else None}


def _last_means(metrics: Path, rows: int = 20) -> dict[str, float | None]:
    """Means over the last rows of metrics.jsonl, which holds the whole run however often it was resumed."""
    last = rows_of(metrics.parent)[-rows:]
    return {name: mean_of(last, name) for name in ("reward", "kl")}
