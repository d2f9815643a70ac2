"""The comparison: methods on the same prompts and noises, and their cost.

Every batch of every method is written when done, under a hash of all settings that determine its numbers. So
a stopped run resumes, an added method costs only itself, several processes share the work, and a batch with
a damaged picture is redrawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypernoise.errors import InputError, check_is
from hypernoise.evaluation.page import as_text, result_tables
from hypernoise.evaluation.records import Judge, Records, keep, measure, picture_file, read, whole
from hypernoise.evaluation.result_rows import result_row
from hypernoise.files import output_folder
from hypernoise.generators.base import Generator, check_generator, check_texts
from hypernoise.methods.base import Method, Problem
from hypernoise.methods.best_of_n import Plain
from hypernoise.noise.draws import EVALUATION_STEP, keyed_noise
from hypernoise.rewards.base import RewardFunction, check_callable
from hypernoise.rewards.ensemble import known_by
from hypernoise.settings import MOST_AT_ONCE, whole_number
from hypernoise.version import __version__


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    rows: one per number of inference steps and method, in summary.json's fields, with gains over plain; empty while
        batches are missing.
    records: by (inference steps, method), the measurements of every picture, and its file with an output folder.
    missing: batches left to other shards.
    """

    rows: list[dict[str, Any]]
    records: dict[tuple[int, str], Records]
    missing: int

    def __str__(self) -> str:
        return as_text(result_tables(self.rows)[0])


def compare(
    generator: Generator,
    methods: Sequence[Method],
    prompts: Sequence[str],
    reward: RewardFunction | None,
    *,
    num_inference_steps: int | Sequence[int] = 1,
    num_images_per_prompt: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    validation_reward: RewardFunction | None = None,
    judge: Judge | None = None,
    categories: Sequence[str] | None = None,
    output: str | Path | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda done: None,
) -> Comparison:
    """Draws every prompt with every method from the same noises, and measures the pictures.

    Args:
        reward: what methods search by, and is reported. None if no method searches. In `output`, rewards and judges
            are identified by names and weights: after a change to their code, use another output.
        num_images_per_prompt: noises per prompt.
        validation_reward: a second reward, reported but not used by any method.
        judge: decides whether a picture shows its prompt; without one there is no score.
        categories: one per prompt; the score is the mean over categories. None: all prompts are one category.
        output: where batches and pictures are kept and reused; if None, nothing is kept.
        shard: (k, n): this process draws every n-th batch from the k-th on.
        progress: called with the number of pictures just drawn or reused.

    Raises:
        InputError: no prompt, no method, two methods with the same name, or an invalid shard.
    """
    noises = num_images_per_prompt
    rewards = {"reward": reward, "validation_reward": validation_reward}
    rewards = {name: own for name, own in rewards.items() if own is not None}
    check_generator(generator)
    for name, own in rewards.items():
        check_callable(own, f"the {name.replace('_', ' ')}")
    check_texts(prompts)
    check_is(methods, Sequence, "methods", "a list, such as [Plain(), BestOfN(8)]")
    if not prompts or not methods:
        raise InputError(f"compare needs prompts and methods, not {len(prompts)} and {len(methods)} of them")
    for method in methods:
        check_is(method, Method, "a method", "an instance, such as Plain() or BestOfN(8)")
    whole_number(noises, "num_images_per_prompt", most=MOST_AT_ONCE)
    whole_number(batch_size, "batch_size", most=MOST_AT_ONCE)
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise InputError(f"two methods are called {max(names, key=names.count)!r}; names must be unique")
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"there is no shard {shard[0]}/{shard[1]}; the first of four is 0/4, the last 3/4")
    groups = np.array(categories if categories is not None else ["all"] * len(prompts))
    if len(groups) != len(prompts):
        raise InputError(f"{len(groups)} categories do not fit {len(prompts)} prompts")

    count = len(prompts) * noises
    batches = [range(count)[start : start + batch_size] for start in range(0, count, batch_size)]
    files = [[picture_file(i, noises) for i in batch] for batch in batches]
    counts = [num_inference_steps] if isinstance(num_inference_steps, int) else num_inference_steps
    cases = [(steps, method) for steps in counts for method in methods]
    shared = {
        "version": __version__,
        "generator": generator.describe(),
        "dtype": str(generator.dtype),
        "call": generator.call_settings(),
        "rewards": [known_by(reward), known_by(validation_reward)],
        "judge": known_by(judge),
        "prompts": list(prompts),
        "noises": noises,
        "seed": seed,
        "batch_size": batch_size,
    }
    warm = False
    with nullcontext(output) if output is not None else tempfile.TemporaryDirectory() as place:
        folders = [_folder(Path(place), method, {**shared, "steps": steps}) for steps, method in cases]
        for (steps, method), folder in zip(cases, folders, strict=True):
            problem = Problem(generator, reward, num_inference_steps=steps, seed=seed)
            for number in range(shard[0], len(batches), shard[1]):
                if not whole(folder, number, files[number]):
                    texts = [prompts[i // noises] for i in batches[number]]
                    noise = keyed_noise(generator.noise_shape, seed=seed, step=EVALUATION_STEP, samples=batches[number])
                    noise = noise.to(generator.device)
                    if not warm:  # a process's first calls are slow, and would count for its first method
                        measure(Plain().generate(problem, texts, noise).pixels, texts, rewards, None)
                        warm = True
                    result = method.generate(problem, texts, noise)
                    keep(folder, number, result, measure(result.pixels, texts, rewards, judge), files[number])
                progress(len(files[number]))
        others = [number for number in range(len(batches)) if number % shard[1] != shard[0]]
        missing = sum(not whole(folder, number, files[number]) for folder in folders for number in others)
        if missing:
            return Comparison([], {}, missing)
        found = {
            (steps, method.name): read(folder, len(batches), noises)
            for (steps, method), folder in zip(cases, folders, strict=True)
        }
    rows = [
        result_row(name, steps, [own], found.get((steps, Plain().name)), groups) for (steps, name), own in found.items()
    ]
    if output is None:
        found = {key: dataclasses.replace(records, files=[]) for key, records in found.items()}
    return Comparison(rows, found, 0)


def _folder(output: Path, method: Method, shared: dict[str, Any]) -> Path:
    """The folder of one method, named by a hash of the settings that determine its numbers."""
    known = json.dumps({**shared, "method": method.settings()}, sort_keys=True)
    return output_folder(output / "methods" / f"{method.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}")
