"""What the experiments share: a recipe, training runs that are found again, the comparison they end in, and its table.

Everything is kept under --output-dir: a folder per training run with its checkpoints and adapters, and the
comparison's pictures. The same command goes on from what is there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from hypernoise.adapters import describe_base, save_adapter
from hypernoise.commands.common import write_summary
from hypernoise.commands.compare import Asked, scenes_prompts
from hypernoise.commands.training import reward_settings
from hypernoise.errors import InputError, at_least_one
from hypernoise.evaluation.engine import Comparison, compare
from hypernoise.evaluation.page import first_of_each
from hypernoise.evaluation.result_rows import pooled_row
from hypernoise.files import output_folder, write_json
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_as, pick_device
from hypernoise.methods.base import Method
from hypernoise.methods.finetune import LoRATune, finetune
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe, TrainConfig, read_recipe, recognised
from hypernoise.training.metrics import rows_of
from hypernoise.training.trainer import train

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {"hypernoise": (LoRANoise, train), "finetune": (LoRATune, finetune)}

# heading: the field, and how it is written; a column no row has anything in is left out
COLUMNS = {
    "steps": ("steps", "d"),
    "pictures": ("pictures", ",d"),
    "updates": ("updates", "d"),
    "runs": ("training_runs", "d"),
    "training s": ("training_seconds", ".0f"),
    "judge": ("score", ".3f"),
    "gain [95 %]": ("gain", "+.3f"),
    "reward": ("reward", ".3f"),
    "in reward [95 %]": ("reward_gain", "+.3f"),
    "watched": ("watched_reward", ".3f"),
    "KL": ("kl", ".2f"),
    "artefacts": ("artefacts", ".3f"),
    "diversity": ("diversity", ".3f"),
    "denoiser": ("denoiser_forwards", "g"),
    "backwards": ("denoiser_backwards", "g"),
    "decoder": ("decodes", "g"),
    "reward calls": ("reward_calls", "g"),
    "s/image": ("seconds_per_image", ".2g"),
}


@dataclass(frozen=True)
class Experiment:
    """Flags of every experiment. The recipe says what is trained and how; the held-out captions of the scenes world are
    drawn and judged."""

    recipe: Path = RECIPES / "scenes.yaml"
    """What is trained, and how. How long, and with which seeds, the experiment says; the learning rate falls to 0
    within each run's own length."""
    judged: int = 50
    """Held-out captions per category; 50 are the benchmark."""
    noises: int = 4
    """Pictures per caption."""
    output_dir: Path = Path("runs/experiment")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def run(self) -> int:
        raise NotImplementedError

    def bench(self, watched: Mapping[str, float] | None = None) -> Bench:
        """Loads all that is named; `watched` are rewards that nothing is trained for, reported beside.

        Raises:
            InputError: for what cannot be.
        """
        at_least_one(self, "judged", "noises", flags=True)
        recipe = read_recipe(self.recipe)
        precision = resolve(recipe.mixed_precision, pick_device(self.device))
        recipe = dataclasses.replace(recipe, mixed_precision=precision.name)
        generator = load_as(recipe, device=self.device)
        asked = scenes_prompts(self.judged)
        generator.check_prompts(asked.prompts)
        output_folder(self.output_dir)
        beside = WeightedSum(watched) if watched else None
        return Bench(self, recipe, generator, WeightedSum(recipe.rewards), beside, asked)


