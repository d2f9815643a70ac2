"""A recipe's rewards without data: their networks on the meta device, for the planned training step to run through."""

from __future__ import annotations

# transformers' configurations are built from keywords that its stubs do not name
# pyright: reportCallIssue=false
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS
from hypernoise.rewards.ensemble import NETWORKS, members_of
from hypernoise.rewards.image_reward import LIMIT, ImageRewardNetwork
from hypernoise.rewards.network import prepared
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalise

Scores = Callable[[Tensor], Tensor]  # pixels [B, 3, H, W] -> [B]


@dataclass(frozen=True)
class PlannedRewards:
    """parameters: of each network, None where it is not planned; bytes: of those that are; score: the trained ones'
    sum, None if there is none to plan."""

    parameters: dict[str, int | None]
    bytes: int
    score: Scores | None


def planned_rewards(
    trained: Mapping[str, float], watched: Mapping[str, float], settings: RewardSettings
) -> PlannedRewards:
    """The networks of these rewards; prompts are encoded once, so what they take is left out."""
    parameters: dict[str, int | None] = {}
    scores: list[Scores] = []
    size = 0
    for name in members_of({**trained, **watched}):
        if name not in NETWORKS:
            continue
        parameters[name] = None
        if name not in PLANNED:
            continue
        with torch.device("meta"):
            network, made = PLANNED[name](name, settings)
        parameters[name] = sum(p.numel() for p in network.parameters())
        size += sum(p.numel() * p.element_size() for p in network.parameters())
        if name in members_of(trained):
            scores.append(made)
    return PlannedRewards(parameters, size, (lambda pixels: _sum(scores, pixels)) if scores else None)


def _sum(scores: list[Scores], pixels: Tensor) -> Tensor:
    return torch.stack([score(pixels) for score in scores]).sum(0)


def clip_scores(model: CLIPModel, fit: Any, settings: RewardSettings) -> Scores:
    """What `ClipReward` does with pictures."""
    network: Any = prepared(model.requires_grad_(False).eval(), settings)
    resize = Resize(network.config.vision_config.image_size, fit)

    def score(pixels: Tensor) -> Tensor:
        shown = normalise(resize(pixels), CLIP_MEAN, CLIP_STD).to(network.visual_projection.weight.dtype)
        features = network.visual_projection(network.vision_model(pixel_values=shown).pooler_output)
        return nn.functional.normalize(features.float(), dim=-1).sum(-1)

    return score


def _clip(name: str, settings: RewardSettings) -> tuple[nn.Module, Scores]:
    model = CLIPModel(CLIPConfig(**CLIPS[name].config))
    return model, clip_scores(model, CLIPS[name].fit, settings)


def _image_reward(name: str, settings: RewardSettings) -> tuple[nn.Module, Scores]:
    network: Any = prepared(ImageRewardNetwork().requires_grad_(False).eval(), settings)
    resize = Resize(network.vision_model.config.image_size)

    def score(pixels: Tensor) -> Tensor:
        shown = normalise(resize(pixels), CLIP_MEAN, CLIP_STD).to(network.mlp[0].weight.dtype)
        states = network.vision_model(pixel_values=shown).last_hidden_state
        words = torch.zeros(len(pixels), LIMIT, dtype=torch.long, device=pixels.device)
        return network(states, words, None).float()  # a mask's values would be asked for, and there are none

    return network, score


PLANNED: dict[str, Callable[[str, RewardSettings], tuple[nn.Module, Scores]]] = {
    **dict.fromkeys(CLIPS, _clip),
    "imagereward": _image_reward,
}
