"""What a generator and a noise network on it will take, before anything is downloaded.

The real classes are built from their configurations on the meta device, and the training step itself runs on them,
through the pipeline's own call: memory and arithmetic are counted, not modelled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from hypernoise.errors import InputError, unknown
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import NO_SAVING, Memory
from hypernoise.generators.presets import PRESETS, Preset
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.planning.configurations import CONFIGURATIONS, Component, Configuration
from hypernoise.planning.memory_trace import Live, from_meta, fused_attention, to_meta
from hypernoise.planning.rewards import PlannedRewards

PROMPT_TOKENS = 128  # assumed of prompts that are not padded to a fixed length


@dataclass(frozen=True)
class Planned:
    """A generator without data: its networks on the meta device, its scheduler real."""

    generator: DiffusionGenerator
    condition: Callable[[int], Condition]
    text_parameters: int
    preset: Preset


def planned_generator(
    source: str, *, dtype: torch.dtype, size: tuple[int, int] | None = None, memory: Memory = NO_SAVING
) -> Planned:
    """The generator of a preset's name or of a pipeline directory, without data.

    Raises:
        InputError: neither a preset nor a pipeline directory.
    """
    preset = PRESETS.get(source)
    if source in CONFIGURATIONS:
        assert preset is not None
        configuration, words = CONFIGURATIONS[source], None
    else:
        folder = Path(source)
        if preset is not None and preset.packaged:
            folder = Path(str(files("hypernoise").joinpath(preset.packaged)))
        if not folder.is_dir():
            raise unknown("generator", source, PRESETS)
        family, configuration, words = _read_folder(folder)
        preset = preset or Preset(family)
    pipeline = _pipeline(preset.family, configuration, dtype, preset.scheduler, memory.tiny_decoder)
    memory = Memory(memory.gradient_checkpointing, memory.decode_slice)  # the rest is reckoned from parameters
    generator = DiffusionGenerator(pipeline, name=source, size=size or preset.size, call=preset.call, memory=memory)
    shapes = _CONDITIONS[preset.family](generator, words)

    def condition(count: int) -> Condition:
        tensors = {
            name: torch.ones(count, *shape, dtype=torch.long if name.endswith("mask") else dtype)
            for name, shape in shapes.items()
        }
        return Condition(tensors)

    return Planned(generator, condition, sum(configuration.text_encoders.values()), preset)


def _read_folder(folder: Path) -> tuple[str, Configuration, int | None]:
    """A saved pipeline's class, its configurations, and its prompts' padded length if its tokenizer says one."""

    def read(file: str) -> dict[str, Any]:
        try:
            return json.loads((folder / file).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not a pipeline directory: {file} cannot be read") from error

    index = read("model_index.json")

    def component(name: str) -> Component:
        config = read(f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json")
        return Component(index[name][1], {k: v for k, v in config.items() if not k.startswith("_")})

    denoiser = "unet" if "unet" in index else "transformer"
    encoders = {n: _encoder_parameters(read(f"{n}/config.json")) for n, v in index.items() if _is_encoder(n, v)}
    words = read("tokenizer/tokenizer_config.json").get("model_max_length")
    configuration = Configuration(component(denoiser), component("vae"), component("scheduler"), encoders)
    return index["_class_name"], configuration, words


def _is_encoder(name: str, value: Any) -> bool:
    return name.startswith("text_encoder") and isinstance(value, list) and value[0] is not None


def _encoder_parameters(config: dict[str, Any]) -> int:
    import transformers

    cls = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        return _count(cls(cls.config_class.from_dict(config)))


def _build(component: Component, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        module = getattr(diffusers, component.cls).from_config(component.config)
    return module.to("meta", dtype)


def _pipeline(
    family: str, configuration: Configuration, dtype: torch.dtype, scheduler: Mapping[str, Any], tiny_decoder: str
) -> Any:
    cls = getattr(diffusers, family, None)
    if cls is None or family not in _CONDITIONS:
        raise InputError(f"a {family} cannot be planned: only diffusers' own classes can ({', '.join(_CONDITIONS)})")
    names = [n for n in cls.__init__.__annotations__ if n not in ("return", "is_distilled")]
    parts: dict[str, Any] = dict.fromkeys(names)
    parts = {n: None for n in parts if n.startswith(("tokenizer", "text_encoder", "safety", "feature", "image_enc"))}
    denoiser = "unet" if "unet" in names else "transformer"
    more = {"requires_safety_checker": False} if family == "StableDiffusionPipeline" else {}
    more |= {"is_distilled": True} if family == "Flux2KleinPipeline" else {}
    schedule = {**configuration.scheduler.config, **scheduler}
    pipeline = cls(
        **parts,
        **more,
        **{denoiser: _build(configuration.denoiser, dtype), "vae": _build(configuration.vae, dtype)},
        scheduler=getattr(diffusers, configuration.scheduler.cls).from_config(schedule),
    )
    if tiny_decoder:
        tiny: Any = _build(_tiny(tiny_decoder, pipeline.vae.config), dtype)
        pipeline.vae = tiny
    pipeline.__class__ = type(cls.__name__, (_OnTheCPU, cls), {})
    network = getattr(pipeline, denoiser)
    network.register_forward_pre_hook(lambda module, a, k: (to_meta(a), to_meta(k)), with_kwargs=True)
    network.register_forward_hook(lambda module, arguments, output: from_meta(output))
    if hasattr(pipeline.vae, "bn"):  # FLUX.2 un-normalises its latents with these statistics, outside the network
        pipeline.vae.bn.to_empty(device="cpu")
    own = pipeline.vae.decode
    pipeline.vae.decoder._hf_hook = SimpleNamespace(execution_device="cpu")  # what pipelines bring its latents to
    pipeline.vae.decode = lambda latents, **keywords: own(to_meta(latents), **keywords)
    return pipeline


def _tiny(source: str, own: Any) -> Component:
    """A tiny decoder's configuration: of a directory, else TAESD's for latents of so many channels."""
    file = Path(source) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {"latent_channels": own.get("latent_channels", 4)}
    return Component("AutoencoderTiny", {k: v for k, v in config.items() if not k.startswith("_")})


class _OnTheCPU:
    """A pipeline whose networks have no data computes its schedule, a few numbers, on the CPU."""

    _execution_device = torch.device("cpu")


# What each family's text encoders give a prompt, by the lengths its pipeline pads to; (generator, its tokenizer's
# length if known) -> shapes by name
_CONDITIONS: dict[str, Callable[[Any, int | None], dict[str, tuple[int, ...]]]] = {
    "StableDiffusionPipeline": lambda g, words: {"prompt_embeds": (words or 77, g.denoiser.config.cross_attention_dim)},
    "StableDiffusionXLPipeline": lambda g, words: {
        "prompt_embeds": (words or 77, g.denoiser.config.cross_attention_dim),
        "pooled_prompt_embeds": (
            g.denoiser.config.projection_class_embeddings_input_dim - 6 * g.denoiser.config.addition_time_embed_dim,
        ),
    },
    "StableDiffusion3Pipeline": lambda g, words: {
        "prompt_embeds": ((words or 77) + 256, g.denoiser.config.joint_attention_dim),
        "pooled_prompt_embeds": (g.denoiser.config.pooled_projection_dim,),
    },
    "SanaSprintPipeline": lambda g, words: {
        "prompt_embeds": (300, g.denoiser.config.caption_channels),
        "prompt_attention_mask": (300,),
    },
    "PixArtAlphaPipeline": lambda g, words: {
        "prompt_embeds": (120, g.denoiser.config.caption_channels),
        "prompt_attention_mask": (120,),
    },
    "FluxPipeline": lambda g, words: {
        "prompt_embeds": (g.call(1).get("max_sequence_length", 512), g.denoiser.config.joint_attention_dim),
        "pooled_prompt_embeds": (g.denoiser.config.pooled_projection_dim,),
    },
    "Flux2KleinPipeline": lambda g, words: {"prompt_embeds": (512, g.denoiser.config.joint_attention_dim)},
    "QwenImagePipeline": lambda g, words: {
        "prompt_embeds": (PROMPT_TOKENS, g.denoiser.config.joint_attention_dim),
        "prompt_embeds_mask": (PROMPT_TOKENS,),
    },
    "ZImagePipeline": lambda g, words: {
        "prompt_embeds": (PROMPT_TOKENS, g.denoiser.config.cap_feat_dim),
        "prompt_embeds_mask": (PROMPT_TOKENS,),
    },
}


@dataclass(frozen=True)
class Estimate:
    """Of one training step or one drawing. Memory in bytes.

    parts: weights by network, what trains (weights, gradients, optimiser), and at the peak the activations.
    kept: what the backward pass needs, by the part that left it; empty for drawing.
    """

    parts: dict[str, int]
    kept: dict[str, int]
    flops: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def lora_parameters(network: LoRANoise) -> dict[str, int]:
    """Parameters that train, by kind of layer: linear, conv, depthwise conv."""
    counts: dict[str, int] = {}
    for layer in network.layers.values():
        base = layer.get_base_layer()
        grouped = getattr(base, "groups", 1) > 1
        kind = "depthwise conv" if grouped else "linear" if isinstance(base, nn.Linear) else "conv"
        counts[kind] = counts.get(kind, 0) + _count(layer.lora_A) + _count(layer.lora_B)
    return counts


def packed_parameters(network: LoRANoise) -> int:
    """How many of the denoiser's weights quantising packs: those of linear layers but for the output layer."""
    linears = [
        module
        for name, module in network.generator.denoiser.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
        if name.removesuffix(".base_layer") != network.output_layer
    ]
    return sum(module.weight.numel() for module in linears)


