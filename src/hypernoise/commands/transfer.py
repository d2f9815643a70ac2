"""`hypernoise transfer`: a noise network of one generator on others, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import tyro

from hypernoise.errors import InputError, at_least_one
from hypernoise.precision import MixedPrecision
from hypernoise.training.config import Weights


@dataclass(frozen=True)
class Transfer:
    """What a noise network gains on its own generator, and what it gains on others that it was not trained on.

    Prints a row per generator and method, with gains over that generator's plain pictures of the same noises and
    their 95 % intervals over prompts. Writes summary.json to --output, and finds there what was drawn already.
    """

    adapter: Path | None = None
    """An adapter directory."""
    source: str = "scenes"
    """The generator it was trained on: a registered name or a pipeline directory."""
    to: tuple[str, ...] = ()
    """Generators to drive with it, of the same latent layout or another."""
    own: tuple[str, ...] = ()
    """Adapters that were trained on these generators, one for each of --to in order, to compare with; none if empty."""
    rewards: Weights = field(default_factory=lambda: {"scenes": 1.0})
    """What is reported."""
    prompts: str = "scenes"
    """A text file with a prompt a line, or "scenes" for the embedded world's held-out captions, which are judged."""
    judged: int = 50
    """Held-out captions per category; 50 are the benchmark."""
    noises: int = 2
    """Pictures per prompt."""
    steps: int = 1
    """Denoiser calls per picture."""
    batch_size: int = 16
    seed: int = 0
    output: Path = Path("runs/transfer")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights. auto: bf16 where the device has units for it, else no, which is fp32."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise transfer")

    def run(self) -> int:
        at_least_one(self, "judged", "noises", "steps", "batch_size", flags=True)
        if self.adapter is None or not self.to:
            raise InputError("name an adapter and generators: hypernoise transfer --adapter DIR --to DIR [DIR ...]")
        if self.own and len(self.own) != len(self.to):
            raise InputError(f"--own takes an adapter for each of the {len(self.to)} of --to, not {len(self.own)}")
        from tqdm import tqdm

        from hypernoise.commands.common import write_summary
        from hypernoise.commands.compare import asked_for
        from hypernoise.evaluation.compare import compare
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import load_generator, pick_device
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain
        from hypernoise.methods.transfer import Transfer as Driven
        from hypernoise.precision import resolve
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.training.processes import say_once

        precision = resolve(self.mixed_precision, pick_device(self.device))
        asked, reward = asked_for(self.prompts, self.judged), WeightedSum(self.rewards)
        loaded = [load_generator(name, device=self.device, dtype=precision.dtype) for name in (self.source, *self.to)]
        source = loaded[0]
        driven: list[list[Any]] = [[Plain(), HyperNoise(self.adapter)]]
        driven += [[Plain(), Driven(self.adapter, source)] for _ in self.to]
        for number, folder in enumerate(self.own, 1):
            driven[number].insert(1, HyperNoise(folder))
        for generator, methods in zip(loaded, driven, strict=True):  # all are looked at before the first takes minutes
            generator.check_steps(self.steps)
            generator.check_prompts(asked.prompts)
            for method in methods[1:]:
                if isinstance(method, Driven):
                    method.between(generator)
                method.adapter.on(source if isinstance(method, Driven) else generator)
        output_folder(self.output)
        say_once(precision.line)
        rows: list[dict[str, Any]] = []
        total = sum(map(len, driven)) * len(asked.prompts) * self.noises
        with tqdm(total=total, unit="picture") as bar:
            for number, (generator, methods) in enumerate(zip(loaded, driven, strict=True)):
                found = compare(
                    generator,
                    methods,
                    asked.prompts,
                    reward,
                    steps=self.steps,
                    noises=self.noises,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    judge=asked.judge,
                    categories=asked.categories,
                    output=self.output / f"{number}",
                    progress=bar.update,
                )
                rows += [{"generator": generator.name, **row} for row in found.rows]
        print(table(rows))
        write_summary(self.output, "transfer", self, source.device, rows, prompts=asked.about)
        return 0


def table(rows: list[dict[str, Any]]) -> str:
    """A line per generator and method: reward and, where pictures were judged, score, each with its gain."""
    judged = any(row["score"] is not None for row in rows)
    measures = [("reward", "reward_gain"), *([("score", "gain")] if judged else [])]
    lines = [f"{'generator':<28}{'method':<12}{'KL':>7}" + f"{'':>3}".join(_head(name) for name, _ in measures)]
    for row in rows:
        kl = "" if row["kl"] is None else f"{row['kl']:.2f}"
        told = f"{'':>3}".join(_gained(row, name, gain) for name, gain in measures)
        lines.append(f"{row['generator'][-27:]:<28}{row['method']:<12}{kl:>7}{told}".rstrip())
    return "\n".join(lines)


def _head(name: str) -> str:
    return f"{name:>9}{'gain':>9}  {'95 %':<18}"


def _gained(row: dict[str, Any], name: str, gain: str) -> str:
    gained, interval = row.get(gain), row.get(f"{gain}_ci95")  # plain has none; one prompt has no interval
    told = "" if gained is None else f"{gained:+.3f}"
    between = "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
    return f"{row[name]:>9.3f}{told:>9}  {between:<18}"
