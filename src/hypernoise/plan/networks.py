"""Noise networks and rewards without data, for plans."""

from __future__ import annotations

# transformers' configurations accept keywords that its stubs do not name
# pyright: reportCallIssue=false
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise, untrained
from hypernoise.plan.generators import Place, Planned, count, on_meta
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, ClipReward
from hypernoise.rewards.ensemble import NETWORKS, load_reward, members_of
from hypernoise.rewards.image_reward import LIMIT, ImageReward, ImageRewardNetwork
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalise
from hypernoise.training.config import LoRA


def meta_network(planned: Planned, settings: LoRA | Spectral) -> LoRANoise | SpectralNoise:
    """A noise network on the planned generator: a LoRA without data, in the dtype that its layers compute in."""
    if isinstance(settings, Spectral):  # small enough to have data
        return untrained(planned.generator, settings, planned.condition(1))
    with on_meta():
        network = LoRANoise(planned.generator, rank=settings.rank, alpha=settings.alpha, layers=settings.layers or None)
    network.lora.to("meta", planned.generator.dtype)
    return network


def parameters_by_kind(network: LoRANoise | SpectralNoise) -> dict[str, int]:
    """Trained parameters, by kind of layer: linear, conv, depthwise conv."""
    if isinstance(network, SpectralNoise):
        return {"linear": count(network)}
    counts: dict[str, int] = {}
    for name, update in network.layers.items():
        layer = network.generator.denoiser.get_submodule(name)
        grouped = getattr(layer, "groups", 1) > 1
        kind = "depthwise conv" if grouped else "linear" if isinstance(layer, nn.Linear) else "conv"
        counts[kind] = counts.get(kind, 0) + count(update)
    return counts


@dataclass(frozen=True)
class PlannedRewards:
    """parameters: of each network, None if not counted; networks: the counted ones; score: the sum [B] of the trained
    ones for pixels [B, 3, H, W], None if none is counted."""

    parameters: dict[str, int | None]
    networks: list[nn.Module]
    score: Callable[[Tensor], Tensor] | None


def planned_rewards(
    trained: Iterable[str],
    measured: Iterable[str],
    settings: RewardSettings,
    place: Place = on_meta,
) -> PlannedRewards:
    """The networks of these rewards, with weights in `place`.

    Prompts are encoded once, so their encoding is not counted. Raises InputError for an unknown name.
    """
    parameters: dict[str, int | None] = {}
    networks: list[nn.Module] = []
    scores: list[Callable[[Tensor], Tensor]] = []
    for name in members_of(dict.fromkeys([*trained, *measured], 1.0)):
        if name not in NETWORKS and ":" not in name:
            load_reward(name, settings)  # raises if there is none; pixel rewards have no network
            continue
        maker = _clip_scores if name in CLIPS else _image_reward_scores if name == "imagereward" else None
        parameters[name] = None
        if maker is None:
            continue
        with place():
            network, score = maker(name, settings)
        parameters[name] = count(network)
        networks.append(network)
        if name in members_of(dict.fromkeys(trained, 1.0)):
            scores.append(score)
    total = (lambda pixels: torch.stack([score(pixels) for score in scores]).sum(0)) if scores else None
    return PlannedRewards(parameters, networks, total)


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
        return network(states, words, None).float()  # BLIP would read a mask's values, which do not exist

    return network, score


def packed_parameters(generator: DiffusionGenerator) -> int:
    """How many of the denoiser's weights are quantised: those of linear layers except the output layer."""
    return sum(
        module.weight.numel()
        for name, module in generator.denoiser.named_modules()
        if isinstance(module, nn.Linear) and name != generator.family.output_layer
    )