def quantising_saves(network: LoRANoise, bits: int) -> int:
    """Bytes fewer that the denoiser takes with its packed weights in so many bits."""
    return packed_parameters(network) * (8 * network.generator.dtype.itemsize - bits) // 8


def estimate(
    planned: Planned,
    network: LoRANoise,
    *,
    batch: int,
    steps: int = 1,
    training: bool = True,
    optimizer: str = "adamw",
    weight_bits: int | None = None,
    rewards: PlannedRewards | None = None,
) -> Estimate:
    """One step of training or one drawing of `batch` pictures, run without data.

    Args:
        network: on the planned generator, its LoRA in the dtype that the layers compute in (under autocast, bf16).
        optimizer: "sgd" keeps one number per parameter (momentum), "adamw" two.
        weight_bits: of the denoiser's packed weights (see `packed_parameters`), if it is quantised.
        rewards: what scores the pictures in training; nothing if None.
    """
    generator, weights = planned.generator, {}
    dtype = generator.dtype
    denoiser = [p for n, p in generator.denoiser.named_parameters() if ".lora_" not in n]
    weights["denoiser"] = sum(p.numel() for p in denoiser) * dtype.itemsize
    if weight_bits:
        weights["denoiser"] -= quantising_saves(network, weight_bits)
    weights["autoencoder"] = _bytes(generator.pipeline.vae)
    weights["text encoders"] = planned.text_parameters * dtype.itemsize
    if training and rewards is not None and rewards.bytes:
        weights["rewards"] = rewards.bytes
    trained = network.trainable_parameters()
    trainable = sum(p.numel() for p in trained)
    computed = trained[0].dtype
    copies = computed.itemsize if computed.itemsize < 4 else 0  # autocast keeps its casts for the step
    wide = max(4, computed.itemsize)
    if training:
        weights["trained: weights"] = trainable * (wide + copies)
        weights["trained: gradients"] = trainable * wide
        weights["trained: optimiser"] = trainable * wide * {"sgd": 1, "adamw": 2}[optimizer]
    else:
        weights["noise network"] = trainable * dtype.itemsize
    for parameter in trained:
        parameter.grad = None
    live, kept, flops = Live(), {}, {}
    noise = torch.zeros(batch, *generator.noise_shape, dtype=torch.float32 if computed.itemsize < 4 else computed)
    condition = planned.condition(batch)
    gradients = torch.enable_grad() if training else torch.no_grad()
    marks: list[tuple[str, int, int]] = []

    def mark(name: str) -> None:
        marks.append((name, live.bytes, live.flops))

    # LoRA gradients count as what trains: they are made beforehand, outside, in the layers' dtype
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter) if training else None
    with gradients, live, fused_attention(live), _marked_decoder(generator, mark):
        mark("start")
        residual = network(noise, condition)
        mark("noise network")
        pixels = generator.sample(noise + residual, condition, num_inference_steps=steps)
        mark("decoder")
        if training:
            score = pixels
            if rewards is not None and rewards.score is not None:
                score = rewards.score(pixels)
                mark("rewards")
            (l2_kl(residual).mean() + from_meta(score.mean())).backward()
            mark("backward")
    for parameter in trained:
        parameter.grad = None
    merged: dict[str, tuple[int, int]] = {}
    for (_, held_before, flops_before), (name, held, done) in pairwise(marks):
        before = merged.get(name, (0, 0))
        merged[name] = (before[0] + held - held_before, before[1] + done - flops_before)
    for name, (held, done) in merged.items():
        flops[name] = done
        if training and name != "backward":
            kept[name] = held
    weights["activations"] = live.peak
    return Estimate(weights, kept, flops)


@contextmanager
def _marked_decoder(generator: DiffusionGenerator, mark: Callable[[str], None]) -> Iterator[None]:
    """Marks the end of the generator's denoising where the decoder is first called."""
    decoder, done = generator.pipeline.vae.decoder, []

    def begin(module: nn.Module, arguments: Any) -> None:
        if not done:
            done.append(True)
            mark("generator")

    hook = decoder.register_forward_pre_hook(begin)
    try:
        yield
    finally:
        hook.remove()


def meta_network(
    planned: Planned, *, rank: int, alpha: float, dtype: torch.dtype, layers: Sequence[str] = ()
) -> LoRANoise:
    """A noise network on the planned generator, without data, in the dtype that its layers compute in."""
    with torch.device("meta"):
        network = LoRANoise(planned.generator, rank=rank, alpha=alpha, layers=layers or None)
    network.lora.to("meta", dtype)
    return network


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(module: nn.Module) -> int:
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
