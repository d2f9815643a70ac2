"""Published generators, noise networks and rewards without data: real classes, built from their configurations.

On the meta device they have shapes and no values; the generators are called through the pipeline's own call.
"""

from __future__ import annotations

# transformers' configurations accept keywords that its stubs do not name
# pyright: reportCallIssue=false
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
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
from hypernoise.files import read_json
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import family_of
from hypernoise.generators.loading import Loading
from hypernoise.generators.memory import replaced
from hypernoise.generators.presets import PRESETS, Preset
from hypernoise.generators.registry import check_directory
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise, spectral_noise
from hypernoise.plan.trace import moved
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, ClipReward
from hypernoise.rewards.ensemble import NETWORKS, load_reward, members_of
from hypernoise.rewards.image_reward import LIMIT, ImageReward, ImageRewardNetwork
from hypernoise.training.config import LoRA

META = torch.device("meta")
PROMPT_TOKENS = 128  # assumed length of prompts that are not padded to a fixed length

Place = Callable[[], AbstractContextManager[Any]]
"""Inside such a block, networks are built with their weights in one place."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Layers built inside have no data, and draw no initial weights: that would be a fifth of a plan's time."""
    undrawn = {"reset_parameters": lambda layer: None}
    with META, replaced(nn.Linear, undrawn), replaced(nn.modules.conv._ConvNd, undrawn):
        yield


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """Presets from the Hub: denoiser, vae and scheduler, and each text encoder's number of parameters."""
    found = yaml.safe_load(files("hypernoise").joinpath("plan/configurations.yaml").read_text())
    del found["shared"]
    return found


def published(source: str, tokens: int = 0) -> tuple[Preset, dict[str, Any]]:
    """A preset or a pipeline directory, and its networks' configurations as in `configurations`, with the length that
    prompts are padded to as `words`, if the tokenizer has one; `tokens`: max_sequence_length, 0 for its own.

    Raises:
        InputError: neither a preset nor a directory of one of diffusers' own pipelines.
    """
    preset = PRESETS.get(source)
    if preset and source in configurations():
        return preset.reading(tokens), configurations()[source]
    folder = Path(str(files("hypernoise").joinpath(str(preset.packaged)))) if preset else Path(source)
    if not folder.is_dir():
        raise unknown("generator", source, PRESETS)
    family = check_directory(folder)
    index = read_json(folder / "model_index.json", str(folder))

    def read(part: str, file: str = "config") -> dict[str, Any]:
        values = read_json(folder / part / f"{file}.json", f"{folder}/{part}/{file}.json")
        return {"class": index[part][1], **{k: v for k, v in values.items() if not k.startswith("_")}}

    encoders = [name for name in index if re.fullmatch(r"text_encoder(_\d)?", name) and index[name][0]]
    configuration = {
        "denoiser": read("unet" if "unet" in index else "transformer"),
        "vae": read("vae"),
        "scheduler": read("scheduler", "scheduler_config"),
        "text_encoders": [_encoder_parameters(read(name)) for name in encoders],
        "words": read("tokenizer", "tokenizer_config").get("model_max_length"),
    }
    return (preset or Preset(family)).reading(tokens), configuration


def _encoder_parameters(config: dict[str, Any]) -> int:
    named = config.get("architectures") or [""]
    cls = getattr(transformers, str(named[0]), None)
    if cls is None:
        raise InputError(f"a text encoder's config.json names no transformers class under architectures: {named[0]!r}")
    with on_meta():
        return count(cls(cls.config_class.from_dict(config)))


class WithoutText(DiffusionGenerator):
    """A published generator without its text encoders: an encoded prompt is random numbers of the right shape.

    Its networks' weights are built in `place`. On the meta device only the scheduler has data. Raises the InputErrors
    of `published`.
    """

    def __init__(self, asked: Loading, dtype: torch.dtype, place: Place = on_meta):
        self.text_dtype = dtype
        self.preset, self.configuration = preset, configuration = published(asked.generator, asked.max_sequence_length)
        self.text_parameters: int = sum(configuration["text_encoders"])
        pipeline = _assembled(preset, configuration, dtype, place)
        if place is on_meta:
            _without_data(pipeline)
        size = asked.size or preset.size
        super().__init__(pipeline, name=asked.generator, size=size, call=preset.call, memory=asked.memory)

    def encode(self, prompts: list[str]) -> Condition:
        family, config = self.preset.family, cast(Any, self.denoiser).config
        words = self.call_settings().get("max_sequence_length", self.configuration.get("words") or 77)
        words = PROMPT_TOKENS if family in UNPADDED else words + MORE_TOKENS.get(family, 0)
        layers = [config.num_text_layers] if "num_text_layers" in config else []
        width = next(config[name] for name in WIDTHS if name in config)
        of_sdxl = (config.get("projection_class_embeddings_input_dim") or 0) - 6 * (config.get(SIZES) or 0)
        pooled = config.get("pooled_projection_dim") or of_sdxl
        draw = torch.Generator().manual_seed(0)
        tensors = {}
        for name in [*filter(None, self.family.embeddings), *(["prompt_embeds_mask"] if family in UNPADDED else [])]:
            if name.endswith("mask"):
                tensors[name] = torch.ones(len(prompts), words, dtype=torch.bool)
            else:
                shape = [pooled] if name.startswith("pooled") else [words, *layers, width]
                tensors[name] = torch.randn(len(prompts), *shape, generator=draw).to(self.text_dtype)
        return Condition(tensors).to(self.pipeline._execution_device)

    def check_prompts(self, prompts: list[str]) -> None:
        """Accepts any prompt."""


