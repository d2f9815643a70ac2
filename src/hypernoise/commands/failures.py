"""`hypernoise failures`: break a noise network in known ways on the embedded generator, and see what gives first."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tyro

from hypernoise.errors import InputError, at_least_one, unknown


@dataclass(frozen=True)
class Failures:
    """Train a small noise network per mode, measure it, and tell which limits it crosses.

    A mode that is done is kept in --output and not run again; an interrupted one goes on from its checkpoint.
    """

    modes: tuple[str, ...] = ()
    """Names of modes; none: all of them."""
    steps: int = 200
    """Updates per mode."""
    batch_size: int = 16
    rank: int = 16
    judged: int = 20
    """Evaluation prompts per category that every mode is judged on, two noises each."""
    points: int = 16
    """Noises at which the KL and the Lipschitz constant are measured."""
    seed: int = 0
    output: Path = Path("runs/failures")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise failures")

    def run(self) -> int:
        at_least_one(self, "steps", "batch_size", "rank", "judged", flags=True)
        if self.points < 2:
            raise InputError(f"--points must be at least 2, not {self.points}")
        from hypernoise.commands.common import write_summary
        from hypernoise.diagnostics.failure_modes import LIMITS, MODES
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import load_generator

        for name in self.modes:
            if name not in MODES:
                raise unknown("mode", name, MODES)
        generator = load_generator("scenes", device=self.device)
        output_folder(self.output)
        rows = []
        for name in self.modes or MODES:
            row = self._kept(name) or self._measure(name, MODES[name], generator)
            if row is None:
                return 130
            rows.append(row)
        write_summary(self.output, "failures", self, generator.device, rows, limits=LIMITS)
        print(table(rows))
        return 0

    def _settings(self, name: str) -> dict[str, Any]:
        fields = ("steps", "batch_size", "rank", "judged", "points", "seed")
        return {"mode": name, **{field: getattr(self, field) for field in fields}}

    def _kept(self, name: str) -> dict[str, Any] | None:
        """A mode's row from an earlier call. Raises InputError if that was, or began, with other settings."""
        settings, row = self.output / name / "settings.json", self.output / name / "row.json"
        if settings.is_file() and json.loads(settings.read_text()) != self._settings(name):
            raise InputError(f"{row.parent} was made with other settings; give another --output or delete it")
        return json.loads(row.read_text()) if row.is_file() else None

    def _measure(self, name: str, mode: Any, generator: Any) -> dict[str, Any] | None:
        """Trains and measures a mode, and keeps its row; None if it was interrupted."""
        from hypernoise.diagnostics.failure_modes import broken
        from hypernoise.files import output_folder, write_json
        from hypernoise.noise.lora import LoRANoise
        from hypernoise.training.config import TrainConfig
        from hypernoise.training.prompts import read_prompts
        from hypernoise.training.trainer import train

        print(f"{name}: {mode.line}", file=sys.stderr)
        folder = output_folder(self.output / name)
        write_json(folder / "settings.json", self._settings(name))
        network = LoRANoise(generator, rank=self.rank, seed=self.seed)
        if mode.start:
            move(network, mode.start, self.seed)
        settings = {"steps": self.steps, "batch_size": self.batch_size, "seed": self.seed, "decay": True}
        config = TrainConfig(**{**settings, **mode.changes})
        reward = mode.reward()
        try:
            result = train(generator, network, reward, read_prompts("scenes"), config, output=folder)
        except InputError as error:
            row: dict[str, Any] = {"method": name, "refused": str(error), "broken": []}
        else:
            if not result.finished:
                return None
            base, row = self._look(generator, network, reward)
            row |= {"method": name, "refused": None, "base": base, "broken": broken(row, base)}
        write_json(folder / "row.json", row)
        network.remove()
        return row

    def _look(self, generator: Any, network: Any, reward: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Rows of the plain generator and of the mode, on the same prompts and noises."""
        import torch

        from hypernoise.diagnostics.diagnosis import DIAGNOSIS_STEP
        from hypernoise.diagnostics.kl import estimate_kl
        from hypernoise.diagnostics.lipschitz import spectral_norm
        from hypernoise.scenes.benchmark import evaluate
        from hypernoise.scenes.prompts import evaluation_requests
        from hypernoise.training.noise import keyed_noise

        requests = evaluation_requests(self.judged)
        torch.manual_seed(self.seed)  # for rewards that draw random numbers
        base = evaluate(generator, None, requests, reward, seeds=2).row
        row = evaluate(generator, network, requests, reward, seeds=2).row
        noise = keyed_noise(generator.noise_shape, seed=self.seed, step=DIAGNOSIS_STEP, samples=range(self.points))
        prompts = [requests[i * len(requests) // self.points].caption for i in range(self.points)]
        noise, condition = noise.to(generator.device), generator.encode(prompts)
        kl = estimate_kl(network, noise, condition, seed=self.seed)
        row |= {
            "lipschitz": spectral_norm(network, noise, condition).max().item(),
            "kl_whole": kl.kl.value,
            "kl_gap": kl.gap.value,
            "kl_gap_error": kl.gap.error,
        }
        return base, row


def move(network: Any, scale: float, seed: int) -> None:
    """Adds normal numbers of this deviation to every trained weight."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter.add_((scale * torch.randn(parameter.shape, generator=draw)).to(parameter))


def table(rows: list[dict[str, Any]]) -> str:
    """What each mode did, base → trained where both are measured."""
    lines = [
        f"{'mode':<16}{'reward':>18}{'½‖f‖²':>9}{'KL gap':>16}{'Lipschitz':>11}{'judge':>14}{'artefacts':>14}"
        f"{'diversity':>14}  broken"
    ]
    for row in rows:
        if row["refused"]:
            lines.append(f"{row['method']:<16}refused: {row['refused']}")
            continue
        base, gap = row["base"], f"{row['kl_gap']:.3g} ± {row['kl_gap_error']:.2g}"
        lines.append(
            f"{row['method']:<16}{base['reward']:>9.1f} →{row['reward']:>7.1f}{row['kl']:>9.3g}{gap:>16}"
            f"{row['lipschitz']:>11.3g}{base['score']:>7.2f} →{row['score']:>5.2f}"
            f"{base['artefacts']:>7.2f} →{row['artefacts']:>5.2f}{base['diversity']:>7.2f} →{row['diversity']:>5.2f}"
            f"  {', '.join(row['broken']) or '-'}"
        )
    return "\n".join(lines)
