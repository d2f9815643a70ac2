"""What a recipe will take: parameters, memory and arithmetic, before anything is downloaded.

    print(table(plan(read_recipe("recipes/sd-turbo.yaml"))))

The real classes are built from their configurations on the meta device, and the training step itself runs on them,
through the pipeline's own call: memory and arithmetic are counted, not modelled. Left out are rewards that are not
counted, kernels' workspaces and the framework's own few hundred MB.
"""

from __future__ import annotations

# transformers' configurations are built from keywords that its stubs do not name
# pyright: reportCallIssue=false
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import torch
import transformers
import yaml
from torch import Tensor, nn

from hypernoise.errors import InputError, unknown
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import NO_SAVING, Memory
from hypernoise.generators.presets import PRESETS, Preset
from hypernoise.memory_trace import Live, fused_attention, moved
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.precision import resolve
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, ClipReward
from hypernoise.rewards.ensemble import NETWORKS, members_of
from hypernoise.rewards.image_reward import LIMIT, ImageReward, ImageRewardNetwork
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalise
from hypernoise.training.config import Recipe

META = torch.device("meta")
PROMPT_TOKENS = 128  # assumed of prompts that are not padded to a fixed length
WEIGHT_BITS = {"none": None, "int8": 8, "nf4": 4}
OPTIMIZER_BYTES = {"sgd": 4, "adamw": 8}  # of its state, per parameter in fp32


@dataclass(frozen=True)
class Estimate:
    """One round of a training step. Memory in bytes.

    parts: weights by network, what trains (weights, gradients, optimiser), and the activations at the peak.
    kept: what the backward pass needs, by the part that left it.
    """

    parts: dict[str, int]
    kept: dict[str, int]
    flops: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """frozen, trained, rewards: parameters, by network, by kind of layer, and by name (None where not counted)."""

    recipe: Recipe
    preset: Preset
    size: tuple[int, int]
    frozen: dict[str, int]
    trained: dict[str, int]
    rewards: dict[str, int | None]
    training: Estimate

    @property
    def overhead(self) -> dict[int, float]:
        """What the noise network adds to a drawing's arithmetic, by the number of inference steps."""
        f, g, d = (self.training.flops[name] for name in ("noise network", "generator", "decoder"))
        return {n: f / (n * g / max(self.recipe.inference_steps) + d) for n in sorted({1, 4, self.preset.steps})}

    @property
    def revision(self) -> str:
        """What will be loaded: the revision asked for, the pinned one, or the newest."""
        return self.recipe.revision or self.preset.revision or "main (the newest; none is pinned)"


def plan(recipe: Recipe) -> Plan:
    """Runs a recipe's training step without data.

    Raises:
        InputError: a generator that is neither a preset nor a directory of one of diffusers' own pipelines, or a
            spectral noise network.
    """
    if recipe.noise_network != "lora":
        raise InputError(
            f"the plan counts LoRA noise networks, not noise_network: {recipe.noise_network}, which calls no denoiser; "
            "the plan with noise_network: lora is more than it takes"
        )
    planned = planned_generator(
        recipe.generator,
        dtype=resolve(recipe.mixed_precision, META).dtype,
        size=recipe.size,
        memory=recipe.memory,
    )
    generator = planned.generator
    settings = RewardSettings(dtype=recipe.reward_dtype, checkpointing=recipe.reward_checkpointing)
    rewards = planned_rewards(recipe.rewards, recipe.validation_reward, settings)
    lora = recipe.lora
    network = meta_network(planned, rank=lora.rank, alpha=lora.alpha, dtype=generator.dtype, layers=lora.layers)
    training = estimate(
        planned,
        network,
        batch=recipe.train_batch_size // recipe.gradient_accumulation_steps,
        steps=max(recipe.inference_steps),
        optimizer=recipe.optimizer,
        weight_bits=WEIGHT_BITS[recipe.memory.quantise],
        rewards=None if recipe.reward_device else rewards,  # else none of their memory is here
    )
    if recipe.memory.text_encoders != "stay":
        training.parts["text encoders"] = 0
    trained = lora_parameters(network)
    network.remove()
    frozen = {"denoiser": _count(generator.denoiser), "autoencoder": _count(generator.pipeline.vae)}
    frozen["text encoders"] = planned.text_parameters
    return Plan(recipe, planned.preset, generator.size, frozen, trained, rewards.parameters, training)


