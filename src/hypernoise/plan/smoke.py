"""Runs a recipe at full size with random weights on the current device, without downloading anything.

Its networks are built from the published configurations, two steps are trained and a picture is drawn through `attach`.
Text encoders are not run: a tensor of their size replaces their weights, and random numbers their outputs.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from hypernoise.errors import InputError, no_traceback
from hypernoise.generators.diffusion import quiet
from hypernoise.generators.loading import Loading
from hypernoise.pipeline import attach, detach
from hypernoise.plan.models import WithoutText, planned_rewards
from hypernoise.plan.plan import gigabytes
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.training.config import Recipe
from hypernoise.training.loop import train
from hypernoise.training.observers import peak_memory

STEPS = 2
BLOCK = 2**20  # random numbers, which are repeated: drawing billions takes minutes on a CPU
PROMPTS = ["a red ring", "two blue crosses"]

empty = partial(init_empty_weights, include_buffers=False)  # buffers hold positions etc.


def smoke_test(recipe: Recipe, place: torch.device, planned: int) -> dict[str, Any]:
    """Trains and draws; prints a line per part, and returns the measurements.

    Args:
        planned: the plan's peak in bytes, to compare.

    Raises:
        InputError: the error, and the part that failed.
    """
    dtype, before = resolve(recipe.mixed_precision, place).dtype, peak_memory(place) or 0
    with no_traceback("the smoke test failed at building the networks"):
        generator = random_generator(recipe, dtype, place)
        pipeline, preset = generator.pipeline, generator.preset
        text = generator.text_parameters if recipe.memory.text_encoders == "stay" else 0
        standing_in = torch.zeros(text, dtype=dtype, device=place)
        network = recipe.build_network(generator)
        rewards = planned_rewards(recipe.rewards, recipe.validation_reward, recipe.reward_settings(), empty)
        for reward in rewards.parts:
            fill(reward, place)
    config = dataclasses.replace(
        recipe, max_train_steps=STEPS, lr_warmup_steps=0, kl_limit=0, clipping_limit=0, report_to=(), diagnostics=(),
        validation_steps=STEPS + 1, validation_prompts=(), patience=0,
    )  # fmt: skip

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        return rewards.total(pixels)

    with no_traceback(f"the smoke test failed at {STEPS} training steps"):
        rows = train(generator, network, score, PROMPTS, config, progress=False).history
    peak = (peak_memory(place) or 0) - before  # 0 on Windows, where it is unknown
    seconds = [row["seconds"] for row in rows]
    pace = recipe.train_batch_size / seconds[-1]
    print(f"trained  {STEPS} steps in {', '.join(f'{took:.1f}' for took in seconds)} s, {pace:.3g} images/s")
    print(f"memory   {gigabytes(peak)} at the peak, planned {gigabytes(planned)}: {peak / planned - 1:+.0%}")
    with no_traceback("the smoke test failed at a picture through attach"), quiet(pipeline):
        began = time.perf_counter()
        attach(pipeline, network)
        embeddings = generator.family.arguments(generator.encode(PROMPTS[:1]).tensors)
        pictures = pipeline(**embeddings, **generator.call(max(recipe.inference_steps)), output_type="pt").images
        detach(pipeline)
        drawing = time.perf_counter() - began
    finite = "" if pictures.isfinite().all() else ", not finite"
    print(f"drew     {tuple(pictures.shape)[1:]} in {drawing:.1f} s{finite}")
    doubts = []  # problems of the recipe itself, which random weights do not show
    try:
        read_mix(recipe.prompts)
    except InputError as error:
        doubts.append(f"would fail: {error}")
    if preset.gated:
        doubts.append(f"would fail until you accept the licence at https://huggingface.co/{preset.repository}")
    print("\n".join(f"then     {doubt}" for doubt in doubts or ["no other problem was found"]))
    del standing_in
    return {
        "peak_bytes": peak, "planned_bytes": planned, "step_seconds": seconds,
        "seconds_per_image": drawing, "images_per_second": pace, "doubts": doubts,
    }  # fmt: skip


def random_generator(asked: Loading, dtype: torch.dtype, device: torch.device) -> WithoutText:
    """A published generator with random weights."""
    generator = WithoutText(asked, dtype, empty)
    for part in generator.pipeline.components.values():
        if isinstance(part, nn.Module):
            fill(part, device)
    return generator


def fill(network: nn.Module, device: torch.device) -> None:
    """Random weights on a device, for a network built without: matrices preserve their inputs' scale."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            made = torch.full(weight.shape, 0.0 if "bias" in name else 1.0, dtype=weight.dtype, device=device)
            if weight.ndim > 1:
                for part in made.view(-1).split(BLOCK):
                    part.copy_(block[: len(part)] * weight[0].numel() ** -0.5)
            setattr(module, name, nn.Parameter(made, requires_grad=False))
    network.to(device)  # its buffers
