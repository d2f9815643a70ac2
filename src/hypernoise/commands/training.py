"""A recipe, run: load what it names, train, save the adapter. Shared by `train` and `quickstart`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hypernoise.adapters import save_adapter
from hypernoise.commands.common import tell_cut_prompts
from hypernoise.files import output_folder
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_as, pick_device
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import SpectralNoise
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints
from hypernoise.training.config import Recipe
from hypernoise.training.early_stopping import best_stretch, readings
from hypernoise.training.metrics import METRICS
from hypernoise.training.networks import build
from hypernoise.training.processes import launched, leave, own_device, say, say_once
from hypernoise.training.trainer import TrainResult, train
from hypernoise.training.warm_start import warm_start
from hypernoise.training.watch import draw_watched, stretch_warning


@dataclass(frozen=True)
class Trained:
    generator: DiffusionGenerator
    network: LoRANoise | SpectralNoise
    result: TrainResult


def reward_settings(recipe: Recipe) -> RewardSettings:
    """How a recipe wants its rewards to run. InputError for a device that does not exist."""
    if recipe.reward_device:
        pick_device(recipe.reward_device)
    return RewardSettings(
        recipe.long_prompts, recipe.reward_dtype, recipe.reward_device, checkpointing=recipe.reward_checkpointing
    )


def train_recipe(recipe: Recipe, output: Path, device: str) -> Trained:
    """Trains as the recipe says and writes `output`/adapter; all input is checked before anything is written."""
    settings = reward_settings(recipe)
    reward = WeightedSum(recipe.rewards, settings=settings, normalise=recipe.normalise_rewards)
    watched = WeightedSum(recipe.watched, settings=settings) if recipe.watched else None
    prompts = read_mix(recipe.prompts)
    place, sharded = own_device(device), recipe.shard_base != "none"
    precision = resolve(recipe.mixed_precision, pick_device(place))  # which "auto" would not be of weights on their way
    recipe = dataclasses.replace(recipe, mixed_precision=precision.name)
    generator = load_as(recipe, device="cpu" if sharded else place)
    for steps in recipe.step_counts:
        generator.check_steps(steps)
    generator.check_prompts(list(prompts))
    output_folder(output)
    say_once(precision.line)
    network = build(recipe, generator)
    if sharded and isinstance(network, LoRANoise):
        from hypernoise.training.sharding import shard_base  # not every build of torch has it

        shard_base(network, recipe.shard_base, pick_device(place))
    generator.encode_ahead(list(prompts))
    if recipe.warm_rounds and isinstance(network, LoRANoise) and not checkpoints(output):
        rounds = warm_start(
            network,
            reward,
            prompts,
            recipe,
            rounds=recipe.warm_rounds,
            samples=recipe.warm_samples,
            step=recipe.warm_step,
            progress=launched()[0] == 0,
        )
        say("warm start: reward " + " -> ".join(f"{row['reward']:.4f}" for row in rounds))
    result = train(generator, network, reward, prompts, recipe, watched=watched, output=output)
    if launched()[0] == 0:
        tell_cut_prompts(reward)
    if result.parted:
        say(parted_line(output, result.step, recipe.patience))
    if result.finished and launched()[0] == 0:
        if draw_watched(output, output / "lipschitz.png"):
            say(f"watched: {output / 'lipschitz.png'}")
        warning = stretch_warning(output)
        if warning:
            say(warning)
        training = {"steps": result.step, "rewards": recipe.rewards, "kl_weight": recipe.kl_weight}
        save_adapter(network, output / "adapter", generator=generator, training=training)
    elif not result.finished:
        say(f"stopped at step {result.step}, saved in {result.checkpoint}; the same command goes on from there")
    leave()
    return Trained(generator, network, result)


def parted_line(output: Path, step: int, patience: int) -> str:
    """What is said of a run that has ended early."""
    best = best_stretch(readings(output / METRICS, step), patience)
    return (
        f"ended early at step {step}: the watched reward has fallen since about step {best.step} while "
        "the trained one has not; the pictures please the trained reward alone"
    )
