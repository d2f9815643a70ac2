"""Runs a recipe at full size with random weights on the current device, without downloading anything.

Its networks are built from the published configurations, two steps are trained and a picture is drawn through `attach`.
Text encoders are not run: a tensor of their size replaces their weights, and random numbers their outputs.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from hypernoise.errors import InputError, first_line, out_of_memory
from hypernoise.generators.diffusion import quiet
from hypernoise.generators.memory import Memory
from hypernoise.generators.presets import Preset
from hypernoise.generators.registry import pick_device
from hypernoise.pipeline import attach, detach
from hypernoise.plan.models import Published, WithoutText, assembled, planned_rewards, published
from hypernoise.plan.plan import gigabytes, plan
from hypernoise.precision import resolve
from hypernoise.prompts import read_mix
from hypernoise.training.config import Recipe
from hypernoise.training.loop import train
from hypernoise.training.observers import peak_memory

STEPS = 2
PROMPTS = ["a red ring", "two blue crosses"]
BLOCK = 2**20  # random numbers, which are repeated: drawing billions would take minutes

empty = partial(init_empty_weights, include_buffers=False)  # buffers hold positions etc.


def smoke_test(recipe: Recipe, device: str) -> dict[str, Any]:
    """Trains and draws; prints a line per part, and returns the measurements.

    Raises:
        InputError: the error, and the part that failed.
    """
    place = pick_device(device)
    elsewhere = pick_device(recipe.reward_device) if recipe.reward_device else place
    planned = plan(recipe, place)
    dtype = resolve(recipe.mixed_precision, place).dtype
    expected, before = planned.training.peak, _held(place)
    found, memory = published(recipe.generator, recipe.max_sequence_length), recipe.memory
    doubts = _doubts(recipe, found.preset)
    with _part("building the networks"):
        text = found.text_parameters if memory.text_encoders == "stay" else 0
        standing_in = torch.zeros(text, dtype=dtype, device=place)
        generator = random_generator(found, dtype, place, recipe.size, memory)
        pipeline = generator.pipeline
        network = recipe.build_network(generator)
        rewards = planned_rewards(recipe.rewards, recipe.validation_reward, recipe.reward_settings(), empty)
        for reward in rewards.networks:
            fill(reward, elsewhere)
    print(f"built    {gigabytes(_held(place) - before)} of weights")
    config = dataclasses.replace(
        recipe, max_train_steps=STEPS, lr_warmup_steps=0, kl_limit=0, clipping_limit=0, report_to=(), diagnostics=(),
        validation_steps=STEPS + 1, validation_prompts=(), patience=0,
    )  # fmt: skip

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        brightness = pixels.mean((1, 2, 3))
        return brightness if rewards.score is None else brightness + rewards.score(pixels.to(elsewhere)).to(place)

    with _part(f"{STEPS} training steps"):
        rows = train(generator, network, score, PROMPTS, config, progress=False).history
    peak = (peak_memory(place) or before) - before  # 0 on Windows, where it is unknown
    seconds = [row["seconds"] for row in rows]
    print(f"trained  {STEPS} steps in {', '.join(f'{took:.1f}' for took in seconds)} s")
    print(f"memory   {gigabytes(peak)} at the peak, planned {gigabytes(expected)}: {peak / expected - 1:+.0%}")
    with _part("a picture through attach"), quiet(pipeline):
        began = time.perf_counter()
        attach(pipeline, network)
        steps = max(recipe.inference_steps)
        height, width = generator.size
        embeddings = generator.family.arguments(generator.encode(PROMPTS[:1]).tensors)
        pictures = pipeline(**embeddings, **generator.call(steps), height=height, width=width, output_type="pt").images
        detach(pipeline)
        drawing = time.perf_counter() - began
    finite = bool(pictures.isfinite().all())
    pace = recipe.train_batch_size / seconds[-1]
    print(f"drew     {tuple(pictures.shape)[1:]} in {drawing:.1f} s{'' if finite else ', not finite'}")
    print(f"pace     {pace:.3g} images/s in training")
    print("\n".join(f"then     {doubt}" for doubt in doubts) or "then     no other problem was found")
    del standing_in
    return {
        "peak_bytes": peak,
        "planned_bytes": expected,
        "step_seconds": seconds,
        "seconds_per_image": drawing,
        "images_per_second": pace,
        "doubts": doubts,
    }


def random_generator(
    found: Published, dtype: torch.dtype, device: torch.device, size: tuple[int, int] | None, memory: Memory
) -> WithoutText:
    """A published generator with random weights and without its text encoders."""
    pipeline = assembled(found, dtype, empty)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            fill(part, device)
    memory = dataclasses.replace(memory, text_encoders="stay")  # there are none
    return WithoutText(found, pipeline, dtype, size, memory)


def fill(network: nn.Module, device: torch.device) -> None:
    """Random weights on a device, for a network built without: matrices preserve their inputs' scale."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            made = torch.full(weight.shape, 0.0 if "bias" in name else 1.0, dtype=weight.dtype, device=device)
            if weight.ndim > 1:
                scale = weight[0].numel() ** -0.5
                for part in made.view(-1).split(BLOCK):
                    part.copy_(block[: len(part)] * scale)
            setattr(module, name, nn.Parameter(made, requires_grad=False))
    network.to(device)  # its buffers


def _doubts(recipe: Recipe, preset: Preset) -> list[str]:
    """Problems of the recipe itself that random weights do not show."""
    doubts = []
    try:
        read_mix(recipe.prompts)
    except InputError as error:
        doubts.append(f"would fail: {error}")
    if preset.gated:
        doubts.append(f"would fail until you accept the licence at https://huggingface.co/{preset.repository}")
    return doubts


@contextmanager
def _part(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        why = "out of memory; --fit auto chooses settings that fit" if out_of_memory(error) else first_line(error)
        raise InputError(f"the smoke test failed at {name}: {why}") from error


def _held(device: torch.device) -> int:
    """Bytes in use: on a GPU from torch, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        return peak_memory(device) or 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
