"""`hypernoise train RECIPE`: a training run on any registered generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from hypernoise.errors import InputError, out_of_memory
from hypernoise.training.config import Recipe, read_recipe
from hypernoise.training.early_stopping import readings, table
from hypernoise.training.metrics import mean_of, rows_of

CHARTS = {  # the columns of metrics.jsonl that are drawn
    "reward": "reward",
    "watched_reward": "watched reward",
    "kl": "½‖f‖², nats",
    "lipschitz": "Lipschitz constant of the residual",
    "kl_gap": "what ½‖f‖² leaves out of the KL, nats",
}


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
        rows = rows_of(self.output)
        seen = readings(rows, started.result.step)
        means = {name: mean_of(rows[-20:], name) for name in ("reward", "kl")}
        watched = sum(reading.watched_reward for reading in seen[-5:]) / len(seen[-5:]) if seen else None
        results = [{"method": "hypernoise", "steps": self.generator_steps, **means, "watched_reward": watched}]
        more = {"stopped_early": started.result.stopped_early, "watched": [vars(reading) for reading in seen]}
        write_summary(self.output, "train", self, started.generator.device, results, **more)
        if seen:
            print(table(seen))
        draw_curves(rows, self.output / "curves.png")
        print(f"curves:  {self.output / 'curves.png'}")
        print(f"adapter: {self.output / 'adapter'}")
        return 0


def _too_little(recipe: Recipe) -> str:
    from hypernoise.planning.rows import planned_peak

    return (
        f"out of memory: this recipe is planned at {planned_peak(recipe) / 1e9:.1f} GB; raise "
        "accumulation, or set checkpointing: true, decode_slice: 1, text_encoders: offload "
        "(hypernoise plan says what each saves)"
    )


def draw_curves(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Charts the run: the reward, the watched reward and the KL, and the Lipschitz constant against 1 if measured."""
    from hypernoise.evaluation.charts import Line, line_chart, page

    charts = []
    for name, title in CHARTS.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            one = [Line("1", [(points[0][0], 1.0), (points[-1][0], 1.0)])] if name == "lipschitz" else []
            charts.append(line_chart([Line(title, points), *one], title=title, across="step", with_zero=False))
    page("", charts).save(file)
