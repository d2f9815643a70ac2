"""Shared by the experiments: a recipe, reusable training runs, the final comparison, and its table.

Everything is kept under --output-dir: a folder per training run with its checkpoints and adapters, and the
comparison's pictures. The same command resumes from there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import hypernoise as hn
from hypernoise.commands.flags import parse
from hypernoise.evaluation.benchmarks import Benchmark, first_of_each, load_benchmark
from hypernoise.evaluation.result_rows import result_row
from hypernoise.evaluation.summary import write_summary
from hypernoise.files import output_folder, write_json
from hypernoise.generators.registry import load_as, pick_device
from hypernoise.methods.base import Method
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.settings import Count
from hypernoise.training.config import recognised
from hypernoise.training.metrics import rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {"hypernoise": (hn.LoRANoise, hn.train), "finetune": (hn.LoRATune, hn.finetune)}

# heading: field and format; columns without any value are omitted
COLUMNS = {
    "steps": ("inference_steps", "d"),
    "pictures": ("pictures", ",d"),
    "updates": ("updates", "d"),
    "runs": ("training_runs", "d"),
    "training s": ("training_seconds", ".0f"),
    "judge": ("score", ".3f"),
    "gain [95 %]": ("gain", "+.3f"),
    "reward": ("reward", ".3f"),
    "in reward [95 %]": ("reward_gain", "+.3f"),
    "validation": ("validation_reward", ".3f"),
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
    """Flags of every experiment. The recipe defines the training; the held-out captions of the scenes world are
    drawn and judged."""

    recipe: Path = RECIPES / "scenes.yaml"
    """The training recipe. The experiment sets its length and seeds; the learning rate decays to 0
    within each run's length."""
    judged: Count = 50
    """Held-out captions per category; 50 are the benchmark."""
    noises: Count = 4
    """Pictures per caption."""
    output_dir: Path = Path("runs/experiment")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def run(self) -> int:
        raise NotImplementedError

    def bench(self, validation_rewards: Mapping[str, float] | None = None) -> Bench:
        """Loads everything named; `validation_rewards` are reported but not trained on.

        Raises:
            InputError: something that does not exist or does not fit.
        """
        recipe = hn.read_recipe(self.recipe)
        precision = resolve(recipe.mixed_precision, pick_device(self.device))
        recipe = dataclasses.replace(recipe, mixed_precision=precision.name)
        generator = load_as(recipe, device=self.device)
        asked = load_benchmark("scenes", self.judged)
        generator.check_prompts(asked.prompts)
        output_folder(self.output_dir)
        beside = hn.WeightedSum(validation_rewards) if validation_rewards else None
        return Bench(self, recipe, generator, hn.WeightedSum(recipe.rewards), beside, asked)


