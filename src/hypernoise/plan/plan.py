"""What a recipe needs: parameters, memory and arithmetic, without downloading anything.

    print(table(plan(read_recipe("recipes/sd-turbo.yaml"))))

The real classes are built from their configurations on the meta device, and the training step itself runs on them,
through the pipeline's own call: memory and arithmetic are counted, not modelled. A few pictures are traced, part by
part (noise network, generator, decoder, rewards; then backwards), and a part's cost grows with the number of pictures,
so one trace covers any batch, and decoding in slices. Not included are rewards that are not counted, kernel
workspaces and the framework's own few hundred MB.
"""

from __future__ import annotations

import itertools
import operator
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from torch import nn

from hypernoise.errors import InputError, no_traceback
from hypernoise.generators.loading import Loading, Memory
from hypernoise.generators.presets import Preset
from hypernoise.noise.base import kl_of
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise
from hypernoise.plan.models import META, PlannedRewards, WithoutText, count, meta_network, planned_rewards
from hypernoise.plan.trace import Part, moved, tracing
from hypernoise.precision import resolve
from hypernoise.settings import changed, launched
from hypernoise.training.config import LoRA, Recipe

TRACED = 2  # pictures: with one, torch would skip copies that a batch needs
OPTIMIZER_BYTES = {"sgd": 4, "adamw": 8}  # of state, per fp32 parameter
ROOM = 15 / 16  # share of the memory to plan for; the rest is for what a plan omits


@dataclass(frozen=True)
class Plan:
    """A recipe's parameters, and the cost of one of its accumulation steps. Memory in bytes.

    frozen, trained, rewards: parameters, by network, in all, and by name (None if not counted).
    parts: weights by network, the trained part (weights, gradients, optimiser), and the activations at the peak.
    flops: floating-point operations, by part.
    """

    recipe: Recipe
    preset: Preset
    size: tuple[int, int]
    precision: str
    frozen: dict[str, int]
    trained: int
    rewards: dict[str, int | None]
    parts: dict[str, int]
    flops: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def overhead(self) -> dict[int, float]:
        """The relative cost that the noise network adds to drawing, by number of inference steps."""
        f, g, d = (self.flops[name] for name in ("noise network", "generator", "decoder"))
        return {n: f / (n * g / max(self.recipe.inference_steps) + d) for n in sorted({1, 4, self.preset.steps})}

    @property
    def revision(self) -> str:
        """The revision to load: the requested one, the pinned one, or the newest."""
        return self.recipe.revision or self.preset.revision or "main (the newest; none is pinned)"


