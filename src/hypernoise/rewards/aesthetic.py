"""Aesthetic predictors: linear heads on a picture's features, trained on people's ratings from 1 to 10.

They ignore the prompt, so that they are for watching, or for a small weight beside rewards that read it.
"""

from __future__ import annotations

# transformers' configurations are built from keywords that its stubs do not name
# pyright: reportCallIssue=false, reportArgumentType=false
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import L14, SAFE
from hypernoise.rewards.heads import MLP, linear_head
from hypernoise.rewards.network import NetworkReward, prepared, wide
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, HALF, Resize, normalise
from hypernoise.rewards.weights import Linked, Released, filled, read_state

SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def clip_l14() -> nn.Module:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**L14["vision_config"]))


def siglip_so400m() -> nn.Module:
    return SiglipVisionModel(SiglipVisionConfig(**SO400M))


@dataclass(frozen=True)
class Aesthetic:
    """One predictor: its picture tower, its head, and what their released names begin with.

    numbers, widths: of the head's layers, see `linear_head`.
    """

    tower: Callable[[], nn.Module]
    tower_weights: Released
    head_weights: Released | Linked
    numbers: tuple[int, ...]
    widths: tuple[int, ...]
    head_prefix: str
    resize: Resize
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


CLIP_L14 = Released("openai/clip-vit-large-patch14", SAFE)
GITHUB = "https://github.com"
AESTHETICS = {
    "aesthetic-v1": Aesthetic(
        clip_l14,
        CLIP_L14,
        Linked(f"{GITHUB}/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"),
        numbers=(0,),
        widths=(1,),
        head_prefix="",
        resize=Resize(224),
    ),
    "aesthetic-v2": Aesthetic(
        clip_l14,
        CLIP_L14,
        Released("camenduru/improved-aesthetic-predictor", ("sac+logos+ava1-l14-linearMSE.pth",)),
        numbers=(0, 2, 4, 6, 7),
        widths=MLP,
        head_prefix="layers.",
        resize=Resize(224),
    ),
    "aesthetic-v2.5": Aesthetic(
        siglip_so400m,
        Released("google/siglip-so400m-patch14-384", SAFE),
        Linked(f"{GITHUB}/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth"),
        numbers=(0, 2, 4, 6, 8),
        widths=MLP,
        head_prefix="scoring_head.",
        resize=Resize(384, "squash"),
        mean=HALF,
        std=HALF,
    ),
}


class AestheticNetwork(nn.Module):
    """Ratings [B] of normalised pictures: the head on unit features."""

    def __init__(self, row: Aesthetic):
        super().__init__()
        self.tower = row.tower()
        config: Any = self.tower.config
        width = config.projection_dim if hasattr(self.tower, "visual_projection") else config.hidden_size
        self.head = linear_head(width, row.numbers, row.widths)

    def forward(self, pictures: Tensor) -> Tensor:
        seen: Any = self.tower(pixel_values=pictures)
        features = seen.image_embeds if hasattr(self.tower, "visual_projection") else seen.pooler_output
        return self.head(normalize(wide(features), dim=-1).to(features.dtype))[:, 0]


def from_released(row: Aesthetic, tower: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `AestheticNetwork` from the two files; the tower's other half, for words, is left out."""
    place = "vision_model."
    if row.tower is siglip_so400m and not _keeps_its_prefix():
        place = ""
    seen = {
        name.replace("vision_model.", place, 1): tensor
        for name, tensor in tower.items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    ours = {name.removeprefix(row.head_prefix): tensor for name, tensor in head.items()}
    if len(row.numbers) == 1:  # one layer is published without a number
        ours = {f"{row.numbers[0]}.{name}": tensor for name, tensor in ours.items()}
    return {
        **{f"tower.{name}": tensor for name, tensor in seen.items()},
        **{f"head.{name}": tensor for name, tensor in ours.items()},
    }


def _keeps_its_prefix() -> bool:
    """Whether the tower is inside `SiglipVisionModel`, as up to transformers 4, or the model itself."""
    with torch.device("meta"):
        return hasattr(SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=0)), "vision_model")


def load(name: str, settings: RewardSettings, weights: tuple[Path, Path] | None = None) -> AestheticReward:
    """The predictor of a row of `AESTHETICS`, from (tower, head) files or from where they are published.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    row = AESTHETICS[name]
    tower, head = weights or (row.tower_weights.fetch(), row.head_weights.fetch())
    state = from_released(row, read_state(tower), read_state(head))
    return AestheticReward(
        name, filled(lambda: AestheticNetwork(row), state, f"{name}'s {tower.name} and {head.name}"), row, settings
    )


class AestheticReward(NetworkReward):
    """The rating of an `AestheticNetwork`, whatever the prompt."""

    def __init__(self, name: str, network: AestheticNetwork, row: Aesthetic, settings: RewardSettings | None = None):
        self.name, self.row, self.settings = name, row, settings or RewardSettings()
        self.resize = row.resize
        self.network = prepared(network.requires_grad_(False).eval(), self.settings)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        return wide(self.network(normalise(resized, self.row.mean, self.row.std).to(self.dtype)))
