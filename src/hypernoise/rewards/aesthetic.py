"""LAION's improved aesthetic predictor (v2): linear layers on CLIP ViT-L/14, trained on people's ratings from 1 to 10.

It ignores the prompt, so use it for validation, or with a small weight next to rewards that read the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import L14, SAFE
from hypernoise.rewards.network import NetworkReward, linear_head, prepared, wide
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.weights import Released, filled, read_state

TOWER = Released("openai/clip-vit-large-patch14", SAFE)
HEAD = Released("camenduru/improved-aesthetic-predictor", ("sac+logos+ava1-l14-linearMSE.pth",))


class AestheticNetwork(nn.Module):
    """Ratings [B] of normalised pictures, from unit features."""

    def __init__(self, vision: Mapping[str, Any] = L14["vision_config"]):
        super().__init__()
        config = CLIPVisionConfig(**vision)
        self.tower = CLIPVisionModelWithProjection(config)
        self.head = linear_head(config.projection_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.tower(pixel_values=pictures).image_embeds
        return self.head(normalize(wide(features), dim=-1).to(features.dtype))[:, 0]


def from_released(tower: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `AestheticNetwork` from the two files, without the text tower."""
    seen = ("vision_model.", "visual_projection.")
    return {
        **{f"tower.{name}": tensor for name, tensor in tower.items() if name.startswith(seen)},
        **{f"head.{name.removeprefix('layers.')}": tensor for name, tensor in head.items()},
    }


def load(name: str, settings: RewardSettings, weights: tuple[Path, Path] | None = None) -> AestheticReward:
    """The predictor, from (tower, head) files or from its published location.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    tower, head = weights or (TOWER.fetch(), HEAD.fetch())
    state = from_released(read_state(tower), read_state(head))
    return AestheticReward(name, filled(AestheticNetwork, state, f"{name}'s {tower.name} and {head.name}"), settings)


class AestheticReward(NetworkReward):
    """The rating by an `AestheticNetwork`, ignoring the prompt."""

    def __init__(self, name: str, network: AestheticNetwork, settings: RewardSettings | None = None):
        self.name, self.settings = name, settings or RewardSettings()
        config: Any = network.tower.config
        self.resize = Resize(config.image_size)
        self.network = prepared(network.requires_grad_(False).eval(), self.settings)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        return wide(self.network(normalise(resized, CLIP_MEAN, CLIP_STD).to(self.dtype)))