# A denoiser's field for the width of a prompt's embeddings, the first that it has
WIDTHS = ("caption_channels", "joint_attention_dim", "cap_feat_dim", "text_hidden_dim", "cross_attention_dim")
SIZES = "addition_time_embed_dim"  # the width of each of SDXL's six sizes, which it appends to the pooled embedding
UNPADDED = ("QwenImagePipeline", "ZImagePipeline")
MORE_TOKENS = {"StableDiffusion3Pipeline": 77}  # CLIP's, before T5's


def _assembled(preset: Preset, configuration: Mapping[str, Any], dtype: torch.dtype, place: Place) -> Any:
    cls = getattr(diffusers, preset.family)
    names = set(cls.__init__.__annotations__)
    left_out = ("tokenizer", "text_encoder", "safety", "feature", "image_enc")
    parts: dict[str, Any] = {name: None for name in names if name.startswith(left_out)}
    parts["unet" if "unet" in names else "transformer"] = build(configuration["denoiser"], dtype, place)
    parts["vae"] = build(configuration["vae"], dtype, place)
    schedule = {**configuration["scheduler"], **preset.scheduler}
    parts["scheduler"] = getattr(diffusers, schedule.pop("class")).from_config(schedule)
    more = {"requires_safety_checker": False, "is_distilled": True}
    return cls(**parts, **{name: value for name, value in more.items() if name in names})


def build(config: Mapping[str, Any], dtype: torch.dtype, place: Place = on_meta) -> nn.Module:
    """A diffusers class and its configuration, as a module with weights in `place`."""
    with place():
        module = getattr(diffusers, config["class"]).from_config({k: v for k, v in config.items() if k != "class"})
    nn.Module.to(module, dtype=dtype)  # diffusers' own warns about parts kept in fp32
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in (getattr(module, "_keep_in_fp32_modules", None) or ()):
            part.float()  # as `from_pretrained` does
    return module


def _without_data(pipeline: Any) -> None:
    """Lets the pipeline's own call run with networks on the meta device; its schedule is computed on the CPU."""
    cls = type(pipeline)
    pipeline.__class__ = type(cls.__name__, (cls,), {"_execution_device": torch.device("cpu")})
    network, own = getattr(pipeline, family_of(pipeline).denoiser), pipeline.vae.decode
    network.register_forward_pre_hook(lambda module, a, k: moved((a, k), "meta"), with_kwargs=True)
    network.register_forward_hook(lambda module, arguments, output: moved(output, "cpu"))
    if hasattr(pipeline.vae, "bn"):  # FLUX.2 un-normalises its latents with these statistics, outside the network
        pipeline.vae.bn.to_empty(device="cpu")
    pipeline.vae.decoder._hf_hook = SimpleNamespace(execution_device="cpu")  # the device that pipelines move latents to
    pipeline.vae.decode = lambda latents, **keywords: own(moved(latents, "meta"), **keywords)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta_network(planned: DiffusionGenerator, settings: LoRA | Spectral) -> LoRANoise | SpectralNoise:
    """A noise network on a planned generator: a LoRA without data, in the dtype that its layers compute in."""
    if isinstance(settings, Spectral):  # small enough to have data
        return spectral_noise(planned, settings)
    with on_meta():
        network = LoRANoise(planned, rank=settings.rank, alpha=settings.alpha, layers=settings.layers or None)
    network.lora.to("meta", planned.dtype)
    return network


@dataclass(frozen=True)
class PlannedRewards:
    """networks: by reward, None if not counted; scores: of the trained ones, [B] for pixels [B, 3, H, W]."""

    networks: dict[str, nn.Module | None] = field(default_factory=dict)
    scores: list[Callable[[Tensor], Tensor]] = field(default_factory=list)

    @property
    def parts(self) -> list[nn.Module]:
        return [network for network in self.networks.values() if network is not None]

    def total(self, pixels: Tensor) -> Tensor:
        """The trained rewards' sum [B]; the mean of the pixels without any."""
        return torch.stack([score(pixels) for score in self.scores] or [pixels.mean((1, 2, 3))]).sum(0)


def planned_rewards(
    trained: Iterable[str], measured: Iterable[str], settings: RewardSettings, place: Place = on_meta
) -> PlannedRewards:
    """The networks of these rewards, with weights in `place`.

    Prompts are encoded once, so their encoding is not counted. Raises InputError for an unknown name.
    """
    found, climbed = PlannedRewards(), members_of(dict.fromkeys(trained, 1.0))
    for name in {**climbed, **members_of(dict.fromkeys(measured, 1.0))}:
        if name not in NETWORKS and ":" not in name:
            load_reward(name, settings)  # raises if there is none; pixel rewards have no network
            continue
        found.networks[name] = None
        if name in CLIPS or name == "imagereward":
            with place():
                found.networks[name], score = (_clip if name in CLIPS else _image_reward)(name, settings)
            if name in climbed:
                found.scores.append(score)
    return found


def _clip(name: str, settings: RewardSettings) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = transformers.CLIPModel(transformers.CLIPConfig(**CLIPS[name].config))
    reward = ClipReward(name, model, None, settings, fit=CLIPS[name].fit, scale=1.0)
    return reward.network, lambda pixels: reward.pictures(reward.resize(pixels)).sum(-1)


def _image_reward(name: str, settings: RewardSettings) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    reward = ImageReward(name, ImageRewardNetwork(), None, settings)
    network: Any = reward.network

    def score(pixels: Tensor) -> Tensor:
        states = network.vision_model(pixel_values=reward.normalised(reward.resize(pixels))).last_hidden_state
        words = torch.zeros(len(pixels), LIMIT, dtype=torch.long, device=pixels.device)
        return network(states, words, None).float()  # BLIP would read a mask's values, which do not exist

    return network, score