@dataclass(frozen=True)
class Seeded(Experiment):
    """An experiment on several training runs of each kind."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds takes different numbers, such as 0 1 2, not {list(self.seeds)}")


@dataclass(frozen=True)
class Bench:
    """What an experiment works with, loaded once."""

    settings: Experiment
    recipe: Recipe
    generator: DiffusionGenerator
    reward: WeightedSum
    watched: WeightedSum | None
    asked: Asked  # held out, with their judge

    def updates(self, pictures: int) -> int:
        """The updates in which the recipe's batches see so many pictures; 0: those of the recipe's own run."""
        batch = self.recipe.batch_size
        if pictures and pictures < batch:
            raise InputError(f"--pictures must be at least a batch of the recipe, {batch}, not {pictures}")
        return pictures // batch or self.recipe.steps

    def config(self, updates: int, seed: int, **changes: Any) -> TrainConfig:
        """The recipe's loop for so many updates; it warms up in at most a tenth of them, and decays to 0 by the end."""
        own = {f.name: getattr(self.recipe, f.name) for f in dataclasses.fields(TrainConfig)}
        length = {"steps": updates, "warmup": min(self.recipe.warmup, updates // 10), "decay": True, "patience": 0}
        return TrainConfig(**{**own, **length, "seed": seed, **changes})

    def trained(
        self,
        run: str,
        config: TrainConfig,
        *,
        kind: str = "hypernoise",
        at: Sequence[int] = (),
        rank: int | None = None,
        start: float = 0.0,
        spectral: Spectral | None = None,
    ) -> dict[int, Path]:
        """The adapter directories of a training run after each number of updates in `at` (or at its end).

        Trains what is not there: the recipe's LoRA, B = 0 at the start. A run that is looked `at` on its way must not
        decay: its learning rate would be another at each look.

        Args:
            kind: hypernoise or finetune.
            rank: instead of the recipe's, with alpha / rank as there.
            start: the deviation of B's first entries.
            spectral: settings of a spectral noise network, trained instead of the LoRA.

        Raises:
            InputError: the run that is there had other settings.
            KeyboardInterrupt: the run was stopped; its checkpoint is saved.
        """
        folder, recipe = self.folder(run), self.recipe
        lora = lora_of(recipe, rank) | ({"frequencies": 0} if kind == "finetune" else {})
        known = {**recognised(config), "kind": kind, **lora, "start": start, "rewards": recipe.rewards}
        known |= {"spectral": vars(spectral)} if spectral else {}
        known |= {"prompts": recipe.prompts, "generator": describe_base(self.generator)}
        same_run(folder, known | ({"steps": None} if at else {}))
        points = {point: folder / f"adapter-{point:06d}" for point in sorted(at or [config.steps])}
        missing = [point for point, place in points.items() if not (place / "hypernoise.json").exists()]
        if not missing:
            return points
        make, climb = KINDS[kind]
        reward = WeightedSum(recipe.rewards, settings=reward_settings(recipe), normalise=recipe.normalise_rewards)
        network: Any = (
            spectral_noise(self.generator, spectral, seed=config.seed)
            if spectral
            else make(self.generator, seed=config.seed, **lora)
        )
        start_off_zero(network, start, config.seed)
        for point in missing:
            print(f"training {run} to {point} updates", file=sys.stderr)
            reached = dataclasses.replace(config, steps=point)
            result = climb(self.generator, network, reward, read_mix(recipe.prompts), reached, output=folder)
            if not result.finished:
                raise KeyboardInterrupt
            training = {"steps": point, "rewards": recipe.rewards}
            save_adapter(network, points[point], generator=self.generator, training=training)
        if isinstance(network, LoRANoise):
            network.remove()
        return points

    def folder(self, run: str) -> Path:
        return self.settings.output_dir / "training" / run

    def seconds(self, run: str) -> float:
        """That a training run took, over all the calls that it was made in."""
        return sum(row["seconds"] for row in rows_of(self.folder(run)))

    def compare(
        self, methods: Sequence[Method], *, steps: Sequence[int] = (1,), asked: Asked | None = None
    ) -> Comparison:
        """The methods on the held-out captions, judged."""
        asked = asked or self.asked
        total = len(methods) * len(steps) * len(asked.prompts) * self.settings.noises
        with tqdm(total=total, desc="judging", unit="picture") as bar:
            return compare(
                self.generator,
                methods,
                asked.prompts,
                self.reward,
                steps=steps,
                noises=self.settings.noises,
                batch_size=32,
                watched=self.watched,
                judge=asked.judge,
                categories=asked.categories,
                output=self.settings.output_dir,
                progress=bar.update,
            )

    def finish(
        self, rows: Sequence[dict[str, Any]], verdict: Sequence[str], *, said: Sequence[str] = (), **more: Any
    ) -> int:
        """Writes summary.json with the rows, and what `more` there is to keep; prints the table, what else is `said`,
        and the verdict."""
        settings = self.settings
        about = {"prompts": self.asked.about, **more, "verdict": list(verdict)}
        name = f"experiments.{name_of(type(settings))}"
        write_summary(settings.output_dir, name, settings, self.generator.device, rows, **about)
        print("\n\n".join([table(rows), *said, "\n".join(f"verdict: {line}" for line in verdict)]))
        return 0


def main(experiment: type[Experiment], arguments: list[str] | None = None) -> int:
    """Runs an experiment. Exit codes: 0 done; 2 wrong input, said in one line; 130 interrupted, checkpoint saved."""
    name = name_of(experiment)
    default = experiment(output_dir=Path("runs") / name)
    try:
        return tyro.cli(experiment, default=default, args=arguments, prog=f"python -m experiments.{name}").run()
    except InputError as error:
        print(f"experiments.{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"experiments.{name}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def name_of(experiment: type[Experiment]) -> str:
    return experiment.__name__.lower()


def first_of(asked: Asked, number: int) -> Asked:
    """The first `number` captions of each category; all of them if it is 0, or more than there are."""
    assert asked.categories is not None
    chosen = first_of_each(asked.categories, number) if number else range(len(asked.prompts))
    if len(chosen) == len(asked.prompts):
        return asked
    about = {**asked.about, "count": len(chosen), "first_of_each_category": number}
    prompts, categories = ([values[i] for i in chosen] for values in (asked.prompts, asked.categories))
    return Asked(prompts, categories, asked.judge, about)


def lora_of(recipe: Recipe, rank: int | None = None) -> dict[str, Any]:
    """What makes the recipe's LoRA, at its own rank or another with the same alpha / rank."""
    rank = rank or recipe.rank
    alpha = recipe.alpha * rank / recipe.rank
    return {"rank": rank, "alpha": alpha, "layers": recipe.layers or None, "frequencies": recipe.frequencies}


def same_run(folder: Path, known: dict[str, Any]) -> None:
    """Notes a training run's settings in run.json; raises InputError if others are noted there."""
    file = output_folder(folder) / "run.json"
    if not file.exists():
        write_json(file, known)
    noted, known = json.loads(file.read_text()), json.loads(json.dumps(known))  # both as JSON has them
    changed = [name for name, value in known.items() if noted.get(name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder} was trained with {name} = {noted.get(name)!r}, not {known[name]!r}; give another --output-dir"
        )


def start_off_zero(network: Any, deviation: float, seed: int) -> None:
    """Gives every B entries from N(0, deviation²), so that f does not start at 0; nothing at deviation 0."""
    if not deviation:
        return
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.trainable_state().items():
            if name.endswith("lora_B.weight"):
                tensor.copy_(deviation * torch.randn(tensor.shape, generator=draw))


def pooled(
    found: Comparison, method: str, steps: int, names: Sequence[str], categories: Sequence[str] | None
) -> dict[str, Any]:
    """The runs called `names` as one row called `method`."""
    runs = [found.records[steps, name] for name in names]
    row = pooled_row(method, steps, runs, found.records[steps, "plain"], np.array(categories))
    return {**row, "training_runs": len(names)}


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]] = COLUMNS) -> str:
    """The rows in markdown. Calls and seconds are per image; gains are over plain, their intervals paired over
    prompts and, of several training runs, over the runs too."""
    shown = {
        heading: column
        for heading, column in columns.items()
        if any(row.get(column[0]) is not None for row in rows)
        and (heading != "steps" or len({row["steps"] for row in rows}) > 1)
    }
    lines = [["", *shown], ["---"] * (1 + len(shown))]
    lines += [[row["method"], *(cell(row, *column) for column in shown.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Mapping[str, Any], field: str, spec: str) -> str:
    """A value, with its interval if it is a gain or a share."""
    value, between = row.get(field), None if field == "score" else row.get(f"{field}_ci95")
    if value is None:
        return ""
    return f"{value:{spec}}" + (f" [{between[0]:{spec}}, {between[1]:{spec}}]" if between else "")
