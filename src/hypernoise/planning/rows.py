"""The estimates that a plan shows: as asked, with each memory option, and for drawing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from hypernoise.errors import InputError
from hypernoise.generators.memory import Memory
from hypernoise.noise.lora import LoRANoise
from hypernoise.planning.estimate import Estimate, Planned, estimate, meta_network, planned_generator, quantising_saves
from hypernoise.planning.rewards import PlannedRewards, planned_rewards
from hypernoise.precision import resolve
from hypernoise.rewards.base import RewardSettings
from hypernoise.training.config import Recipe


@dataclass(frozen=True)
class Plans:
    """training: by option; drawing: one picture in `steps`; overhead: of one extra call, by number of steps."""

    training: dict[str, Estimate]
    rewards: PlannedRewards
    drawing: Estimate
    steps: int
    overhead: dict[int, float]


def plan_generator(recipe: Recipe, **memory: Any) -> Planned:
    """A recipe's generator without data, with other memory options than the recipe's if named."""
    return planned_generator(
        recipe.generator,
        dtype=resolve(recipe.mixed_precision, torch.device("meta")).dtype,
        size=recipe.size,
        memory=dataclasses.replace(
            Memory(recipe.checkpointing, recipe.decode_slice, tiny_decoder=recipe.tiny_decoder), **memory
        ),
    )


def plan_rows(recipe: Recipe) -> Plans:
    """Runs the training step without data as the recipe has it, then with each option it does not use."""
    batch = recipe.batch_size // recipe.accumulation
    options: dict[str, dict[str, Any]] = {"as in the recipe": {}}
    if not recipe.checkpointing:
        options["checkpointing: true"] = {"checkpointing": True}
    if not recipe.decode_slice and batch > 1:
        options["decode_slice: 1"] = {"decode_slice": 1}
    if not (recipe.checkpointing or recipe.decode_slice) and batch > 1:
        options["both"] = {"checkpointing": True, "decode_slice": 1}
    planned, rewards = plan_generator(recipe), plan_rewards(recipe)
    tiny = planned.preset.tiny_decoder
    if tiny and not recipe.tiny_decoder:
        options[f"tiny_decoder: {tiny}"] = {"tiny_decoder": tiny}
    training: dict[str, Estimate] = {}
    for name, memory in options.items():
        training[name] = _train(recipe, plan_generator(recipe, **memory), rewards, batch)
    asked = training["as in the recipe"]
    if recipe.accumulation < recipe.batch_size:
        training[f"accumulation: {recipe.batch_size}"] = _train(recipe, planned, rewards, 1)
    if rewards.score is not None and not recipe.reward_checkpointing:
        less = plan_rewards(dataclasses.replace(recipe, reward_checkpointing=True))
        training["reward_checkpointing: true"] = _train(recipe, planned, less, batch)
    if rewards.bytes and recipe.reward_dtype == "float32":
        less = plan_rewards(dataclasses.replace(recipe, reward_dtype="bfloat16"))
        training["reward_dtype: bfloat16"] = _train(recipe, planned, less, batch)
    if recipe.text_encoders == "stay":
        training["text_encoders: drop"] = _without(asked, "text encoders")
    network = planned_network(recipe, planned)
    for kind, bits in (("int8", 8), ("nf4", 4)):
        if recipe.quantise == "none":
            training[f"quantise: {kind}"] = _without(asked, "denoiser", quantising_saves(network, bits))
    steps = planned.preset.steps
    drawing = estimate(planned, network, batch=1, steps=steps, training=False)
    f, g, d = (drawing.flops[name] for name in ("noise network", "generator", "decoder"))
    overhead = {n: f / (n * g / steps + d) for n in sorted({1, 4, steps})}
    return Plans(training, rewards, drawing, steps, overhead)


def planned_peak(recipe: Recipe) -> int:
    """Bytes at the peak of training as the recipe has it."""
    batch = recipe.batch_size // recipe.accumulation
    return _train(recipe, plan_generator(recipe), plan_rewards(recipe), batch).peak


def plan_rewards(recipe: Recipe) -> PlannedRewards:
    """A recipe's rewards without data; none of their memory counts if they are on another device."""
    settings = RewardSettings(dtype=recipe.reward_dtype, checkpointing=recipe.reward_checkpointing)
    found = planned_rewards(recipe.rewards, recipe.watched, settings)
    return dataclasses.replace(found, bytes=0, score=None) if recipe.reward_device else found


def planned_network(recipe: Recipe, planned: Planned) -> LoRANoise:
    """A recipe's noise network on the planned generator, without data.

    Raises:
        InputError: a spectral one.
    """
    if recipe.noise_network != "lora":
        raise InputError(
            f"hypernoise plan counts LoRA noise networks, not noise_network: {recipe.noise_network}, which calls no "
            "denoiser; the plan with noise_network: lora is more than it takes"
        )
    return meta_network(
        planned, rank=recipe.rank, alpha=recipe.alpha, dtype=planned.generator.dtype, layers=recipe.layers
    )


def _train(recipe: Recipe, planned: Planned, rewards: PlannedRewards, batch: int) -> Estimate:
    network = planned_network(recipe, planned)
    found = estimate(
        planned,
        network,
        batch=batch,
        steps=max(recipe.step_counts),
        optimizer=recipe.optimizer,
        weight_bits={"none": None, "int8": 8, "nf4": 4}[recipe.quantise],
        rewards=rewards,
    )
    network.remove()
    return found if recipe.text_encoders == "stay" else _without(found, "text encoders")


def _without(found: Estimate, part: str, less: int | None = None) -> Estimate:
    taken = found.parts[part] if less is None else less
    return dataclasses.replace(found, parts={**found.parts, part: found.parts[part] - taken})