def table(found: Plan) -> str:
    """A plan for people to read."""
    recipe, preset = found.recipe, found.preset
    per = recipe.train_batch_size // recipe.gradient_accumulation_steps
    kinds = sorted(found.trained.items(), key=lambda item: -item[1])
    rewards = [f"{name} {_millions(count) if count else 'not counted'}" for name, count in found.rewards.items()]
    flops = [f"{name} {count / per / 1e12:.3g}" for name, count in found.training.flops.items()]
    overhead = [f"+{100 * share:.0f} % at {steps}" for steps, share in found.overhead.items()]
    lines = [
        f"{recipe.generator} at {found.size[1]} x {found.size[0]}, {resolve(recipe.mixed_precision, META).line}; "
        f"{recipe.train_batch_size} pictures a step, {per} at once; rank {recipe.lora.rank}",
        *([f"weights      {preset.repository}, revision {found.revision}"] if preset.repository else []),
        *([f"licence      accept it first at https://huggingface.co/{preset.repository}"] if preset.gated else []),
        "parameters   frozen: " + ", ".join(f"{name} {_millions(count)}" for name, count in found.frozen.items()),
        f"             trained: {_millions(sum(found.trained.values()))} "
        f"({', '.join(f'{kind} {_millions(count)}' for kind, count in kinds)})",
        f"training     {_gigabytes(found.training.peak)} at the peak: {_sizes(found.training.parts)}",
        f"             kept for the gradient by: {_sizes(found.training.kept)}",
        f"arithmetic   TFLOP a picture in training: {', '.join(flops)}",
        f"overhead     one extra call, by inference steps: {', '.join(overhead)}",
        f"rewards      {', '.join(rewards) or 'no networks'}"
        + (f", on {recipe.reward_device}: not counted" if recipe.reward_device and rewards else ""),
    ]
    return "\n".join(lines)


def _sizes(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.1f} MB"


# --- the generator ---


@dataclass(frozen=True)
class Planned:
    """A generator without data: its networks on the meta device, its scheduler real."""

    generator: DiffusionGenerator
    condition: Callable[[int], Condition]
    text_parameters: int
    preset: Preset


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """By preset from the Hub: denoiser, vae and scheduler, and the number of parameters of each text encoder."""
    found = yaml.safe_load(files("hypernoise").joinpath("plan_configurations.yaml").read_text())
    del found["shared"]
    return found


def planned_generator(
    source: str, *, dtype: torch.dtype, size: tuple[int, int] | None = None, memory: Memory = NO_SAVING
) -> Planned:
    """The generator of a preset's name or of a pipeline directory, without data.

    Raises:
        InputError: neither a preset nor a directory of one of diffusers' own pipelines.
    """
    preset, words = PRESETS.get(source), None
    if source in configurations():
        assert preset is not None
        configuration = configurations()[source]
    else:
        packaged = preset is not None and preset.packaged
        folder = Path(str(files("hypernoise").joinpath(packaged))) if packaged else Path(source)
        if not folder.is_dir():
            raise unknown("generator", source, PRESETS)
        family, configuration, words = _read_folder(folder)
        preset = preset or Preset(family)
    pipeline = _pipeline(preset, configuration, dtype, memory.tiny_decoder)
    memory = Memory(memory.gradient_checkpointing, memory.decode_slice)  # the rest is counted from parameters
    generator = DiffusionGenerator(pipeline, name=source, size=size or preset.size, call=preset.call, memory=memory)
    shapes = _CONDITIONS[preset.family](cast(Any, generator.denoiser).config, words or 77)

    def condition(count: int) -> Condition:
        dtypes = {name: torch.long if name.endswith("mask") else dtype for name in shapes}
        return Condition({name: torch.ones(count, *shape, dtype=dtypes[name]) for name, shape in shapes.items()})

    return Planned(generator, condition, sum(configuration["text_encoders"]), preset)


