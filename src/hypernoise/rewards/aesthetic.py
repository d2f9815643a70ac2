"""LAION's improved aesthetic predictor (v2): linear layers on CLIP ViT-L/14, trained on people's ratings from 1 to 10.

It ignores the prompt, so use it for validation, or with a small weight next to rewards that read the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from hypernoise.generators.hub import fetch
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import L14, SAFE
from hypernoise.rewards.network import NetworkReward, Resize, linear_head
from hypernoise.rewards.weights import filled, read_state, renamed

TOWER = ("openai/clip-vit-large-patch14", *SAFE)
HEAD = ("camenduru/improved-aesthetic-predictor", "sac+logos+ava1-l14-linearMSE.pth")


class AestheticNetwork(nn.Module):
    """Ratings [B] of normalised pictures, from unit features."""

    def __init__(self, vision: Mapping[str, Any] = L14["vision_config"]):
        super().__init__()
        config = CLIPVisionConfig(**vision)
        self.tower: Any = CLIPVisionModelWithProjection(config)
        self.head = linear_head(config.projection_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.tower(pixel_values=pictures).image_embeds
        return self.head(normalize(wide(features), dim=-1).to(features.dtype))[:, 0]


def from_released(tower: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `AestheticNetwork` from the two files, without the text tower."""
    return renamed(tower, {"^": "tower."}, r"text_|logit_scale") | renamed(head, {r"^layers\.": "head."})


def load(name: str, settings: RewardSettings) -> AestheticReward:
    """The predictor. Raises InputError for weights that cannot be loaded or do not fit."""
    state = from_released(read_state(fetch(*TOWER)), read_state(fetch(*HEAD)))
    return AestheticReward(name, filled(AestheticNetwork, state, f"reward {name!r}"), settings)


class AestheticReward(NetworkReward):
    """The rating by an `AestheticNetwork`, ignoring the prompt."""

    def __init__(self, name: str, network: AestheticNetwork, settings: RewardSettings | None = None):
        super().__init__(name, network, Resize(network.tower.config.image_size), settings)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        return wide(self.network(self.normalised(resized)))
