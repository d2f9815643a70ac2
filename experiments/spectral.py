"""The spectral noise network against the paper's LoRA, with equal training pictures: gain, exact KL, size and cost.

python -m experiments.spectral --output-dir runs/spectral
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from experiments.base import COLUMNS, Bench, Seeded, main, pooled, table
from hypernoise.adapters import load_adapter, read_weights
from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.errors import InputError
from hypernoise.generators.registry import load_as
from hypernoise.methods.best_of_n import Plain
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.draws import DIAGNOSIS_STEP, keyed_noise
from hypernoise.noise.settings import Spectral as Settings
from hypernoise.pipeline import attach, detach, disabled
from hypernoise.prompts import spread
from hypernoise.settings import Count

SHOWN = {  # in addition to the columns of every experiment
    "parameters": ("parameters", ",d"),
    "whole KL": ("whole_kl", ".2f"),
    "±": ("whole_kl_error", ".2f"),
    "s a step": ("seconds_per_step", ".3f"),
    "attached, 1 step": ("overhead_1", "+.1%"),
    "attached, 4 steps": ("overhead_4", "+.1%"),
}


@dataclass(frozen=True)
class Spectral(Seeded):
    """LoRA and spectral networks of several k, each trained with the recipe's rewards and kl_weight.

    `KL` is what training minimises (½‖f‖² for the LoRA, the exact KL for a spectral network); `whole KL` is measured
    after training on separate noises, by `estimate_kl`. `attached` is the time that `attach` adds
    to one picture of the user's pipeline.
    """

    ks: tuple[int, ...] = (1, 2, 4, 8)
    """Spectral networks' k: lowest frequencies in each direction."""
    width: int = 128
    depth: int = 4
    map: Literal["coupling", "residual"] = "coupling"
    pictures: int = 16384
    """Pictures per training run; 0: as many as in the recipe's."""
    measured: Count = 64
    """Noises to measure the whole KL on."""

    calls: Count = 50
    """Timed pairs of calls of the plain and the attached pipeline."""

    def run(self) -> int:
        if not self.ks:
            raise InputError("--ks takes numbers from 1, such as 2 4")
        variants: dict[str, Settings | None] = {"lora": None}
        variants |= {f"spectral-{k}": Settings(k, self.width, self.depth, self.map) for k in sorted(set(self.ks))}
        bench = self.bench()
        updates = bench.updates(self.pictures)
        folders: dict[str, list[Path]] = {}
        runs: dict[str, list[str]] = {}
        for variant, spectral in variants.items():
            for seed in self.seeds:
                name = f"{variant}-seed{seed}"
                (folder,) = bench.trained(name, bench.config(updates, seed), spectral=spectral).values()
                folders.setdefault(variant, []).append(folder)
                runs.setdefault(variant, []).append(name)
        methods = [
            HyperNoise(folder, name=name)
            for variant in variants
            for folder, name in zip(folders[variant], runs[variant], strict=True)
        ]
        found = bench.compare([Plain(), *methods])
        rows = [found.rows[0]]
        for variant, names in runs.items():
            row = pooled(found, variant, 1, names, bench.asked.categories)
            seconds = sum(map(bench.seconds, names)) / len(names)
            more = {"pictures": updates * bench.recipe.train_batch_size, "training_seconds": seconds}
            more |= {"seconds_per_step": seconds / updates, **measured(bench, folders[variant][0], self)}
            rows.append({**row, **more})
        own = table(rows, {"reward": COLUMNS["reward"], **SHOWN})
        return bench.finish(rows, [verdict(row, rows[1]) for row in rows[2:]], notes=[own])


def measured(bench: Bench, folder: Path, settings: Spectral) -> dict[str, Any]:
    """An adapter's size, its whole KL with its standard error, and the cost of attaching it, on a fresh generator."""
    generator, noises = load_as(bench.recipe, device=settings.device), settings.measured
    row: dict[str, Any] = {"parameters": sum(weight.numel() for weight in read_weights(folder).values())}
    prompt = bench.asked.prompts[0]
    attach(generator.pipeline, folder)
    for steps in (1, 4):
        row[f"overhead_{steps}"] = overhead(generator, prompt, steps, settings.calls)
    detach(generator.pipeline)
    network = load_adapter(generator, folder)
    noise = keyed_noise(generator.noise_shape, seed=0, step=DIAGNOSIS_STEP, samples=range(noises)).to(generator.device)
    condition = generator.encode(spread(bench.asked.prompts, noises))
    found = estimate_kl(network, noise, condition).kl
    return row | {"whole_kl": found.value, "whole_kl_error": found.error}


def overhead(generator: Any, prompt: str, steps: int, calls: int) -> float:
    """The relative time that attaching adds to a call for one picture: the median over pairs of calls, one after the
    other, so that other work on the machine affects both."""
    call = generator.call(steps)

    def seconds() -> float:
        began = time.perf_counter()
        generator.pipeline(prompt=prompt, **call)
        return time.perf_counter() - began

    shares = []
    for _ in range(calls + 1):  # the first warms up
        with disabled(generator.pipeline):
            plain = seconds()
        shares.append(seconds() / plain - 1)
    return median(shares[1:])


def verdict(row: dict[str, Any], lora: dict[str, Any]) -> str:
    """The share of the LoRA's gain that a spectral network keeps, and its cost."""
    share = f"{row['gain'] / lora['gain']:.0%} of the LoRA's gain" if lora["gain"] > 0 else "a LoRA that gained nothing"
    size = row["parameters"] / lora["parameters"]
    return (
        f"{row['method']}: {row['gain']:+.3f} ({share}), {size:.1%} of its parameters, "
        f"{row['seconds_per_step'] / lora['seconds_per_step']:.2f} of its time a step, attached "
        f"{row['overhead_1']:+.1%} against {lora['overhead_1']:+.1%} at one step"
    )


if __name__ == "__main__":
    sys.exit(main(Spectral))
