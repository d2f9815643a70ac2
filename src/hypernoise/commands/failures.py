"""`hypernoise failures`: break a noise network in known ways on the embedded generator, and see what gives first."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tyro

from hypernoise.errors import InputError, at_least_one, unknown

MATCHER = {"steps": 300, "pictures": 1500}  # of the hackable reward's training: about a quarter of a minute
NOISES = 2  # that each evaluation prompt is judged on


@dataclass(frozen=True)
class Failures:
    """Train a small noise network per mode, look at it on its way, and tell which limits it crosses first.

    A mode that is done is kept in --output and not run again; an interrupted one goes on from its checkpoint.
    """

    modes: tuple[str, ...] = ()
    """Names of modes; none: all of them."""
    steps: int = 32
    """Updates per mode."""
    looks: int = 2
    """At how many points of a run it is measured and judged."""
    batch_size: int = 8
    rank: int = 16
    judged: int = 5
    """Evaluation prompts per category that every look is judged on, two noises each."""
    points: int = 8
    """Noises at which the KL and the Lipschitz constant are measured."""
    seed: int = 0
    output: Path = Path("runs/failures")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise failures")

    def run(self) -> int:
        at_least_one(self, "steps", "looks", "batch_size", "rank", "judged", flags=True)
        if self.points < 8:
            raise InputError(f"--points must be at least 8, not {self.points}")
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
        limits = {name: limit.line for name, limit in LIMITS.items()}
        write_summary(self.output, "failures", self, generator.device, rows, limits=limits)
        print("\n\n".join(part for part in (table(rows), strengths(rows), accuracies(rows), messages(rows)) if part))
        return 0

    def _settings(self, name: str) -> dict[str, Any]:
        fields = ("steps", "looks", "batch_size", "rank", "judged", "points", "seed")
        return {"mode": name, **{field: getattr(self, field) for field in fields}}

    def _kept(self, name: str) -> dict[str, Any] | None:
        """A mode's row from an earlier call. Raises InputError if that was, or began, with other settings."""
        settings, row = self.output / name / "settings.json", self.output / name / "row.json"
        if settings.is_file() and json.loads(settings.read_text()) != self._settings(name):
            raise InputError(f"{row.parent} was made with other settings; give another --output or delete it")
        return json.loads(row.read_text()) if row.is_file() else None

    def _measure(self, name: str, mode: Any, generator: Any) -> dict[str, Any] | None:
        """Trains a mode and looks at it on its way, and keeps its row; None if it was interrupted.

        The row's looks are in order; `said` is what the library tells its user, `stopped` where that ended the run.
        """
        from hypernoise.commands.easy_matcher import easy_matcher
        from hypernoise.commands.training import parted_line
        from hypernoise.diagnostics.failure_modes import WITHOUT_NEAR_MISSES
        from hypernoise.files import output_folder, write_json
        from hypernoise.noise.lora import LoRANoise
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.training.config import TrainConfig
        from hypernoise.training.prompts import read_prompts
        from hypernoise.training.trainer import train

        print(f"{name}: {mode.line}", file=sys.stderr)
        folder = output_folder(self.output / name)
        write_json(folder / "settings.json", self._settings(name))
        row: dict[str, Any] = {"method": name, "looks": [], "said": [], "stopped": False}
        own = {}
        if WITHOUT_NEAR_MISSES in mode.rewards:
            file = folder / "easy-matcher.safetensors"
            own[WITHOUT_NEAR_MISSES], row["accuracy"] = easy_matcher(file, self.seed, **MATCHER)
        reward = mode.reward(own)
        watched = WeightedSum(mode.watched) if mode.watched else None
        network = LoRANoise(generator, rank=self.rank, seed=self.seed)
        if mode.start:
            move(network, mode.start, self.seed)
        settings = {"steps": self.steps, "batch_size": self.batch_size, "seed": self.seed, "warmup": self.steps // 6}
        config = TrainConfig(**{**settings, **mode.changes})
        plain = None
        for point in sorted({max(1, round(self.steps * i / self.looks)) for i in range(1, self.looks + 1)}):
            kept = folder / f"look-{point:06d}.json"
            if not kept.is_file():
                reached = dataclasses.replace(config, steps=point)
                try:
                    result = train(
                        generator, network, reward, read_prompts("scenes"), reached, watched=watched, output=folder
                    )
                except InputError as error:
                    row["said"].append(str(error))
                    row["stopped"] = True
                    break
                if not result.finished:
                    return None
                plain = plain or self._evaluated(generator, None, reward)
                ended = parted_line(folder, result.step, config.patience) if result.parted else ""
                write_json(kept, {"step": result.step, "ended": ended, **self._look(generator, network, reward, plain)})
            row["looks"].append(json.loads(kept.read_text()))
            if row["looks"][-1]["ended"]:
                row["said"].append(row["looks"][-1]["ended"])
                row["stopped"] = True
                break
        row["said"] += row["looks"][-1]["findings"] if row["looks"] else []
        write_json(folder / "row.json", row)
        network.remove()
        return row

    def _evaluated(self, generator: Any, network: Any, reward: Any) -> Any:
        import torch

        from hypernoise.scenes.benchmark import evaluate
        from hypernoise.scenes.prompts import evaluation_requests

        torch.manual_seed(self.seed)  # for rewards that draw random numbers
        return evaluate(generator, network, evaluation_requests(self.judged), reward, seeds=NOISES)

    def _look(self, generator: Any, network: Any, reward: Any, before: Any) -> dict[str, Any]:
        """A network's row, beside the plain generator's (`base`) on the same prompts and noises, the limits that
        are `broken`, and `findings`: what `hypernoise diagnose` finds wrong."""
        from hypernoise.diagnostics.diagnosis import diagnose, findings
        from hypernoise.diagnostics.failure_modes import broken
        from hypernoise.scenes.prompts import evaluation_requests

        after = self._evaluated(generator, network, reward)
        found = diagnose(
            generator,
            network,
            reward,
            [request.caption for request in evaluation_requests(self.judged)],
            noises=self.points,
            pictures=0,
            seed=self.seed,
        )
        artefacts = [[verdict.artefacts for verdict in run.verdicts] for run in (before, after)]
        row = after.row | {
            "lipschitz": found.lipschitz,
            "kl_whole": found.kl.kl.value,
            "kl_gap": found.kl.gap.value,
            "kl_gap_error": found.kl.gap.error,
            "score_error": paired_error(before.right, after.right),
            "artefacts_error": paired_error(*artefacts),
            "base": before.row,
            "findings": [told(finding) for finding in findings(found) if not finding.good],
        }
        return row | {"broken": broken(row, before.row)}


def move(network: Any, scale: float, seed: int) -> None:
    """Adds normal numbers of this deviation to every trained weight."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter.add_((scale * torch.randn(parameter.shape, generator=draw)).to(parameter))


def paired_error(before: Sequence[float], after: Sequence[float]) -> float:
    """Standard error of the mean of after − before, sample by sample; 0 for a single one."""
    import numpy as np

    change = np.subtract(after, before)
    return float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else 0.0


def told(finding: Any) -> str:
    advice = f"; to change it: {finding.advice}" if finding.advice else ""
    return f"{finding.name}: {finding.text}{advice}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each mode ended with, base → trained where both are measured, and what broke first, and where."""
    from hypernoise.diagnostics.failure_modes import first_broken

    lines = [
        f"{'mode':<17}{'reward':>16}{'½‖f‖²':>8}{'KL gap':>18}{'Lipschitz':>11}{'judge':>13}{'artefacts':>13}"
        f"{'diversity':>13}  broken first"
    ]
    for row in rows:
        if not row["looks"]:
            lines.append(f"{row['method']:<17}stopped: {row['said'][0]}")
            continue
        last, first = row["looks"][-1], first_broken(row["looks"])
        base, gap = last["base"], f"{last['kl_gap']:.2g} ± {last['kl_gap_error']:.1g}"
        lines.append(
            f"{row['method']:<17}{base['reward']:>7.4g} →{last['reward']:>7.4g}{last['kl']:>8.3g}{gap:>18}"
            f"{last['lipschitz']:>11.3g}{base['score']:>6.2f} →{last['score']:>5.2f}"
            f"{base['artefacts']:>6.2f} →{last['artefacts']:>5.2f}{base['diversity']:>6.2f} →{last['diversity']:>5.2f}"
            f"  {at(first) if first else '-'}{', then stopped' if row['stopped'] else ''}"
        )
    return "\n".join(lines)


def at(look: Mapping[str, Any]) -> str:
    """The limits that a look crosses with their values, and how far the training was."""
    crossed = ", ".join(f"{name} {value:.2g}" for name, value in look["broken"].items())
    return f"{crossed} at step {look['step']}, ½‖f‖² {look['kl']:.2g}"


def strengths(rows: Sequence[Mapping[str, Any]]) -> str:
    """From which strength of the sweep on each limit is crossed; empty if fewer than two strengths were run."""
    from hypernoise.diagnostics.failure_modes import LIMITS, STRENGTHS, strength_mode, weakest_that_break

    looks = {row["method"]: row["looks"] for row in rows}
    swept = {strength: looks[strength_mode(strength)] for strength in STRENGTHS if strength_mode(strength) in looks}
    if len(swept) < 2:
        return ""
    weakest = weakest_that_break(swept)
    told_each = (f"{name} {f'from {weakest[name]:g}' if name in weakest else 'never'}" for name in LIMITS)
    return f"strengths {', '.join(f'{strength:g}' for strength in swept)}: {', '.join(told_each)}"


def accuracies(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often a reward that was trained here prefers the true caption of a picture, on held-out ones."""
    return "\n".join(
        f"{row['method']}: its reward prefers the true caption in {row['accuracy']['others']:.0%} of pairs against "
        f"other captions, in {row['accuracy']['near']:.0%} against near misses"
        for row in rows
        if "accuracy" in row
    )


def messages(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the library says to its user in each mode, a line each."""
    return "\n".join(f"{row['method']}: {line}" for row in rows for line in row["said"])
