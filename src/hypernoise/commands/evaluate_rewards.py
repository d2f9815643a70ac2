"""`hypernoise evaluate rewards`: a folder of pictures, or a generator with and without adapters, scored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tyro

from hypernoise.errors import InputError
from hypernoise.precision import MixedPrecision
from hypernoise.training.config import Weights


@dataclass(frozen=True)
class EvaluateRewards:
    """Score pictures for their prompts by any rewards, with 95 % bootstrap intervals over prompts.

    With --pictures, those of a folder; without, what the generator draws for --prompts, plain and with each
    adapter from the same noises. Writes summary.json and scores.csv, and the pictures drawn, to --output.
    """

    rewards: Weights = field(default_factory=dict)
    """Names of rewards or ensembles, and their weights in the total; weights are downloaded when first named."""
    pictures: Path | None = None
    """A folder of pictures: one that hypernoise generate has written, or any with --prompts."""
    prompts: str = ""
    """A text file, one prompt a line: of each picture by the order of their names, or to draw; or "scenes"."""
    adapter: tuple[str, ...] = ()
    """Adapter directories to draw with, beside the plain generator."""
    generator: str = "scenes"
    """A registered name or a pipeline directory."""
    count: int = 0
    """How many of the prompts to draw, from the first; 0: all."""
    noises: int = 1
    """Pictures per prompt."""
    steps: int = 1
    """Denoiser calls per picture."""
    seed: int = 0
    batch_size: int = 16
    """Pictures drawn and scored together."""
    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts beyond a reward's text encoder: cut them (told once, counted), or score windows that fit."""
    reward_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of rewards that are networks."""
    report: bool = False
    """Write report.html too: the tables in one file that needs no other."""
    output: Path = Path("runs/evaluate-rewards")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights. auto: bf16 where the device has units for it, else no, which is fp32."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise evaluate rewards")

    def run(self) -> int:
        from hypernoise.prompts import PROMPT_SETS

        for name, least in (("noises", 1), ("steps", 1), ("batch_size", 1), ("count", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be from 0 to 2**63 - 1, not {self.seed}")
        if not self.rewards:
            raise InputError("say what to score by: --rewards NAME [NAME=WEIGHT ...], such as --rewards redness")
        if self.pictures is not None and self.adapter:
            raise InputError(
                "--pictures scores a folder as it is; leave out --adapter, or leave out --pictures to draw"
            )
        if self.pictures is not None and self.prompts in PROMPT_SETS:
            raise InputError(
                f"--prompts {self.prompts} are prompts to draw; with --pictures name a file, a line per picture in the "
                "order of their names"
            )
        if self.pictures is None and not self.prompts:
            raise InputError("give --pictures FOLDER to score one, or --prompts FILE (or scenes) to draw")
        from hypernoise.commands.common import tell_cut_prompts, write_summary, write_tables
        from hypernoise.evaluation.rewards import row, write_scores
        from hypernoise.generators.registry import pick_device
        from hypernoise.rewards.base import RewardSettings
        from hypernoise.rewards.ensemble import WeightedSum

        device = pick_device(self.device)
        given = None if self.pictures is None else self._given(self.pictures)
        reward = WeightedSum(self.rewards, settings=RewardSettings(self.long_prompts, self.reward_dtype))
        scored = self._scored(reward, given, device) if given is not None else self._drawn(reward)
        rows = [row(scored[0][0], scored[0][1])]
        rows += [row(method, found, scored[0][1]) for method, found in scored[1:]]
        for told, adapter in zip(rows, (None, *self.adapter), strict=True):
            told.update(adapter=adapter, steps=self.steps if given is None else None)
        write_scores(self.output / "scores.csv", scored)
        more: dict[str, Any] = {"truncated_prompts": tell_cut_prompts(reward)}
        if given is not None:  # nothing was drawn
            more["mixed_precision"] = None
        write_summary(self.output, "evaluate rewards", self, device, rows, **more)
        print(table(rows))
        if self.report:
            drawn_by = self.generator if given is None else f"none: {self.pictures} was given"
            write_tables(self.output, "evaluate rewards", shown(rows), generator=drawn_by)
        print(f"every picture's scores: {self.output / 'scores.csv'}", file=sys.stderr)
        return 0

    def _given(self, folder: Path) -> list[tuple[Path, str]]:
        from hypernoise.evaluation.rewards import pictures_in

        return pictures_in(folder, Path(self.prompts) if self.prompts else None)

    def _scored(self, reward: Any, given: list[tuple[Path, str]], device: Any) -> list[tuple[str, Any]]:
        from tqdm import tqdm

        from hypernoise.evaluation.rewards import read_picture, score
        from hypernoise.files import output_folder

        output_folder(self.output)
        pictures = ((file.name, prompt, read_picture(file)) for file, prompt in given)
        with tqdm(total=len(given), desc="scoring", unit="picture") as bar:
            found = score(reward, pictures, batch_size=self.batch_size, device=device, progress=bar.update)
        return [("pictures", found)]

    def _drawn(self, reward: Any) -> list[tuple[str, Any]]:
        from tqdm import tqdm

        from hypernoise.evaluation.rewards import score
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import load_generator, pick_device
        from hypernoise.precision import resolve
        from hypernoise.prompts import read_prompts
        from hypernoise.training.processes import say_once

        prompts = read_prompts(self.prompts)
        prompts = prompts[: self.count] if self.count else prompts
        precision = resolve(self.mixed_precision, pick_device(self.device))
        generator = load_generator(self.generator, device=self.device, dtype=precision.dtype)
        generator.check_prompts(prompts)
        for adapter in self.adapter:  # all are looked at before the first takes minutes
            _loaded(generator, adapter).remove()
        output_folder(self.output)
        say_once(precision.line)
        scored = []
        with tqdm(total=(1 + len(self.adapter)) * len(prompts) * self.noises, desc="scoring", unit="picture") as bar:
            for number, adapter in enumerate([None, *self.adapter]):
                method = "plain" if adapter is None else "hypernoise" + (f"-{number}" if len(self.adapter) > 1 else "")
                network = None if adapter is None else _loaded(generator, adapter)
                pictures = self._draw(generator, network, prompts, output_folder(self.output / method))
                found = score(
                    reward, pictures, batch_size=self.batch_size, device=generator.device, progress=bar.update
                )
                scored.append((method, found))
                if network is not None:
                    network.remove()
        return scored

    def _draw(self, generator: Any, network: Any, prompts: list[str], folder: Path) -> Iterator[tuple[str, str, Any]]:
        """(file, prompt, pixels) of every prompt and noise, saved on the way; the same noises for every network."""
        import torch
        from PIL import Image

        from hypernoise.noise.draws import DRAWING_STEP, keyed_noise

        asked = [prompt for prompt in prompts for _ in range(self.noises)]
        for start in range(0, len(asked), self.batch_size):
            samples = range(start, min(start + self.batch_size, len(asked)))
            texts = [asked[i] for i in samples]
            noise = keyed_noise(generator.noise_shape, seed=self.seed, step=DRAWING_STEP, samples=samples)
            noise, condition = noise.to(generator.device), generator.encode(texts)
            with torch.no_grad():
                residual = 0 if network is None else network(noise, condition)
                better, steps = noise + residual, self.steps
                drawn = generator.sample(better, condition, num_inference_steps=steps, seed=self.seed).float()
            for number, text, pixels in zip(samples, texts, drawn, strict=True):
                file = folder / f"{number:05d}.png"
                levels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
                Image.fromarray(levels.cpu().numpy()).save(file)
                yield f"{folder.name}/{file.name}", text, pixels


def _loaded(generator: Any, adapter: str) -> Any:
    from hypernoise.adapters import load_adapter

    return load_adapter(generator, adapter)


def shown(rows: list[dict[str, Any]]) -> list[Any]:
    """The report's tables, one per reward."""
    from hypernoise.evaluation.page import Table

    columns = [
        ("mean", "mean", ".4f"),
        ("95 %", "ci95", ".4f"),
        ("gain", "gain", "+.4f"),
        ("95 %", "gain_ci95", "+.4f"),
    ]
    return [
        Table(f"Reward {name}", columns, {row["method"]: row["rewards"][name] for row in rows})
        for name in rows[0]["rewards"]
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """A line per method and reward: mean, interval and, against the first method, the gain."""
    gains = f"{'gain':>9}  95 %" if len(rows) > 1 else ""
    lines = [f"{'':<14}{'reward':<18}{'mean':>10}  {'95 %':<22}{gains}".rstrip()]
    for row in rows:
        for name, told in row["rewards"].items():
            gain = f"{told['gain']:>+9.4f}  {_between(told['gain_ci95'])}" if "gain" in told else ""
            lines.append(
                f"{row['method']:<14}{name:<18}{told['mean']:>10.4f}  {_between(told['ci95']):<22}{gain}".rstrip()
            )
    return "\n".join(lines)


def _between(interval: list[float] | None) -> str:
    if interval is None:
        return "(a single prompt)"
    low, high = interval
    return f"[{low:.4f}, {high:.4f}]"
