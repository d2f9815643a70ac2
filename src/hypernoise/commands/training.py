"""Runs a recipe: loads what it names, trains, saves the adapter. Shared by `train` and `quickstart`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypernoise.adapters import save_adapter
from hypernoise.commands.common import tell_cut_prompts
from hypernoise.files import output_folder
from hypernoise.generators.registry import load_as, pick_device
from hypernoise.noise.base import NoiseNetwork, knows_kl, never_folds
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe
from hypernoise.training.early_stopping import readings, stopped_line
from hypernoise.training.loop import TrainResult, train
from hypernoise.training.metrics import rows_of
from hypernoise.training.processes import launched, leave, own_device, say, say_once


def train_recipe(recipe: Recipe, output_dir: Path, device: str) -> TrainResult:
    """Trains a recipe and writes `output_dir`/adapter.

    Raises:
        InputError: settings that do not fit together, before anything is written; `train`'s errors.
    """
    if recipe.memory.fit:
        from hypernoise.plan.plan import fitted

        recipe, chosen = fitted(recipe, device)
        say_once(chosen)
    precision = resolve(recipe.mixed_precision, pick_device(own_device(device)))
    recipe = dataclasses.replace(recipe, mixed_precision=precision.name)  # "auto" would differ on the CPU that loads it
    if recipe.reward_device:
        pick_device(recipe.reward_device)  # raises if it does not exist
    settings = recipe.reward_settings()
    reward = WeightedSum(recipe.rewards, settings=settings)
    validation = WeightedSum(recipe.validation_reward, settings=settings) if recipe.validation_reward else None
    prompts = read_mix(recipe.prompts)
    generator = load_as(recipe, device=own_device(device))
    for steps in recipe.inference_steps:
        generator.check_steps(steps)
    generator.check_prompts([*prompts, *recipe.validation_prompts])
    output_folder(output_dir)
    say_once(precision.line)
    network = recipe.build_network(generator)
    result = train(generator, network, reward, prompts, recipe, validation_reward=validation, output_dir=output_dir)
    if launched()[0] == 0:
        tell_cut_prompts(reward)
        if result.finished:
            rows = rows_of(output_dir)
            if result.stopped_early:
                say(stopped_line(readings(rows), result.step, recipe.patience))
            say(stretch_warning(network, rows))
            training = {"steps": result.step, "rewards": recipe.rewards, "kl_weight": recipe.kl_weight}
            save_adapter(network, output_dir / "adapter", generator=generator, training=training)
        else:
            say(f"stopped at step {result.step}, saved in {result.checkpoint}; the same command resumes from there")
    leave()
    return result


def stretch_warning(network: NoiseNetwork, rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning if the run's Lipschitz constant reached 1, else empty; empty for a network that never folds."""
    seen = [row for row in rows if "lipschitz" in row]
    over = next((row for row in seen if row["lipschitz"] >= 1), None)
    if over is None or never_folds(network):
        return ""
    fear, modes = "the theory does not bound what the KL term leaves out", "penalty or clamp"
    if knows_kl(network):
        fear, modes = "x + f may fold noises onto each other, and its KL is then a lower bound", "penalty"
    return (
        f"Lipschitz constant {over['lipschitz']:.3g} at step {over['step']}, {seen[-1]['lipschitz']:.3g} at the "
        f"end: at 1 or above, {fear}; train with --lipschitz.mode {modes}, or measure it with hypernoise diagnose"
    )
