"""`hypernoise train [RECIPE]`: a training run on any registered generator, or its plan with --dry-run."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hypernoise.errors import no_traceback
from hypernoise.training.config import Recipe
from hypernoise.training.early_stopping import readings
from hypernoise.training.metrics import mean_of, rows_of

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
        if self.dry_run:
            gc.disable()  # over thousands of imported modules, collection takes a quarter of a plan's time
            atexit.register(gc.freeze)
            try:
                return print_plan(self, self.output_dir / "plan", self.device)
            finally:
                gc.enable()
        if self.smoke_test:
            return run_smoke_test(self, self.output_dir / "smoke-test", self.device)
        from hypernoise.commands.training import train_recipe
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.generators.registry import pick_device
        from hypernoise.model_card import check_login, push_to_hub
        from hypernoise.training.processes import launched

        if self.push_to_hub:
            check_login(self.hub_model_id)
        trained = train_recipe(self, self.output_dir, self.device)
        if not trained.finished:
            return 128 + trained.signal  # as shells do: 130 after Ctrl-C
        if launched()[0] > 0:
            return 0
        rows = rows_of(self.output_dir)
        seen = readings(rows)
        validation = sum(reading.validation_reward for reading in seen[-5:]) / len(seen[-5:]) if seen else None
        result = {
            "method": "hypernoise",
            "inference_steps": self.num_inference_steps,
            **{name: mean_of(rows[-20:], name) for name in ("reward", "kl")},
            "validation_reward": validation,
        }
        more = {"stopped_early": trained.stopped_early, "validation": [reading._asdict() for reading in seen]}
        write_summary(self.output_dir, "train", self, pick_device(self.device), [result], **more)
        draw_curves(rows, self.output_dir / "curves.png")
        print(f"curves:  {self.output_dir / 'curves.png'}\nadapter: {self.output_dir / 'adapter'}")
        if self.push_to_hub:
            print(f"pushed:  {push_to_hub(self.output_dir / 'adapter', self.hub_model_id, measured=self.output_dir)}")
        return 0


def print_plan(recipe: Recipe, folder: Path, device: str) -> int:
    """Prints a recipe's plan and writes it to `folder`/summary.json; see `plan.plan`."""
    from hypernoise.evaluation.summary import write_summary
    from hypernoise.files import output_folder
    from hypernoise.plan.models import META
    from hypernoise.plan.plan import fitted, plan, table

    output_folder(folder)
    with no_traceback(f"generator {recipe.generator!r} cannot be planned"):
        recipe, chosen = fitted(recipe, device, planned_for=META)
        found = plan(recipe)
    print(*([chosen] if chosen else []), table(found), sep="\n")
    rows = [{"peak_bytes": found.peak, "bytes": found.parts, "kept_bytes": found.kept, "flops": found.flops}]
    parameters = {"frozen": found.frozen, "trained": found.trained, "rewards": found.rewards}
    more = {"parameters": parameters, "overhead": found.overhead, "revision": found.revision}
    write_summary(folder, "train --dry-run", recipe, "meta", rows, **more)
    return 0


def run_smoke_test(recipe: Recipe, folder: Path, device: str) -> int:
    """Runs a recipe with random weights and writes `folder`/summary.json; see `plan.smoke`."""
    from hypernoise.evaluation.summary import write_summary
    from hypernoise.files import output_folder
    from hypernoise.generators.registry import pick_device
    from hypernoise.plan.plan import fitted
    from hypernoise.plan.smoke import smoke_test

    output_folder(folder)
    recipe, chosen = fitted(recipe, device)
    print(chosen, end="\n" if chosen else "")
    row = smoke_test(recipe, device)
    write_summary(folder, "train --smoke-test", recipe, pick_device(device), [row])
    return 0


def draw_curves(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plots a run's rewards, KL and Lipschitz constant over its steps, as far as measured."""
    from hypernoise.evaluation.charts import Line, line_chart, page

    charts = []
    for name, title in CHARTS.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            one = [Line("1", [(points[0][0], 1.0), (points[-1][0], 1.0)])] if name == "lipschitz" else []
            charts.append(line_chart([Line(title, points), *one], title=title, across="step", with_zero=False))
    page("", charts).save(file)
