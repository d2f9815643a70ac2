"""The estimates that a plan shows: as asked, with each memory option, and for drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from hypernoise.generators.memory import Memory
from hypernoise.planning.estimate import Estimate, Planned, estimate, meta_network, planned_generator
from hypernoise.rewards.clip import CLIPS
from hypernoise.rewards.ensemble import NETWORKS, members_of
from hypernoise.training.config import Recipe

IMAGE_REWARD = 303_301_632 + 141_977_088  # BLIP ViT-L and its text encoder; the head has less than a million more


@dataclass(frozen=True)
class Plans:
    """training: by option; drawing: one picture in `steps`; overhead: of one extra call, by number of steps."""

    training: dict[str, Estimate]
    drawing: Estimate
    steps: int
    overhead: dict[int, float]


def plan_generator(recipe: Recipe, **memory: Any) -> Planned:
    """A recipe's generator without data, with other memory options than the recipe's if named."""
    return planned_generator(
        recipe.generator,
        dtype=getattr(torch, recipe.dtype),
        size=recipe.size,
        memory=dataclasses.replace(Memory(recipe.checkpointing, recipe.decode_slice), **memory),
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
    training: dict[str, Estimate] = {}
    for name, memory in options.items():
        training[name] = _train(recipe, plan_generator(recipe, **memory), batch)
    asked = training["as in the recipe"]
    planned = plan_generator(recipe)
    if recipe.accumulation < recipe.batch_size:
        training[f"accumulation: {recipe.batch_size}"] = _train(recipe, planned, 1)
    if recipe.text_encoders == "stay":
        training["text_encoders: drop"] = _without(asked, "text encoders")
    for kind, bits in (("int8", 8), ("nf4", 4)):
        if recipe.quantise == "none" and bits < 8 * planned.generator.dtype.itemsize:
            less = asked.parts["denoiser"] * (1 - bits / (8 * planned.generator.dtype.itemsize))
            training[f"quantise: {kind}"] = _without(asked, "denoiser", round(less))
    network = meta_network(planned, rank=recipe.rank, alpha=recipe.alpha, dtype=planned.generator.dtype)
    steps = planned.preset.steps
    drawing = estimate(planned, network, batch=1, steps=steps, training=False)
    f, g, d = (drawing.flops[name] for name in ("noise network", "generator", "decoder"))
    overhead = {n: f / (n * g / steps + d) for n in sorted({1, 4, steps})}
    return Plans(training, drawing, steps, overhead)


def planned_peak(recipe: Recipe) -> int:
    """Bytes at the peak of training as the recipe has it."""
    return _train(recipe, plan_generator(recipe), recipe.batch_size // recipe.accumulation).peak


def _train(recipe: Recipe, planned: Planned, batch: int) -> Estimate:
    network = meta_network(planned, rank=recipe.rank, alpha=recipe.alpha, dtype=planned.generator.dtype)
    found = estimate(
        planned,
        network,
        batch=batch,
        steps=max(recipe.step_counts),
        optimizer=recipe.optimizer,
        weight_bits={"none": None, "int8": 8, "nf4": 4}[recipe.quantise],
    )
    network.remove()
    return found if recipe.text_encoders == "stay" else _without(found, "text encoders")


def _without(found: Estimate, part: str, less: int | None = None) -> Estimate:
    taken = found.parts[part] if less is None else less
    return dataclasses.replace(found, parts={**found.parts, part: found.parts[part] - taken})


def reward_parameters(weights: Mapping[str, float]) -> dict[str, int | None]:
    """Parameters of the rewards that are networks; None where the plan does not know them."""
    counts: dict[str, int | None] = {}
    for name in members_of(weights):
        if name in CLIPS:
            with torch.device("meta"):
                model = CLIPModel(CLIPConfig(**CLIPS[name].config))
            counts[name] = sum(p.numel() for p in model.parameters())
        elif name in NETWORKS:
            counts[name] = IMAGE_REWARD if name == "imagereward" else None
    return counts