def plan(recipe: Recipe, device: torch.device = META) -> Plan:
    """Runs a recipe's training step without data; `device` resolves `mixed_precision: auto`.

    Raises:
        InputError: a generator that is neither a preset nor a directory of one of diffusers' own pipelines.
    """
    precision, memory = resolve(recipe.mixed_precision, device), recipe.memory
    width = precision.dtype.itemsize
    saving = Memory(gradient_checkpointing=memory.gradient_checkpointing)
    drawn = {name: getattr(recipe, name) for name in ("generator", "height", "width", "max_sequence_length")}
    network = recipe.lora if recipe.noise_network == "lora" else recipe.spectral
    scored = tuple(recipe.rewards), tuple(recipe.validation_reward), recipe.reward_settings()
    with no_traceback(f"generator {recipe.generator!r} cannot be planned"):
        asked, steps = Loading(**drawn, memory=saving), max(recipe.inference_steps)
        generator, f, rewards, traced = _traced(asked, precision.dtype, network, steps, scored)

    denoiser, vae, text = generator.denoiser, generator.pipeline.vae, generator.text_parameters
    frozen = {"denoiser": count(denoiser), "autoencoder": count(vae), "text encoders": text}
    parts = {
        "denoiser": frozen["denoiser"] * width,
        "autoencoder": sum(tensor.nbytes for tensor in [*vae.parameters(), *vae.buffers()]),
        "text encoders": text * width if memory.text_encoders == "stay" else 0,
    }
    if rewards.parts:
        parts["rewards"] = sum(weight.nbytes for network in rewards.parts for weight in network.parameters())
    trainable = f.trainable_parameters()
    number, own = sum(p.numel() for p in trainable), trainable[0].dtype.itemsize
    parts["trained: weights"] = number * (max(4, own) + (own if own < 4 else 0))  # autocast keeps its casts
    parts["trained: gradients"] = number * max(4, own)
    parts["trained: optimiser"] = parts["trained: gradients"] * OPTIMIZER_BYTES[recipe.optimizer] // 4

    batch = recipe.samples_per_round()
    so_far = parts["activations"] = 0
    for name, part in traced.items():  # in order
        at_once = min(memory.decode_slice or batch, batch) if name == "decoder" else batch
        so_far += part.kept * batch // TRACED
        peak = so_far + max(part.forward, part.backward) * at_once // TRACED
        parts["activations"] = max(parts["activations"], peak)
    flops = {name: part.flops * batch // TRACED for name, part in traced.items()}
    flops["backward"] = sum(part.flops_back for part in traced.values()) * batch // TRACED
    return Plan(
        recipe=recipe, preset=generator.preset, size=generator.size, precision=precision.line, frozen=frozen,
        trained=number, rewards={name: own and count(own) for name, own in rewards.networks.items()},
        parts=parts, flops=flops,
    )  # fmt: skip


@cache
def _traced(
    asked: Loading, dtype: torch.dtype, network: LoRA | Spectral, steps: int, scored: tuple[Any, ...]
) -> tuple[WithoutText, LoRANoise | SpectralNoise, PlannedRewards, dict[str, Part]]:
    """A generator, a noise network and rewards, and the parts of a step with this many denoiser calls per picture."""
    generator = WithoutText(asked, dtype)
    f, rewards = meta_network(generator, network), planned_rewards(*scored)
    trained = f.trainable_parameters()
    for parameter in trained:  # their gradients count as trained memory: allocated in advance, in the layers' dtype
        parameter.grad = torch.empty_like(parameter)
    computed = torch.float32 if trained[0].dtype.itemsize < 4 else trained[0].dtype
    noise = torch.zeros(TRACED, *generator.noise_shape, dtype=computed)
    condition = generator.encode([""] * TRACED)
    with tracing() as live:
        residual = f(noise, condition)
        nats = kl_of(f, noise, condition, residual).mean()
        improved = noise + residual
        live.end("noise network")

        def decode(module: nn.Module, arguments: Any) -> None:
            hook.remove()  # it may be called once for each slice
            live.end("generator")
            arguments[0].register_hook(lambda gradient: live.end_back("decoder"))

        hook = generator.pipeline.vae.decoder.register_forward_pre_hook(decode)
        pixels = generator.sample(improved, condition, num_inference_steps=steps)
        live.end("decoder")
        improved.register_hook(lambda gradient: live.end_back("generator"))
        pixels = pixels.to(computed)
        score = rewards.total(pixels).mean()
        if rewards.scores:
            live.end("rewards")
            pixels.register_hook(lambda gradient: live.end_back("rewards"))
        (nats + moved(score, "cpu")).backward()
        live.end_back("noise network")
    for parameter in trained:
        parameter.grad = None
    return generator, f, rewards, live.parts


def table(found: Plan) -> str:
    """A plan as text."""
    recipe, preset, batch = found.recipe, found.preset, found.recipe.samples_per_round()
    frozen = [f"{name} {_millions(count)}" for name, count in found.frozen.items()]
    rewards = [f"{name} {_millions(count) if count else 'not counted'}" for name, count in found.rewards.items()]
    parts = [f"{name} {gigabytes(size)}" for name, size in found.parts.items()]
    flops = [f"{name} {count / batch / 1e12:.3g}" for name, count in found.flops.items()]
    overhead = [f"+{100 * share:.2g} % at {steps}" for steps, share in found.overhead.items()]
    network = f"rank {recipe.lora.rank}" if recipe.noise_network == "lora" else f"spectral, k = {recipe.spectral.k}"
    lines = {
        "weights": f"{preset.repository}, revision {found.revision}" if preset.repository else "",
        "licence": f"accept it first at https://huggingface.co/{preset.repository}" if preset.gated else "",
        "parameters": f"trained: {_millions(found.trained)}; frozen: {', '.join(frozen)}",
        "training": f"{gigabytes(found.peak)} at the peak: {', '.join(parts)}",
        "arithmetic": f"TFLOP per picture in training: {', '.join(flops)}",
        "overhead": f"of the noise network in drawing, by inference steps: {', '.join(overhead)}",
        "rewards": ", ".join(rewards) or "no networks",
    }
    return "\n".join([
        f"{recipe.generator} at {found.size[1]} x {found.size[0]}, {found.precision}; "
        f"{recipe.train_batch_size} pictures per step, {batch} at once; {network}",
        *(f"{name:<13}{line}" for name, line in lines.items() if line),
    ])  # fmt: skip


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.1f} MB"


SAVINGS = (  # for --fit, the cheapest in time first, each in addition
    ("memory.gradient_checkpointing", True),
    ("memory.decode_slice", 1),
    ("reward_dtype", "bfloat16"),
    ("memory.text_encoders", "offload"),
)


def fitted(recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
    """The recipe with the first settings whose plan fits, and a line that names them; unchanged without a `fit`.

    Args:
        device: the one to plan for, and that `fit: auto` refers to.

    Raises:
        InputError: a `fit` that is neither auto nor a size, or that no settings reach; the errors of `plan`.
    """
    fit = recipe.memory.fit
    if not fit:
        return recipe, ""
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB)?", fit, re.IGNORECASE)
    if fit != "auto" and not size:
        raise InputError(f"memory.fit must be auto or a size such as 24GB, not {fit!r}")
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    limit = ROOM * (float(size[1]) * 1e9 if size else card.total_memory if card else psutil.virtual_memory().total)
    batch, own = recipe.train_batch_size // launched()[1], recipe.gradient_accumulation_steps  # of one process
    rounds = [n for n in range(own, batch + 1) if batch % n == 0]
    savings = [(name, value) for name, value in SAVINGS if operator.attrgetter(name)(recipe) != value]
    least = float("inf")
    for number, accumulation in itertools.product(range(len(savings) + 1), rounds):
        changes = {"gradient_accumulation_steps": accumulation} if accumulation != own else {}
        changes |= dict(savings[:number])
        peak = plan(changed(recipe, {"train_batch_size": batch, **changes}), device).peak
        least = min(least, peak)
        if peak <= limit:
            names = ", ".join(f"{name} {value}" for name, value in changes.items()) or "nothing changed"
            line = f"fit {fit}: {names}; planned at {gigabytes(peak)} of at most {gigabytes(limit)}"
            return changed(recipe, changes), line
    raise InputError(
        f"memory.fit: {fit} leaves {gigabytes(limit)} for the plan, but {recipe.generator} "
        f"needs {gigabytes(least)}, even one picture at a time with all savings; lower lora.rank, or name "
        "smaller rewards"
    )
