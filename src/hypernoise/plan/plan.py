"""What a recipe needs: parameters, memory and arithmetic, without downloading anything.

    print(table(plan(read_recipe("recipes/sd-turbo.yaml"))))

The real classes are built from their configurations on the meta device, and the training step itself runs on them,
through the pipeline's own call: memory and arithmetic are counted, not modelled. Not included are rewards that are not
counted, kernel workspaces and the framework's own few hundred MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from hypernoise.generators.loading import Loading, Memory
from hypernoise.generators.presets import Preset
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise
from hypernoise.plan.generators import META, Planned, count, planned_generator
from hypernoise.plan.networks import (
    PlannedRewards,
    meta_network,
    packed_parameters,
    parameters_by_kind,
    planned_rewards,
)
from hypernoise.plan.step import TRACED, Part, activations, generator_parts, reward_parts
from hypernoise.precision import resolve
from hypernoise.rewards.base import RewardSettings
from hypernoise.training.config import LoRA, Recipe

WEIGHT_BITS = {"none": None, "int8": 8, "nf4": 4}
OPTIMIZER_BYTES = {"sgd": 4, "adamw": 8}  # of state, per fp32 parameter


@dataclass(frozen=True)
class Estimate:
    """One accumulation step. Memory in bytes.

    parts: weights by network, the trained part (weights, gradients, optimiser), and the activations at the peak.
    kept: tensors for the backward pass, by the part that keeps them.
    """

    parts: dict[str, int]
    kept: dict[str, int]
    flops: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """frozen, trained, rewards: parameters, by network, by kind of layer, and by name (None if not counted)."""

    recipe: Recipe
    preset: Preset
    size: tuple[int, int]
    precision: str
    frozen: dict[str, int]
    trained: dict[str, int]
    rewards: dict[str, int | None]
    training: Estimate

    @property
    def batch(self) -> int:
        """Pictures per accumulation step and process."""
        return self.recipe.train_batch_size // self.recipe.gradient_accumulation_steps

    @property
    def overhead(self) -> dict[int, float]:
        """The relative cost that the noise network adds to drawing, by number of inference steps."""
        f, g, d = (self.training.flops[name] for name in ("noise network", "generator", "decoder"))
        return {n: f / (n * g / max(self.recipe.inference_steps) + d) for n in sorted({1, 4, self.preset.steps})}

    @property
    def revision(self) -> str:
        """The revision to load: the requested one, the pinned one, or the newest."""
        return self.recipe.revision or self.preset.revision or "main (the newest; none is pinned)"


@cache
def _traced(
    asked: Loading, dtype: torch.dtype, network: LoRA | Spectral, steps: int
) -> tuple[Planned, LoRANoise | SpectralNoise, dict[str, Part]]:
    size, tokens = asked.size, asked.max_sequence_length
    planned = planned_generator(asked.generator, dtype=dtype, size=size, tokens=tokens, memory=asked.memory)
    f = meta_network(planned, network)
    return planned, f, generator_parts(planned, f, steps=steps)


@cache
def _rewards(
    trained: tuple[str, ...], measured: tuple[str, ...], settings: RewardSettings, size: tuple[int, int]
) -> tuple[PlannedRewards, dict[str, Part]]:
    found = planned_rewards(trained, measured, settings)
    return found, reward_parts(found.score, size) if found.score else {}


def plan(recipe: Recipe, device: torch.device = META) -> Plan:
    """Runs a recipe's training step without data; `device` resolves a mixed_precision of auto.

    Raises:
        InputError: a generator that is neither a preset nor a directory of one of diffusers' own pipelines.
    """
    precision, memory = resolve(recipe.mixed_precision, device), recipe.memory
    width = precision.dtype.itemsize
    network = recipe.lora if recipe.noise_network == "lora" else recipe.spectral
    steps = max(recipe.inference_steps)
    saving = Memory(gradient_checkpointing=memory.gradient_checkpointing, tiny_decoder=memory.tiny_decoder)
    drawn = {name: getattr(recipe, name) for name in ("generator", "height", "width", "max_sequence_length")}
    asked = Loading(**drawn, memory=saving)
    planned, f, traced = _traced(asked, precision.dtype, network, steps)
    generator, parts = planned.generator, dict(traced)
    settings = RewardSettings(dtype=recipe.reward_dtype, checkpointing=recipe.reward_checkpointing)
    rewards, scoring = _rewards(tuple(recipe.rewards), tuple(recipe.validation_reward), settings, generator.size)

    vae, text = generator.pipeline.vae, planned.found.text_parameters
    frozen = {"denoiser": count(generator.denoiser), "autoencoder": count(vae), "text encoders": text}
    held = {
        "denoiser": frozen["denoiser"] * width,
        "autoencoder": sum(tensor.nbytes for tensor in [*vae.parameters(), *vae.buffers()]),
        "text encoders": text * width if memory.text_encoders == "stay" else 0,
    }
    if bits := WEIGHT_BITS[memory.quantise]:
        held["denoiser"] -= packed_parameters(generator) * (8 * width - bits) // 8
    if rewards.networks and not recipe.reward_device:  # otherwise their memory is elsewhere
        held["rewards"] = sum(weight.nbytes for network in rewards.networks for weight in network.parameters())
        parts |= scoring
    trainable = f.trainable_parameters()
    number, own = sum(p.numel() for p in trainable), trainable[0].dtype.itemsize
    held["trained: weights"] = number * (max(4, own) + (own if own < 4 else 0))  # autocast keeps its casts
    held["trained: gradients"] = number * max(4, own)
    held["trained: optimiser"] = held["trained: gradients"] * OPTIMIZER_BYTES[recipe.optimizer] // 4

    batch = recipe.train_batch_size // recipe.gradient_accumulation_steps
    held["activations"] = activations(parts, batch, memory.decode_slice)
    kept = {name: part.kept * batch // TRACED for name, part in parts.items()}
    flops = {name: part.flops * batch // TRACED for name, part in parts.items()}
    flops["backward"] = sum(part.flops_back for part in parts.values()) * batch // TRACED
    kinds, training = parameters_by_kind(f), Estimate(held, kept, flops)
    return Plan(
        recipe, planned.found.preset, generator.size, precision.line, frozen, kinds, rewards.parameters, training
    )


def table(found: Plan) -> str:
    """A plan as text."""
    recipe, preset = found.recipe, found.preset
    kinds = sorted(found.trained.items(), key=lambda item: -item[1])
    rewards = [f"{name} {_millions(count) if count else 'not counted'}" for name, count in found.rewards.items()]
    flops = [f"{name} {count / found.batch / 1e12:.3g}" for name, count in found.training.flops.items()]
    overhead = [f"+{100 * share:.2g} % at {steps}" for steps, share in found.overhead.items()]
    network = f"rank {recipe.lora.rank}" if recipe.noise_network == "lora" else f"spectral, k = {recipe.spectral.k}"
    lines = [
        f"{recipe.generator} at {found.size[1]} x {found.size[0]}, {found.precision}; "
        f"{recipe.train_batch_size} pictures a step, {found.batch} at once; {network}",
        *([f"weights      {preset.repository}, revision {found.revision}"] if preset.repository else []),
        *([f"licence      accept it first at https://huggingface.co/{preset.repository}"] if preset.gated else []),
        "parameters   frozen: " + ", ".join(f"{name} {_millions(count)}" for name, count in found.frozen.items()),
        f"             trained: {_millions(sum(found.trained.values()))} "
        f"({', '.join(f'{kind} {_millions(count)}' for kind, count in kinds)})",
        f"training     {gigabytes(found.training.peak)} at the peak: {_sizes(found.training.parts)}",
        f"             kept for the gradient by: {_sizes(found.training.kept)}",
        f"arithmetic   TFLOP a picture in training: {', '.join(flops)}",
        f"overhead     of the noise network in drawing, by inference steps: {', '.join(overhead)}",
        f"rewards      {', '.join(rewards) or 'no networks'}"
        + (f", on {recipe.reward_device}: not counted" if recipe.reward_device and rewards else ""),
    ]
    return "\n".join(lines)


def _sizes(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items())


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.1f} MB"