def _read_folder(folder: Path) -> tuple[str, dict[str, Any], int | None]:
    """A saved pipeline's class, its configurations, and its prompts' padded length if its tokenizer says one."""

    def read(file: str) -> dict[str, Any]:
        try:
            values = json.loads((folder / file).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not a pipeline directory: {file} cannot be read") from error
        return values if file == "model_index.json" else {k: v for k, v in values.items() if not k.startswith("_")}

    def config_of(name: str) -> dict[str, Any]:
        return read(f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json")

    index = read("model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    own = {"denoiser": "unet" if "unet" in parts else "transformer", "vae": "vae", "scheduler": "scheduler"}
    configuration = {part: {**config_of(name), "class": index[name][1]} for part, name in own.items()}
    encoders = [config_of(name) for name in parts if name.startswith("text_encoder")]
    words = read("tokenizer/tokenizer_config.json").get("model_max_length")
    return index["_class_name"], {**configuration, "text_encoders": [_encoder_parameters(e) for e in encoders]}, words


def _encoder_parameters(config: dict[str, Any]) -> int:
    cls = getattr(transformers, config["architectures"][0])
    with META:
        return _count(cls(cls.config_class.from_dict(config)))


def build(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A class of diffusers and its configuration, as a module without data."""
    with META:
        module = getattr(diffusers, config["class"]).from_config({k: v for k, v in config.items() if k != "class"})
    return module.to("meta", dtype)


def _pipeline(preset: Preset, configuration: dict[str, Any], dtype: torch.dtype, tiny_decoder: str) -> Any:
    family = preset.family
    cls = getattr(diffusers, family, None)
    if cls is None or family not in _CONDITIONS:
        raise InputError(f"a {family} cannot be planned: only diffusers' own classes can ({', '.join(_CONDITIONS)})")
    names = set(cls.__init__.__annotations__)
    left_out = ("tokenizer", "text_encoder", "safety", "feature", "image_enc")
    parts: dict[str, Any] = {name: None for name in names if name.startswith(left_out)}
    denoiser = "unet" if "unet" in names else "transformer"
    parts[denoiser], vae = build(configuration["denoiser"], dtype), configuration["vae"]
    parts["vae"] = build(_tiny(tiny_decoder, vae) if tiny_decoder else vae, dtype)
    schedule = {**configuration["scheduler"], **preset.scheduler}
    parts["scheduler"] = getattr(diffusers, schedule.pop("class")).from_config(schedule)
    more = {"StableDiffusionPipeline": {"requires_safety_checker": False}, "Flux2KleinPipeline": {"is_distilled": True}}
    pipeline = cls(**parts, **more.get(family, {}))
    pipeline.__class__ = type(cls.__name__, (_OnTheCPU, cls), {})
    network, own = getattr(pipeline, denoiser), pipeline.vae.decode
    network.register_forward_pre_hook(lambda module, a, k: moved((a, k), "meta"), with_kwargs=True)
    network.register_forward_hook(lambda module, arguments, output: moved(output, "cpu"))
    if hasattr(pipeline.vae, "bn"):  # FLUX.2 un-normalises its latents with these statistics, outside the network
        pipeline.vae.bn.to_empty(device="cpu")
    pipeline.vae.decoder._hf_hook = SimpleNamespace(execution_device="cpu")  # what pipelines bring its latents to
    pipeline.vae.decode = lambda latents, **keywords: own(moved(latents, "meta"), **keywords)
    return pipeline


def _tiny(source: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny decoder's configuration: a directory's, else TAESD's for the same number of latent channels."""
    file = Path(source) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {"latent_channels": own.get("latent_channels", 4)}
    return {"class": "AutoencoderTiny", **{k: v for k, v in config.items() if not k.startswith("_")}}


class _OnTheCPU:
    """A pipeline whose networks have no data computes its schedule, a few numbers, on the CPU."""

    _execution_device = torch.device("cpu")


# What each family's text encoders give a prompt, by the lengths its pipeline pads to: (the denoiser's configuration,
# its tokenizer's length) -> shapes by name
_CONDITIONS: dict[str, Callable[[Any, int], dict[str, tuple[int, ...]]]] = {
    "StableDiffusionPipeline": lambda c, words: {"prompt_embeds": (words, c.cross_attention_dim)},
    "StableDiffusionXLPipeline": lambda c, words: {
        "prompt_embeds": (words, c.cross_attention_dim),
        "pooled_prompt_embeds": (c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim,),
    },
    "StableDiffusion3Pipeline": lambda c, words: {
        "prompt_embeds": (words + 256, c.joint_attention_dim),
        "pooled_prompt_embeds": (c.pooled_projection_dim,),
    },
    "SanaSprintPipeline": lambda c, words: _masked("prompt_attention_mask", 300, c.caption_channels),
    "PixArtAlphaPipeline": lambda c, words: _masked("prompt_attention_mask", 120, c.caption_channels),
    "FluxPipeline": lambda c, words: {  # FLUX.1-schnell's length
        "prompt_embeds": (256, c.joint_attention_dim),
        "pooled_prompt_embeds": (c.pooled_projection_dim,),
    },
    "Flux2KleinPipeline": lambda c, words: {"prompt_embeds": (512, c.joint_attention_dim)},
    "QwenImagePipeline": lambda c, words: _masked("prompt_embeds_mask", PROMPT_TOKENS, c.joint_attention_dim),
    "ZImagePipeline": lambda c, words: _masked("prompt_embeds_mask", PROMPT_TOKENS, c.cap_feat_dim),
}


def _masked(mask: str, length: int, width: int) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (length, width), mask: (length,)}


# --- the noise network and the rewards ---


def meta_network(
    planned: Planned, *, rank: int, alpha: float, dtype: torch.dtype, layers: Sequence[str] = ()
) -> LoRANoise:
    """A noise network on the planned generator, without data, in the dtype that its layers compute in."""
    with META:
        network = LoRANoise(planned.generator, rank=rank, alpha=alpha, layers=layers or None)
    network.lora.to("meta", dtype)
    return network


def lora_parameters(network: LoRANoise) -> dict[str, int]:
    """Parameters that train, by kind of layer: linear, conv, depthwise conv."""
    counts: dict[str, int] = {}
    for layer in network.layers.values():
        base = layer.get_base_layer()
        grouped = getattr(base, "groups", 1) > 1
        kind = "depthwise conv" if grouped else "linear" if isinstance(base, nn.Linear) else "conv"
        counts[kind] = counts.get(kind, 0) + _count(layer.lora_A) + _count(layer.lora_B)
    return counts


@dataclass(frozen=True)
class PlannedRewards:
    """parameters: of each network, None where it is not counted; bytes: of those that are; score: the trained ones'
    sum [B] of pixels [B, 3, H, W], None if none is counted."""

    parameters: dict[str, int | None]
    bytes: int
    score: Callable[[Tensor], Tensor] | None


def planned_rewards(
    trained: Mapping[str, float], measured: Mapping[str, float], settings: RewardSettings
) -> PlannedRewards:
    """The networks of these rewards, without data; prompts are encoded once, so what they take is left out."""
    parameters: dict[str, int | None] = {}
    scores: list[Callable[[Tensor], Tensor]] = []
    size = 0
    for name in members_of({**trained, **measured}):
        if name not in NETWORKS:
            continue
        maker = _clip_scores if name in CLIPS else _image_reward_scores if name == "imagereward" else None
        parameters[name] = None
        if maker is None:
            continue
        with META:
            network, score = maker(name, settings)
        parameters[name] = _count(network)
        size += _bytes(list(network.parameters()))
        if name in members_of(trained):
            scores.append(score)
    total = (lambda pixels: torch.stack([score(pixels) for score in scores]).sum(0)) if scores else None
    return PlannedRewards(parameters, size, total)


def _clip_scores(name: str, settings: RewardSettings) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = transformers.CLIPModel(transformers.CLIPConfig(**CLIPS[name].config))
    reward = ClipReward(name, model, None, settings, fit=CLIPS[name].fit, scale=1.0)
    return reward.network, lambda pixels: reward.pictures(reward.resize(pixels)).sum(-1)


def _image_reward_scores(name: str, settings: RewardSettings) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    reward = ImageReward(name, ImageRewardNetwork(), None, settings)
    network: Any = reward.network

    def score(pixels: Tensor) -> Tensor:
        shown = normalise(reward.resize(pixels), CLIP_MEAN, CLIP_STD).to(reward.dtype)
        states = network.vision_model(pixel_values=shown).last_hidden_state
        words = torch.zeros(len(pixels), LIMIT, dtype=torch.long, device=pixels.device)
        return network(states, words, None).float()  # BLIP would read a mask's values, and there are none

    return network, score


# --- the step ---


class _Stages:
    """Bytes that each part of a step leaves behind, and its arithmetic; `end` closes a part."""

    def __init__(self, live: Live):
        self.live, self.at = live, (live.bytes, live.flops)
        self.bytes: dict[str, int] = {}
        self.flops: dict[str, int] = {}

    def end(self, name: str) -> None:
        held, done = self.live.bytes, self.live.flops
        self.bytes[name], self.flops[name] = held - self.at[0], done - self.at[1]
        self.at = held, done


def estimate(
    planned: Planned,
    network: LoRANoise,
    *,
    batch: int,
    steps: int = 1,
    optimizer: str = "adamw",
    weight_bits: int | None = None,
    rewards: PlannedRewards | None = None,
) -> Estimate:
    """One round of `batch` pictures in training, run without data.

    Args:
        network: on the planned generator, its LoRA in the dtype that the layers compute in (under autocast, bf16).
        steps: denoiser calls per picture.
        weight_bits: of the denoiser's packed weights (see `packed_parameters`), if it is quantised.
        rewards: what scores the pictures; nothing if None.
    """
    generator, trained = planned.generator, network.trainable_parameters()
    dtype, computed, count = generator.dtype, trained[0].dtype, sum(p.numel() for p in trained)
    wide, casts = max(4, computed.itemsize), computed.itemsize if computed.itemsize < 4 else 0  # autocast keeps them
    vae = generator.pipeline.vae
    parts = {
        "denoiser": _count(generator.denoiser) * dtype.itemsize,
        "autoencoder": _bytes([*vae.parameters(), *vae.buffers()]),
        "text encoders": planned.text_parameters * dtype.itemsize,
    }
    if weight_bits:
        parts["denoiser"] -= packed_parameters(network) * (8 * dtype.itemsize - weight_bits) // 8
    if rewards is not None and rewards.bytes:
        parts["rewards"] = rewards.bytes
    parts["trained: weights"] = count * (wide + casts)
    parts["trained: gradients"] = count * wide
    parts["trained: optimiser"] = count * wide * OPTIMIZER_BYTES[optimizer] // 4
    for parameter in trained:  # their gradients count as what trains: made beforehand, in the layers' dtype
        parameter.grad = torch.empty_like(parameter)
    noise = torch.zeros(batch, *generator.noise_shape, dtype=torch.float32 if computed.itemsize < 4 else computed)
    condition, live = planned.condition(batch), Live()
    with torch.enable_grad(), live, fused_attention(live):
        stages = _Stages(live)
        residual = network(noise, condition)
        stages.end("noise network")
        with _at_first_call(generator.pipeline.vae.decoder, lambda: stages.end("generator")):
            pixels = generator.sample(noise + residual, condition, num_inference_steps=steps)
        stages.end("decoder")
        score = pixels
        if rewards is not None and rewards.score is not None:
            score = rewards.score(pixels)
            stages.end("rewards")
        (l2_kl(residual).mean() + moved(score.mean(), "cpu")).backward()
        stages.end("backward")
    for parameter in trained:
        parameter.grad = None
    kept = {name: held for name, held in stages.bytes.items() if name != "backward"}
    return Estimate({**parts, "activations": live.peak}, kept, stages.flops)


@contextmanager
def _at_first_call(module: nn.Module, act: Callable[[], None]) -> Iterator[None]:
    waiting = [act]

    def begin(module: nn.Module, arguments: Any) -> None:
        while waiting:
            waiting.pop()()

    hook = module.register_forward_pre_hook(begin)
    try:
        yield
    finally:
        hook.remove()


def packed_parameters(network: LoRANoise) -> int:
    """How many of the denoiser's weights quantising packs: those of linear layers but for the output layer."""
    return sum(
        module.weight.numel()
        for name, module in network.generator.denoiser.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
        if name.removesuffix(".base_layer") != network.output_layer
    )


def _count(module: nn.Module) -> int:
    """Parameters; of a network that carries a LoRA, without it."""
    return sum(p.numel() for name, p in module.named_parameters() if ".lora_" not in name)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
