"""`hypernoise transfer`: a noise network of one generator on others, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tyro

from hypernoise.errors import InputError, at_least_one
from hypernoise.training.config import Weights


@dataclass(frozen=True)
class Transfer:
    """What a noise network gains on its own generator, and what it gains on others that it was not trained on.

    Prints a row per generator and method, with gains over that generator's plain pictures of the same noises.
    Writes summary.json to --output.
    """

    adapter: Path | None = None
    """An adapter directory."""
    source: str = "scenes"
    """The generator it was trained on: a registered name or a pipeline directory."""
    to: tuple[str, ...] = ()
    """Generators to drive with it, of the same latent layout or another."""
    rewards: Weights = field(default_factory=lambda: {"scenes": 1.0})
    """What is reported."""
    prompts: str = "scenes"
    """A text file with a prompt a line, or "scenes" for the embedded world's training captions."""
    count: int = 100
    """Prompts, the first of the file."""
    noises: int = 2
    """Pictures per prompt."""
    steps: int = 1
    """Denoiser calls per picture."""
    batch_size: int = 16
    seed: int = 0
    output: Path = Path("runs/transfer")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise transfer")

    def run(self) -> int:
        at_least_one(self, "count", "noises", "steps", "batch_size", flags=True)
        if self.adapter is None or not self.to:
            raise InputError("name an adapter and generators: hypernoise transfer --adapter DIR --to DIR [DIR ...]")
        import torch

        from hypernoise.commands.common import write_summary
        from hypernoise.evaluation.compare import compare
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import load_generator
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain
        from hypernoise.methods.transfer import Transfer as Driven
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.training.prompts import read_prompts

        prompts, reward = read_prompts(self.prompts)[: self.count], WeightedSum(self.rewards)
        dtype = getattr(torch, self.dtype)
        source = load_generator(self.source, device=self.device, dtype=dtype)
        source.check_prompts(prompts)
        output_folder(self.output)
        how: dict[str, Any] = {name: getattr(self, name) for name in ("steps", "noises", "seed", "batch_size")}
        rows: list[dict[str, Any]] = []
        print(f"{'generator':<28}{'method':<14}{'reward':>10}{'gain':>10}  95 % interval")
        for number, name in enumerate((self.source, *self.to)):
            generator = load_generator(name, device=self.device, dtype=dtype) if number else source
            method = Driven(self.adapter, source) if number else HyperNoise(self.adapter)
            found = compare(generator, [Plain(), method], prompts, reward, **how)
            for row in found.rows:
                rows.append({"generator": name, **row})
                print(_line(name, row))
        write_summary(self.output, "transfer", self, source.device, rows)
        return 0


def _line(generator: str, row: dict[str, Any]) -> str:
    gain, ci = row.get("reward_gain"), row.get("reward_gain_ci95")
    told = "" if gain is None or ci is None else f"{gain:>10.3f}  {ci[0]:.3f} to {ci[1]:.3f}"
    return f"{generator[-27:]:<28}{row['method']:<14}{row['reward']:>10.3f}{told}"
