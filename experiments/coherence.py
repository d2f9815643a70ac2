"""How far a reward's gradient stays coherent: whether there is a direction for a noise network to learn.

    python -m experiments.coherence --output-dir runs/coherence --on scenes eyes

A noise network is a smooth function of noise and prompt. If the reward's gradient in the noise changes direction
within a short distance, training mostly averages over noise, however much a search can gain.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypernoise as hn
from experiments.base import main, table
from experiments.eyes import COLOURS, Bench, Eyes
from hypernoise.evaluation.summary import write_summary
from hypernoise.files import output_folder
from hypernoise.generators.base import Generator
from hypernoise.noise.draws import DIAGNOSIS_STEP, keyed_noise
from hypernoise.prompts import read_prompts
from hypernoise.settings import Count

DISTANCES = (0.1, 0.3, 1.0)

Reward = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class Coherence:
    """Compares the reward's gradients at a noise and at nearby noises.

    A noise at distance s is (x + s·e) / √(1 + s²), e ~ N(0, I): as likely as x itself.
    """

    output_dir: Path = Path("runs/coherence")
    on: tuple[str, ...] = ("scenes",)
    """scenes: the embedded generator and reward; a pipeline directory that draws the same world, with that reward;
    eyes: the painted eyes, whose wheels `experiments.eyes` names."""
    prompts: Count = 24
    """Number of evenly spaced training captions. For the eyes: all eight colours."""
    noises: Count = 32
    """Noises per prompt."""
    seed: int = 0

    def run(self) -> int:
        output_folder(self.output_dir)
        rows = []
        for name in self.on:
            if name == "eyes":
                bench = Bench.load(Eyes(self.output_dir))
                case = bench.generator, bench.reward, COLOURS
            else:
                captions = read_prompts("scenes")
                case = hn.load_generator(name), hn.load_reward("scenes"), captions[:: len(captions) // self.prompts]
            rows.append({"method": name, **coherence(*case, noises=self.noises, seed=self.seed)})
        write_summary(self.output_dir, "python -m experiments.coherence", self, "cpu", rows)
        headings = {f"cosine at {distance:g} [95 %]": (f"cosine_{distance:g}", ".3f") for distance in DISTANCES}
        print(table(rows, {"median ‖∇‖": ("norm", ".2f"), **headings}))
        return 0


def coherence(
    generator: Generator, reward: Reward, prompts: Sequence[str], *, noises: int, seed: int = 0
) -> dict[str, Any]:
    """The median norm of the reward's gradient in the noise, and the mean cosine between gradients at noises and
    at noises at each of DISTANCES, with 95 % intervals over prompts."""
    norms, cosines = [], {distance: [] for distance in DISTANCES}
    for number, prompt in enumerate(prompts):
        samples = range(number * noises, (number + 1) * noises)
        x, e = (
            keyed_noise(generator.noise_shape, seed=seed, step=DIAGNOSIS_STEP + way, samples=samples) for way in (0, 1)
        )
        here = gradient(generator, reward, prompt, x)
        norms.append(here.norm(dim=1))
        for distance, found in cosines.items():
            there = gradient(generator, reward, prompt, (x + distance * e) / (1 + distance**2) ** 0.5)
            found.append(torch.cosine_similarity(here, there, dim=1).mean())
    row: dict[str, Any] = {"norm": torch.cat(norms).median().item(), "prompts": len(prompts), "noises": noises}
    for distance, found in cosines.items():
        values = torch.stack(found)
        row[f"cosine_{distance:g}"] = mean = values.mean().item()
        if len(values) > 1:
            error = 1.96 * values.std().item() / len(values) ** 0.5
            row[f"cosine_{distance:g}_ci95"] = [mean - error, mean + error]
    return row


def gradient(generator: Generator, reward: Reward, prompt: str, noise: Tensor) -> Tensor:
    """d reward / d noise of each sample, [B, d]."""
    noise = noise.to(generator.device).requires_grad_()
    prompts = [prompt] * len(noise)
    scores = reward(generator.sample(noise, generator.encode(prompts)), prompts)
    return torch.autograd.grad(scores.sum(), noise)[0].flatten(1)


if __name__ == "__main__":
    sys.exit(main(Coherence))
