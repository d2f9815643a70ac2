"""`hypernoise train RECIPE`: a training run on any registered generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tyro

from hypernoise.errors import InputError, out_of_memory
from hypernoise.training.config import Recipe, read_recipe
from hypernoise.training.early_stopping import Reading, draw_readings, in_stretches, readings
from hypernoise.training.metrics import mean_of, rows_of


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
        return cls.parse_as("train", arguments)

    @classmethod
    def parse_as(cls, command: str, arguments: list[str]) -> Self:
        default = cls()
        if arguments and not arguments[0].startswith("-"):
            recipe = read_recipe(arguments[0])
            default = cls(recipe=Path(arguments[0]), **vars(recipe))
        elif "-h" not in arguments and "--help" not in arguments:
            raise InputError(f"name a recipe first: hypernoise {command} recipes/scenes-red.yaml [--field value]")
        return tyro.cli(cls, default=default, args=arguments, prog=f"hypernoise {command}")

    def run(self) -> int:
        from hypernoise.commands.common import write_summary
        from hypernoise.commands.training import train_recipe
        from hypernoise.generators.registry import pick_device
        from hypernoise.precision import resolve
        from hypernoise.training.processes import launched, own_device

        try:
            started = train_recipe(self, self.output, self.device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            precision = resolve(self.mixed_precision, pick_device(own_device(self.device)))
            asked = dataclasses.replace(self, mixed_precision=precision.name)
            raise InputError(_too_little(asked)) from error
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
            if draw_readings(seen, self.output / "watched.png"):
                print(f"trained against watched: {self.output / 'watched.png'}")
        print(f"adapter: {self.output / 'adapter'}")
        return 0


def _too_little(recipe: Recipe) -> str:
    from hypernoise.planning.rows import planned_peak

    counted = recipe.noise_network == "lora"
    planned = f": this recipe is planned at {planned_peak(recipe) / 1e9:.1f} GB" if counted else ""
    return (
        f"out of memory{planned}; raise accumulation, or set checkpointing: true, decode_slice: 1, "
        "text_encoders: offload (hypernoise plan says what each saves)"
    )


def table(seen: Sequence[Reading]) -> str:
    """Trained against watched reward over training, each line the mean of a stretch of readings."""
    told = [f"{'step':>14}{'trained reward':>18}{'watched reward':>18}"]
    for part in in_stretches(seen):
        steps = f"{part.first}-{part.last}" if part.last > part.first else str(part.first)
        told.append(f"{steps:>14}{part.reward:>18.4f}{part.watched_reward:>18.4f}")
    return "\n".join(told)


def _last_watched(seen: Sequence[Reading], last: int = 5) -> dict[str, float | None]:
    part = [reading.watched_reward for reading in seen[-last:]]
    return {"watched_reward": sum(part) / len(part) if part else None}


def _last_means(metrics: Path, rows: int = 20) -> dict[str, float | None]:
    """Means over the last rows of metrics.jsonl, which holds the whole run however often it was resumed."""
    last = rows_of(metrics.parent)[-rows:]
    return {name: mean_of(last, name) for name in ("reward", "kl")}
