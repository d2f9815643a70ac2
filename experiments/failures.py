"""A noise network broken in known ways, to see what breaks first, and what the library reports.

python -m experiments.failures --output-dir runs/failures   # --modes NAME [NAME ...] for some of them
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hypernoise as hn
from experiments.base import RECIPES, Bench, Experiment, lora_of, main, markdown, start_off_zero
from experiments.failure_modes import (
    LIMITS,
    STRENGTHS,
    Mode,
    broken,
    first_broken,
    modes,
    strength_mode,
    weakest_that_break,
)
from hypernoise.diagnostics.diagnosis import findings
from hypernoise.errors import unknown
from hypernoise.evaluation.records import Records
from hypernoise.evaluation.summary import write_summary
from hypernoise.files import output_folder, write_json
from hypernoise.methods.base import Method
from hypernoise.prompts import read_mix
from hypernoise.settings import Count


@dataclass(frozen=True)
class Failures(Experiment):
    """Train a small noise network per mode, measure it along the way, and report which limits it crosses first.

    A finished mode is kept in --output-dir and not run again; an interrupted one resumes from its checkpoint.
    """

    recipe: Path = RECIPES / "scenes-red.yaml"
    """The sound run, for redness; the learning rate is constant, so that a run can be measured along the way."""
    modes: tuple[str, ...] = ()
    """Names of modes; none given: all of them."""
    updates: Count = 32
    """Updates per mode."""
    looks: Count = 2
    """Number of points in a run at which it is measured and judged."""
    judged: int = 5
    """Held-out captions per category that every look is judged on."""
    noises: int = 2
    """Pictures per caption."""
    points: int = 8
    """Noises at which the KL and the Lipschitz constant are measured."""
    seed: int = 0

    def run(self) -> int:
        for name, least in (("points", 8), ("noises", 2)):
            if getattr(self, name) < least:
                raise hn.InputError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        bench = self.bench()
        if set(bench.recipe.rewards) != {"redness"}:
            raise hn.InputError(f"the modes are of a recipe that trains for redness alone, not {bench.recipe.rewards}")
        known = modes(bench.recipe.rewards["redness"], bench.recipe.learning_rate)
        for name in self.modes:
            if name not in known:
                raise unknown("mode", name, known)
        # in fp32 for any recipe: derivatives in bf16 are too inaccurate
        generator = hn.load_generator(bench.recipe.generator, device=self.device)
        bench = dataclasses.replace(bench, generator=generator)
        rows = []
        for name in self.modes or known:
            row = self._kept(name) or self._measure(name, known[name], bench)
            if row is None:
                raise KeyboardInterrupt
            rows.append(row)
        limits = {name: limit.line for name, limit in LIMITS.items()}
        line = verdict(rows)
        write_summary(
            self.output_dir, "experiments.failures", self, generator.device, rows, limits=limits, verdict=[line]
        )
        parts = (table(rows), strengths(rows), messages(rows), f"verdict: {line}")
        print("\n\n".join(part for part in parts if part))
        return 0

    def _settings(self, name: str) -> dict[str, Any]:
        fields = ("updates", "looks", "judged", "noises", "points", "seed")
        return {"mode": name, "recipe": str(self.recipe), **{field: getattr(self, field) for field in fields}}

    def _kept(self, name: str) -> dict[str, Any] | None:
        """A mode's row from an earlier call. Raises hn.InputError if it had other settings."""
        settings, row = self.output_dir / name / "settings.json", self.output_dir / name / "row.json"
        if settings.is_file() and json.loads(settings.read_text()) != self._settings(name):
            raise hn.InputError(f"{row.parent} was made with other settings; give another --output-dir or delete it")
        return json.loads(row.read_text()) if row.is_file() else None

    def _measure(self, name: str, mode: Mode, bench: Bench) -> dict[str, Any] | None:
        """Trains and measures a mode and keeps its row; None if it was interrupted.

        The row's looks are in order; `said` is what the library reports, `stopped` the step at which it ended the run.
        """
        print(f"{name}: {mode.line}", file=sys.stderr)
        generator, recipe = bench.generator, bench.recipe
        folder = output_folder(self.output_dir / name)
        write_json(folder / "settings.json", self._settings(name))
        row: dict[str, Any] = {"method": name, "looks": [], "said": [], "stopped": False}
        reward = mode.reward()
        network = hn.LoRANoise(generator, seed=self.seed, **lora_of(recipe))
        start_off_zero(network, mode.start, self.seed)
        config = bench.config(self.updates, self.seed, lr_scheduler="constant", **mode.changes)
        prompts = read_mix(recipe.prompts)
        plain = None
        for point in sorted({max(1, round(self.updates * i / self.looks)) for i in range(1, self.looks + 1)}):
            kept = folder / f"look-{point:06d}.json"
            if not kept.is_file():
                reached = dataclasses.replace(config, max_train_steps=point)
                try:
                    result = hn.train(generator, network, reward, prompts, reached, output_dir=folder)
                except hn.InputError as error:
                    row["said"].append(str(error))
                    row["stopped"] = True
                    break
                if result.signal:
                    return None
                plain = plain or self._evaluated(bench, hn.Plain(), reward)
                write_json(kept, {"step": result.step, **self._look(bench, network, reward, plain)})
            row["looks"].append(json.loads(kept.read_text()))
        row["said"] += row["looks"][-1]["findings"] if row["looks"] else []
        write_json(folder / "row.json", row)
        return row

    def _evaluated(self, bench: Bench, method: Method, reward: hn.WeightedSum) -> tuple[dict[str, Any], Records]:
        """A method's row and records on the held-out captions."""
        torch.manual_seed(self.seed)  # for rewards that draw random numbers
        asked = bench.asked
        assert asked.load_judge is not None
        found = hn.compare(
            bench.generator,
            [method],
            asked.prompts,
            reward,
            num_images_per_prompt=self.noises,
            batch_size=32,
            judge=asked.load_judge(bench.generator.device),
            categories=asked.categories,
        )
        return found.rows[0], next(iter(found.records.values()))

    def _look(
        self, bench: Bench, network: hn.LoRANoise, reward: hn.WeightedSum, before: tuple[dict[str, Any], Records]
    ) -> dict[str, Any]:
        """A network's row, relative to the plain generator's (`base`) on the same prompts and noises, the limits that
        are `broken`, and `findings`: what `hypernoise diagnose` finds wrong."""
        after = self._evaluated(bench, hn.HyperNoise(network), reward)
        found = hn.diagnose(
            bench.generator,
            network,
            reward,
            bench.asked.prompts,
            noises=self.points,
            seed=self.seed,
        )
        right, artefacts = ([one[1].values[name] for one in (before, after)] for name in ("right", "artefacts"))
        row = after[0] | {
            "lipschitz": found.lipschitz,
            "kl_whole": found.kl.kl.value,
            "kl_gap": found.kl.gap.value,
            "kl_gap_error": found.kl.gap.error,
            "score_error": paired_error(*(values.mean(1) for values in right if values is not None)),
            "artefacts_error": paired_error(*(values.ravel() for values in artefacts if values is not None)),
            "base": before[0],
            "findings": [finding_text(finding) for finding in findings(found) if not finding.good],
        }
        return row | {"broken": broken(row, before[0])}


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What breaks first, over the modes."""
    firsts = [first_broken(row["looks"]) for row in rows if row["looks"]]
    given = Counter(name for look in firsts if look for name in list(look["broken"])[:1])
    parts = [f"{name} first in {number}" for name, number in given.most_common()]
    parts += [f"nothing in {firsts.count(None)}"] if None in firsts else []
    stopped = sum(row["stopped"] for row in rows)
    return f"of {len(rows)} modes {', '.join([*parts, f'{stopped} stopped by the library'])}"


def paired_error(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> float:
    """Standard error of the mean of after − before, sample by sample; 0 for a single one."""
    change = np.subtract(after, before)
    return float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else 0.0


def finding_text(finding: Any) -> str:
    advice = f"; to change it: {finding.advice}" if finding.advice else ""
    return f"{finding.name}: {finding.text}{advice}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each mode's final values, plain → trained where both are measured, and what broke first, and when."""
    heads = ["mode", "reward", "½‖f‖²", "KL gap", "Lipschitz", "judge", "artefacts", "diversity", "broken first"]
    lines = []
    for row in rows:
        if not row["looks"]:
            lines.append([row["method"], *[""] * 7, f"stopped: {row['said'][0]}"])
            continue
        last, first = row["looks"][-1], first_broken(row["looks"])
        base, ended = last["base"], ", then stopped" if row["stopped"] else ""
        lines.append(
            [
                row["method"],
                f"{base['reward']:.4g} → {last['reward']:.4g}",
                f"{last['kl']:.3g}",
                f"{last['kl_gap']:.2g} ± {last['kl_gap_error']:.1g}",
                f"{last['lipschitz']:.3g}",
                *(f"{base[name]:.2f} → {last[name]:.2f}" for name in ("score", "artefacts", "diversity")),
                (at(first) if first else "nothing") + ended,
            ]
        )
    return markdown(heads, lines)


def at(look: Mapping[str, Any]) -> str:
    """The limits that a look crosses, with values and training progress."""
    crossed = ", ".join(f"{name} {value:.2g}" for name, value in look["broken"].items())
    return f"{crossed} at step {look['step']}, ½‖f‖² {look['kl']:.2g}"


def strengths(rows: Sequence[Mapping[str, Any]]) -> str:
    """The lowest strength of the sweep at which each limit is crossed; empty with fewer than two strengths."""
    looks = {row["method"]: row["looks"] for row in rows}
    swept = {strength: looks[strength_mode(strength)] for strength in STRENGTHS if strength_mode(strength) in looks}
    if len(swept) < 2:
        return ""
    weakest = weakest_that_break(swept)
    each = (f"{name} {f'from {weakest[name]:g}' if name in weakest else 'never'}" for name in LIMITS)
    return f"strengths {', '.join(f'{strength:g}' for strength in swept)}: {', '.join(each)}"


def messages(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the library reports in each mode, a line each."""
    return "\n".join(f"{row['method']}: {line}" for row in rows for line in row["said"])


if __name__ == "__main__":
    sys.exit(main(Failures))
