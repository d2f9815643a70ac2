"""What the experiments share: their flags, training runs that are found again, and the comparison they end in.

Everything is kept under --output: a folder per training run with its checkpoints and adapters, and the
comparison's pictures. The same command goes on from what is there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import tyro

from hypernoise.errors import InputError, at_least_one
from hypernoise.precision import MixedPrecision
from hypernoise.training.config import TrainConfig, Weights, recognised

if TYPE_CHECKING:
    from hypernoise.evaluation.compare import Comparison
    from hypernoise.methods.base import Method


@dataclass(frozen=True)
class Experiment:
    """Flags of every experiment; the training settings are those of recipes/scenes.yaml.

    The generator draws the scenes world, and the judge's held-out captions are asked.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; results are over all of them."""
    train_steps: int = 1
    """Updates of each training run, after its warm start."""
    batch_size: int = 64
    lr: float = 1e-5
    kl_weight: float = 0.15
    sample_clip: float = 5.0
    rank: int = 32
    alpha: float = 64.0
    frequencies: int = 2
    """Of the residual, kept each way; 0: all."""
    warm_rounds: int = 1
    """Of the noise networks' warm start, before the first update (docs/training.md); 0: none."""
    warm_samples: int = 12288
    warm_step: float = 3.0
    rewards: Weights = field(default_factory=lambda: {"scenes": 1.0})
    """What is trained for and searched by."""
    watched: Weights = field(default_factory=dict)
    """Rewards that nothing is trained for, reported beside."""
    judged: int = 50
    """Held-out captions per category; 50 are the benchmark."""
    noises: int = 4
    """Pictures per caption."""
    generator: str = "scenes"
    """A registered name or a pipeline directory that draws the scenes world."""
    output: Path = Path("runs/experiment")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights and of autocast; what trains is always fp32. auto: bf16 where the device has units for it,
    else no, which is fp32."""

    name: ClassVar[str]

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        default = cls(output=Path("runs") / f"experiment-{cls.name}")
        return tyro.cli(cls, default=default, args=arguments, prog=f"hypernoise experiment {cls.name}")

    def bench(self) -> Bench:
        """Loads all that is named. Raises InputError for what cannot be."""
        at_least_one(self, "judged", "noises", "rank", flags=True)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds takes different numbers, such as 0 1 2, not {list(self.seeds)}")
        self.config(self.seeds[0])
        from hypernoise.commands.compare import scenes_prompts
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import load_generator, pick_device
        from hypernoise.precision import resolve
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.training.processes import say_once
        from hypernoise.training.prompts import read_prompts

        reward = WeightedSum(self.rewards)
        watched = WeightedSum(self.watched) if self.watched else None
        precision = resolve(self.mixed_precision, pick_device(self.device))
        generator = load_generator(self.generator, device=self.device, dtype=precision.dtype)
        output_folder(self.output)
        say_once(precision.line)
        own = dataclasses.replace(self, mixed_precision=precision.name)  # by which its runs are found again
        return Bench(own, generator, reward, watched, read_prompts("scenes"), scenes_prompts(self.judged))

    def config(self, seed: int, **changes: Any) -> TrainConfig:
        """Without decay, so that a run can be looked at on its way and go on."""
        names = ("batch_size", "lr", "kl_weight", "sample_clip", "mixed_precision")
        own = {name: getattr(self, name) for name in names}
        return TrainConfig(**{**own, "steps": self.train_steps, "seed": seed, **changes})


@dataclass(frozen=True)
class RednessTrained(Experiment):
    """Flags of the experiments that train for redness, which Adam climbs without a warm start."""

    train_steps: int = 200
    batch_size: int = 16
    lr: float = 2e-4
    kl_weight: float = 1.0
    sample_clip: float = 0.0
    frequencies: int = 0
    warm_rounds: int = 0
    rewards: Weights = field(default_factory=lambda: {"redness": 250.0})


@dataclass(frozen=True)
class Bench:
    """What an experiment works with, loaded once."""

    settings: Experiment
    generator: Any
    reward: Any
    watched: Any
    prompts: list[str]  # trained on
    asked: Any  # held out, with their judge

    def adapters(
        self,
        run: str,
        config: TrainConfig,
        *,
        kind: str = "hypernoise",
        at: Sequence[int] = (),
        rank: int | None = None,
        start: float = 0.0,
    ) -> dict[int, Path]:
        """The adapter directories of a training run after each number of updates in `at` (or at its end).

        Trains what is not there. `kind` is hypernoise or finetune; `start` the deviation of B's first entries.

        Raises:
            InputError: the run that is there had other settings.
            KeyboardInterrupt: the run was stopped; its checkpoint is saved.
        """
        from hypernoise.adapters import save_adapter
        from hypernoise.methods.finetune import LoRATune, finetune
        from hypernoise.noise.lora import LoRANoise
        from hypernoise.training.checkpoint import checkpoints
        from hypernoise.training.trainer import train
        from hypernoise.training.warm_start import warm_start

        settings, folder = self.settings, self.settings.output / "training" / run
        rank = rank or settings.rank
        alpha = settings.alpha * rank / settings.rank  # the update's scale is the same at every rank
        warm = {"rounds": settings.warm_rounds, "samples": settings.warm_samples, "step": settings.warm_step}
        known = {"kind": kind, "rank": rank, "alpha": alpha, "start": start, "rewards": self.reward.weights}
        known |= {"warm": warm if kind == "hypernoise" and settings.warm_rounds else None}
        frequencies = settings.frequencies if kind == "hypernoise" else 0
        known |= {"frequencies": frequencies or None}  # runs of before noted none
        same_run(folder, {**recognised(config), **known, "steps": None, "generator": self.generator.name})
        points = {point: folder / f"adapter-{point:06d}" for point in sorted(at or [config.steps])}
        missing = [point for point, place in points.items() if not (place / "hypernoise.json").exists()]
        if not missing:
            return points
        make, climb = {"hypernoise": (LoRANoise, train), "finetune": (LoRATune, finetune)}[kind]
        network = make(self.generator, rank=rank, alpha=alpha, seed=config.seed, frequencies=frequencies)
        disturb(network, start, config.seed)
        if known["warm"] and not checkpoints(folder):
            warm_start(network, self.reward, self.prompts, config, **warm)
        for point in missing:
            print(f"training {run} to {point} updates", file=sys.stderr)
            reached = dataclasses.replace(config, steps=point)
            result = climb(self.generator, network, self.reward, self.prompts, reached, output=folder)
            if not result.finished:
                raise KeyboardInterrupt
            save_adapter(network, points[point], training={"steps": point, "rewards": settings.rewards})
        network.remove()
        return points

    def trained(self, run: str = "", **changes: Any) -> list[str]:
        """The adapter directory of each seed's finished run, called `run` and the seed; see `adapters`."""
        folders = []
        for seed in self.settings.seeds:
            (folder,) = self.adapters(f"{run}seed{seed}", self.settings.config(seed, **changes)).values()
            folders.append(str(folder))
        return folders

    def compare(self, methods: Sequence[Method], *, steps: Sequence[int] = (1,)) -> Comparison:
        """The methods on the held-out captions, judged."""
        from tqdm import tqdm

        from hypernoise.evaluation.compare import compare

        settings, asked = self.settings, self.asked
        total = len(methods) * len(steps) * len(asked.prompts) * settings.noises
        with tqdm(total=total, desc="judging", unit="picture") as bar:
            return compare(
                self.generator,
                methods,
                asked.prompts,
                self.reward,
                steps=steps,
                noises=settings.noises,
                watched=self.watched,
                judge=asked.judge,
                categories=asked.categories,
                output=settings.output,
                progress=bar.update,
            )

    def finish(self, rows: list[dict[str, Any]], **more: Any) -> int:
        """Writes summary.json, prints the table, and what `more` there is to say."""
        import json

        from hypernoise.commands.common import write_summary
        from hypernoise.evaluation.report import table

        command = f"experiment {self.settings.name}"
        about = {"prompts": self.asked.about, **more}
        write_summary(self.settings.output, command, self.settings, self.generator.device, rows, **about)
        print(table(rows))
        for name, value in more.items():
            print(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
        return 0


def same_run(folder: Path, known: dict[str, Any]) -> None:
    """Notes a training run's settings in run.json; raises InputError if others are noted there."""
    import json

    from hypernoise.files import output_folder, write_json

    file = output_folder(folder) / "run.json"
    if not file.exists():
        write_json(file, known)
    noted, known = json.loads(file.read_text()), json.loads(json.dumps(known))  # both as JSON has them
    changed = [name for name, value in known.items() if noted.get(name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder} was trained with {name} = {noted.get(name)!r}, not {known[name]!r}; give another --output"
        )


def disturb(network: Any, deviation: float, seed: int) -> None:
    """Gives every B entries from N(0, deviation²), so that f does not start at 0; nothing at deviation 0."""
    import torch

    if not deviation:
        return
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.trainable_state().items():
            if name.endswith("lora_B.weight"):
                tensor.copy_(deviation * torch.randn(tensor.shape, generator=draw))


def pooled(
    found: Comparison, method: str, steps: int, names: Sequence[str], categories: Sequence[str]
) -> dict[str, Any]:
    """The runs called `names` as one row called `method`."""
    import numpy as np

    from hypernoise.evaluation.rows import pooled_row

    runs = [found.records[steps, name] for name in names]
    return pooled_row(method, steps, runs, found.records[steps, "plain"], np.array(categories))
