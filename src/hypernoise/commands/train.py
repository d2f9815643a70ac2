"""`hypernoise train [RECIPE]`: a training run on any registered generator, or its plan with --dry-run."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hypernoise.errors import InputError
from hypernoise.settings import launched
from hypernoise.training.config import Recipe
from hypernoise.training.metrics import mean_of, rows_of

if TYPE_CHECKING:
    from hypernoise.training.loop import TrainResult

CHARTS = {  # the columns of metrics.jsonl to plot
    "reward": "reward",
    "validation_reward": "validation reward",
    "kl": "½‖f‖², nats",
    "lipschitz": "Lipschitz constant of the residual",
    "kl_gap": "what ½‖f‖² leaves out of the KL, nats",
}


@dataclass(frozen=True)
class Train(Recipe):
    """Train a noise hypernetwork: hypernoise train [RECIPE.yaml] [flags]. Every field of a recipe is also a flag.

    Writes metrics.jsonl, checkpoints, curves.png, the adapter and summary.json to --output-dir. A second run with
    the same --output-dir resumes from the last checkpoint. With --dry-run it prints the plan and stops.
    """

    POSITIONAL: ClassVar = "recipe"
    ESSENTIAL: ClassVar = (
        *("generator", "prompts", "rewards", "kl_weight", "max_train_steps", "train_batch_size", "learning_rate"),
        *("lora.rank", "lora.alpha", "seed", "output_dir", "device", "dry_run", "smoke_test"),
    )

    recipe: Path | None = None
    """A YAML recipe; flags override its fields."""
    output_dir: Path = Path("runs/train")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    dry_run: bool = False
    """Print parameters, peak memory and arithmetic, and stop; downloads nothing."""
    smoke_test: bool = False
    """Train two steps and draw a picture at full size with random weights, and print memory and time; downloads
    nothing."""

    def run(self) -> int:
        if self.dry_run or self.smoke_test:
            folder = self.output_dir / ("plan" if self.dry_run else "smoke-test")
            return plan_recipe(self, folder, self.device, smoke=not self.dry_run)
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.generators.registry import pick_device
        from hypernoise.model_card import check_login, push_to_hub

        if self.push_to_hub:
            check_login(self.hub_model_id)
        trained = train_recipe(self, self.output_dir, self.device)
        if not trained.finished:
            return 128 + trained.signal  # as shells do: 130 after Ctrl-C
        if launched()[0] > 0:
            return 0
        rows = rows_of(self.output_dir)
        result = {
            "method": "hypernoise",
            "inference_steps": self.num_inference_steps,
            **{name: mean_of(rows[-20:], name) for name in ("reward", "kl")},
            "validation_reward": mean_of([row for row in rows if "validation_reward" in row][-5:], "validation_reward"),
        }
        early = trained.stopped_early
        write_summary(self.output_dir, "train", self, pick_device(self.device), [result], stopped_early=early)
        draw_curves(rows, self.output_dir / "curves.png")
        print(f"curves:  {self.output_dir / 'curves.png'}\nadapter: {self.output_dir / 'adapter'}")
        if self.push_to_hub:
            print(f"pushed:  {push_to_hub(self.output_dir / 'adapter', self.hub_model_id, measured=self.output_dir)}")
        return 0


def train_recipe(recipe: Recipe, output_dir: Path, device: str) -> TrainResult:
    """Trains a recipe and writes `output_dir`/adapter.

    Raises:
        InputError: settings that do not fit together, before anything is written; `train`'s errors.
    """
    from hypernoise.adapters import save_adapter
    from hypernoise.files import output_folder
    from hypernoise.generators.registry import load_as, pick_device
    from hypernoise.precision import resolve
    from hypernoise.prompts import read_mix
    from hypernoise.rewards.ensemble import WeightedSum
    from hypernoise.training.loop import train
    from hypernoise.training.processes import leave, say, say_once

    place = pick_device(device)
    if recipe.memory.fit:
        from hypernoise.plan.plan import fitted

        recipe, chosen = fitted(recipe, place)
        say_once(chosen)
    precision = resolve(recipe.mixed_precision, place)
    recipe = dataclasses.replace(recipe, mixed_precision=precision.name)  # "auto" would differ on the CPU that loads it
    settings = recipe.reward_settings()
    reward = WeightedSum(recipe.rewards, settings=settings)
    validation = WeightedSum(recipe.validation_reward, settings=settings) if recipe.validation_reward else None
    prompts = read_mix(recipe.prompts)
    generator = load_as(recipe, device=device)
    for steps in recipe.inference_steps:
        generator.check_steps(steps)
    generator.check_prompts([*prompts, *recipe.validation_prompts])
    output_folder(output_dir)
    say_once(precision.line)
    network = recipe.build_network(generator)
    result = train(generator, network, reward, prompts, recipe, validation_reward=validation, output_dir=output_dir)
    if launched()[0] == 0:
        if result.finished:
            rows = rows_of(output_dir)
            if result.skipped == result.step:
                raise InputError(f"all {result.step} steps were skipped, so nothing was trained; see the lines above")
            say("" if network.never_folds else lipschitz_warning(rows, network.knows_kl))
            training = {"steps": result.step, "rewards": recipe.rewards, "kl_weight": recipe.kl_weight}
            save_adapter(network, output_dir / "adapter", generator=generator, training=training)
        else:
            say(f"stopped at step {result.step}, saved in {result.checkpoint}; the same command resumes from there")
    leave()
    return result


def lipschitz_warning(rows: Sequence[Mapping[str, Any]], knows_kl: bool = False) -> str:
    """A warning if the run's Lipschitz constant reached 1, else empty. A network that `knows_kl` cannot be clamped."""
    seen = [row for row in rows if "lipschitz" in row]
    over = next((row for row in seen if row["lipschitz"] >= 1), None)
    return "" if over is None else (
        f"Lipschitz constant {over['lipschitz']:.3g} at step {over['step']}, {seen[-1]['lipschitz']:.3g} at the end: "
        "at 1 or above, x + f may fold noises onto each other, and "
        f"{'its KL is a lower bound' if knows_kl else 'the theory does not bound the error of the KL'}; train with "
        f"--lipschitz.mode penalty{'' if knows_kl else ' or clamp'}, or measure it with hypernoise diagnose"
    )  # fmt: skip


