"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977) on transformers' BLIP.

The prompt's tokens attend to the picture's patches (BLIP-large's ITM encoder); five linear layers turn the first
token's state into a score, normalised by the mean and standard deviation of the authors' training set.
"""

from __future__ import annotations

# transformers' configurations accept keywords that its stubs do not name
# pyright: reportCallIssue=false
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from hypernoise.generators.hub import fetch
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward, Resize, linear_head, padded
from hypernoise.rewards.weights import filled, load_tokenizer, read_state, renamed

WEIGHTS = ("zai-org/ImageReward", "ImageReward.pt")
TOKENIZER = "google-bert/bert-base-uncased"
LIMIT = 35  # tokens
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # ImageReward/ImageReward.py

VISION: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,  # BLIP's models/vit.py; transformers' default differs
}  # fmt: skip
TEXT: dict[str, Any] = {"num_attention_heads": 12, "encoder_hidden_size": 1024}  # med_config.json; the rest: defaults

NAMES = {  # patterns of released names, and transformers'
    r"^mlp\.layers\.": "mlp.",
    r"^blip\.text_encoder\.": "text_encoder.",
    r"^blip\.visual_encoder\.cls_token$": "vision_model.embeddings.class_embedding",
    r"^blip\.visual_encoder\.pos_embed$": "vision_model.embeddings.position_embedding",
    r"^blip\.visual_encoder\.patch_embed\.proj\.": "vision_model.embeddings.patch_embedding.",
    r"^blip\.visual_encoder\.norm\.": "vision_model.post_layernorm.",
    r"^blip\.visual_encoder\.blocks\.": "vision_model.encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.attn\.proj\.": ".self_attn.projection.",
}
UNUSED = r"blip\.(vision|text)_proj\."  # BLIP's contrastive loss


class ImageRewardNetwork(nn.Module):
    """Scores before normalisation, of pictures [B, 3, size, size] and tokens [B, words]."""

    def __init__(self, vision: Mapping[str, Any] = VISION, text: Mapping[str, Any] = TEXT):
        super().__init__()
        self.vision_model: Any = BlipVisionModel(BlipVisionConfig(**vision))
        config: Any = BlipTextConfig(is_decoder=True, **text)  # a decoder's layers attend to the picture
        self.text_encoder = BlipTextModel(config, add_pooling_layer=False)
        self.mlp = linear_head(config.hidden_size)

    def forward(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=states
        ).last_hidden_state
        return self.mlp(words[:, 0])[:, 0]


def load(name: str, settings: RewardSettings) -> ImageReward:
    """ImageReward v1.0. Raises InputError for weights that cannot be loaded or do not fit."""
    state = renamed(read_state(fetch(*WEIGHTS)), NAMES, UNUSED)
    return ImageReward(name, filled(ImageRewardNetwork, state, f"reward {name!r}"), load_tokenizer(TOKENIZER), settings)


class ImageReward(NetworkReward):
    """(score − mean) / std of an `ImageRewardNetwork`; about 0 for an average picture, 1 for a good one."""

    def __init__(self, name: str, network: ImageRewardNetwork, tokenizer: Any, settings: RewardSettings | None = None):
        super().__init__(name, network, Resize(network.vision_model.config.image_size), settings)
        self.tokenizer, self.longest = tokenizer, LIMIT

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        ids, mask = padded(self.texts(prompts), "right", self.device)
        states = self.network.vision_model(pixel_values=self.normalised(resized)).last_hidden_state
        return (wide(self.network(states, ids, mask)) - MEAN) / STD