@dataclass(frozen=True)
class Seeded(Experiment):
    """An experiment on several training runs of each kind."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise hn.InputError(f"--seeds takes different numbers, such as 0 1 2, not {list(self.seeds)}")


@dataclass(frozen=True)
class Bench:
    """The loaded objects that an experiment works with."""

    settings: Experiment
    recipe: hn.Recipe
    generator: hn.DiffusionGenerator
    reward: hn.WeightedSum
    validation_reward: hn.WeightedSum | None
    asked: Benchmark  # held-out captions, with their judge

    def updates(self, pictures: int) -> int:
        """The updates in which the recipe's batches see so many pictures; 0: the recipe's own number."""
        batch = self.recipe.train_batch_size
        if pictures and pictures < batch:
            raise hn.InputError(f"--pictures must be at least a batch of the recipe, {batch}, not {pictures}")
        return pictures // batch or self.recipe.max_train_steps

    def config(self, updates: int, seed: int, **changes: Any) -> hn.TrainConfig:
        """The recipe's settings for so many updates, with warm-up in at most a tenth and decay to 0."""
        own = {f.name: getattr(self.recipe, f.name) for f in dataclasses.fields(hn.TrainConfig)}
        warmup = min(self.recipe.lr_warmup_steps, updates // 10)
        length = {"max_train_steps": updates, "lr_warmup_steps": warmup, "lr_scheduler": "cosine", "patience": 0}
        return hn.TrainConfig(**{**own, **length, "seed": seed, **changes})

    def trained(
        self,
        run: str,
        config: hn.TrainConfig,
        *,
        kind: str = "hypernoise",
        at: Sequence[int] = (),
        rank: int | None = None,
        start: float = 0.0,
        nearby: float = 0.0,
        spectral: Spectral | None = None,
    ) -> dict[int, Path]:
        """The adapter directories of a training run after each number of updates in `at` (or at its end).

        Trains if missing: the recipe's LoRA, with B = 0 initially. A run with looks `at` several points must not
        decay: its learning rate would differ at each look.

        Args:
            kind: hypernoise or finetune.
            rank: instead of the recipe's, with alpha / rank as there.
            start: standard deviation of B's initial entries.
            nearby: distance of the noises whose rewards it is trained on from the improved one.
            spectral: settings of a spectral noise network, trained instead of the LoRA.

        Raises:
            InputError: the existing run had other settings.
            KeyboardInterrupt: the run was stopped; its checkpoint is saved.
        """
        folder, recipe = self.folder(run), self.recipe
        lora = lora_of(recipe, rank)
        known = {**recognised(config), "kind": kind, **lora, "start": start, "rewards": recipe.rewards}
        known |= {"spectral": vars(spectral)} if spectral else {}
        known |= {"nearby": nearby} if nearby else {}
        known |= {"prompts": recipe.prompts, "generator": self.generator.describe()}
        same_run(folder, known | ({"max_train_steps": None} if at else {}))
        points = {point: folder / f"adapter-{point:06d}" for point in sorted(at or [config.max_train_steps])}
        missing = [point for point, place in points.items() if not (place / "hypernoise.json").exists()]
        if not missing:
            return points
        make, climb = KINDS[kind]
        reward = hn.WeightedSum(recipe.rewards, settings=recipe.reward_settings())
        network: Any = (
            spectral_noise(self.generator, spectral, seed=config.seed)
            if spectral
            else make(self.generator, seed=config.seed, **lora)
        )
        start_off_zero(network, start, config.seed)
        generator = drawing_nearby(self.generator, nearby) if nearby else self.generator
        for point in missing:
            print(f"training {run} to {point} updates", file=sys.stderr)
            reached = dataclasses.replace(config, max_train_steps=point)
            result = climb(generator, network, reward, read_mix(recipe.prompts), reached, output_dir=folder)
            if result.signal:
                raise KeyboardInterrupt
            training = {"steps": point, "rewards": recipe.rewards}
            hn.save_adapter(network, points[point], generator=self.generator, training=training)
        return points

    def folder(self, run: str) -> Path:
        return self.settings.output_dir / "training" / run

    def seconds(self, run: str) -> float:
        """Seconds that a training run took, over all its calls."""
        return sum(row["seconds"] for row in rows_of(self.folder(run)))

    def compare(
        self, methods: Sequence[Method], *, steps: Sequence[int] = (1,), asked: Benchmark | None = None
    ) -> hn.Comparison:
        """Compares the methods on the held-out captions, judged."""
        asked = asked or self.asked
        assert asked.load_judge is not None
        total = len(methods) * len(steps) * len(asked.prompts) * self.settings.noises
        with tqdm(total=total, desc="judging", unit="picture") as bar:
            return hn.compare(
                self.generator,
                methods,
                asked.prompts,
                self.reward,
                num_inference_steps=steps,
                num_images_per_prompt=self.settings.noises,
                batch_size=32,
                validation_reward=self.validation_reward,
                judge=asked.load_judge(self.generator.device),
                categories=asked.categories,
                output=self.settings.output_dir,
                progress=bar.update,
            )

    def finish(
        self, rows: Sequence[dict[str, Any]], verdict: Sequence[str], *, notes: Sequence[str] = (), **more: Any
    ) -> int:
        """Writes summary.json with the rows and `more` entries; prints the table, the `notes`
        and the verdict."""
        settings = self.settings
        about = {"prompts": self.asked.about, **more, "verdict": list(verdict)}
        name = f"experiments.{name_of(type(settings))}"
        write_summary(settings.output_dir, name, settings, self.generator.device, rows, **about)
        print("\n\n".join([table(rows), *notes, "\n".join(f"verdict: {line}" for line in verdict)]))
        return 0


def main(experiment: type[Any], arguments: list[str] | None = None) -> int:
    """Runs an experiment, a dataclass of `output_dir` and others with `run`.
    Exit codes: 0 done; 2 wrong input, with a one-line message; 130 interrupted, checkpoint saved."""
    name = name_of(experiment)
    try:
        asked = parse(experiment, arguments, prog=f"python -m experiments.{name}", output_dir=Path("runs") / name)
        return asked.run()
    except hn.InputError as error:
        print(f"experiments.{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"experiments.{name}: interrupted; the same command resumes", file=sys.stderr)
        return 130


def name_of(experiment: type[Any]) -> str:
    return experiment.__name__.lower()


def first_of(asked: Benchmark, number: int) -> Benchmark:
    """The first `number` captions of each category; all of them if it is 0 or too large."""
    assert asked.categories is not None
    chosen = first_of_each(asked.categories, number) if number else range(len(asked.prompts))
    if len(chosen) == len(asked.prompts):
        return asked
    about = {**asked.about, "count": len(chosen), "first_of_each_category": number}
    prompts, categories = ([values[i] for i in chosen] for values in (asked.prompts, asked.categories))
    return dataclasses.replace(asked, prompts=prompts, categories=categories, about=about)


def lora_of(recipe: hn.Recipe, rank: int | None = None) -> dict[str, Any]:
    """Creates the recipe's LoRA, at its own rank or another with the same alpha / rank."""
    own, rank = recipe.lora, rank or recipe.lora.rank
    alpha = own.alpha * rank / own.rank
    return {"rank": rank, "alpha": alpha, "layers": own.layers or None}


def same_run(folder: Path, known: dict[str, Any]) -> None:
    """Writes a training run's settings to run.json; raises InputError if it has others."""
    file = output_folder(folder) / "run.json"
    if not file.exists():
        write_json(file, known)
    noted, known = json.loads(file.read_text()), json.loads(json.dumps(known))  # both as JSON values
    changed = [name for name, value in known.items() if noted.get(name) != value]
    if changed:
        name = changed[0]
        raise hn.InputError(
            f"{folder} was trained with {name} = {noted.get(name)!r}, not {known[name]!r}; give another --output-dir"
        )


def start_off_zero(network: Any, deviation: float, seed: int) -> None:
    """Draws all entries of B from N(0, deviation²), so that f does not start at 0; nothing at deviation 0."""
    if not deviation:
        return
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.trainable_state().items():
            if name.endswith("lora_B.weight"):
                tensor.copy_(deviation * torch.randn(tensor.shape, generator=draw))


def drawing_nearby(generator: hn.DiffusionGenerator, distance: float) -> Any:
    """The generator, drawing from (noise + s·e) / √(1 + s²) with e ~ N(0, I) of the samples' seeds.

    One draw per sample: the mean gradient is that of the reward smoothed over nearby noises.
    """

    def sample(noise: Tensor, condition: Any, *, num_inference_steps: int = 1, seed: Any = None) -> Tensor:
        draws = [torch.randn(noise.shape[1:], generator=torch.Generator().manual_seed(one)) for one in seed]
        moved = (noise + distance * torch.stack(draws).to(noise)) / math.sqrt(1 + distance**2)
        return generator.sample(moved, condition, num_inference_steps=num_inference_steps, seed=seed)

    smoothed = copy.copy(generator)
    smoothed.sample = sample
    return smoothed


def pooled(
    found: hn.Comparison, method: str, steps: int, names: Sequence[str], categories: Sequence[str] | None
) -> dict[str, Any]:
    """The runs called `names` as one row called `method`."""
    runs = [found.records[steps, name] for name in names]
    row = result_row(method, steps, runs, found.records[steps, "plain"], np.array(categories))
    return {**row, "training_runs": len(names)}


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]] = COLUMNS) -> str:
    """The rows in markdown. Calls and seconds are per image; gains are over plain, with paired intervals over
    prompts and, with several training runs, over runs."""
    shown = {
        heading: column
        for heading, column in columns.items()
        if any(row.get(column[0]) is not None for row in rows)
        and (heading != "steps" or len({row[column[0]] for row in rows}) > 1)
    }
    return markdown(
        ["", *shown],
        [[row["method"], *(cell(row, heading, *column) for heading, column in shown.items())] for row in rows],
    )


def cell(row: Mapping[str, Any], heading: str, field: str, spec: str) -> str:
    """A value, with its interval if the heading says so."""
    value, between = row.get(field), row.get(f"{field}_ci95") if heading.endswith("[95 %]") else None
    if value is None:
        return ""
    return f"{value:{spec}}" + (f" [{between[0]:{spec}}, {between[1]:{spec}}]" if between else "")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows))