def plan_recipe(recipe: Recipe, folder: Path, device: str, *, smoke: bool = False) -> int:
    """Prints a recipe's plan, or runs it with random weights (`plan.smoke`), and writes `folder`/summary.json."""
    from hypernoise.evaluation.summary import write_summary
    from hypernoise.files import output_folder
    from hypernoise.generators.registry import pick_device
    from hypernoise.plan.models import META
    from hypernoise.plan.plan import fitted, plan, table

    gc.freeze()  # over thousands of imported modules, collection takes a quarter of a plan's time
    output_folder(folder)
    place = pick_device(device) if smoke or recipe.memory.fit == "auto" else META
    recipe, chosen = fitted(recipe, place)
    found = plan(recipe, place)
    print(chosen, end="\n" if chosen else "")
    if smoke:
        from hypernoise.plan.smoke import smoke_test

        row = smoke_test(recipe, place, found.peak)
    else:
        print(table(found))
        row = {name: getattr(found, name) for name in ("peak", "parts", "flops", "frozen", "trained", "rewards")}
    write_summary(folder, f"train --{'smoke-test' if smoke else 'dry-run'}", recipe, place, [row])
    return 0


def draw_curves(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plots a run's rewards, KL and Lipschitz constant over its steps, as far as measured."""
    from hypernoise.evaluation.charts import Line, line_chart, page

    charts = []
    for name, title in CHARTS.items():
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            one = [Line("1", [(points[0][0], 1.0), (points[-1][0], 1.0)])] if name == "lipschitz" else []
            charts.append(line_chart([Line(title, points), *one], title=title, across="step"))
    page("", charts).save(file)
