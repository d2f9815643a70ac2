"""Cosine rewards: CLIP ViT-H/14, PickScore v1, HPSv2.1 and Long-CLIP are rows of one table.

    score = scale · cos(picture's features, prompt's features)

with the checkpoint's learned scale (CLIP and PickScore: about 100), or 1 if the reference has none (HPSv2).
"""

from __future__ import annotations

# transformers' configurations accept keywords that its stubs do not name
# pyright: reportCallIssue=false
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from hypernoise.generators.text_cache import Remembered
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward, prepared, wide
from hypernoise.rewards.openclip import from_openclip
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.text import ENCODED_TOGETHER, Windows, combined, load_tokenizer, tokens
from hypernoise.rewards.weights import Released, filled, read_state

SOFTNESS = 0.01  # soft minimum over windows, in cosines: good and bad differ by a few hundredths

H14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}
L14: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
L14_LONG = {**L14, "text_config": {**L14["text_config"], "max_position_embeddings": 248}}


@dataclass(frozen=True)
class Clip:
    """One CLIP: its architecture, its weights, and its reference's scoring.

    scale: factor of the cosine; None: the checkpoint's exp(logit_scale).
    convert: from the published weight names to transformers'.
    """

    config: Mapping[str, Any]
    weights: Released
    fit: str = "crop"
    scale: float | None = None
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = field(default=dict)
    tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # one vocabulary for all, OpenAI's


SAFE = ("model.safetensors", "pytorch_model.bin")
CLIPS = {
    "clip": Clip(H14, Released("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", SAFE)),
    "pickscore": Clip(H14, Released("yuvalkirstain/PickScore_v1", SAFE)),
    "hpsv2.1": Clip(
        H14, Released("xswu/HPSv2", ("HPS_v2.1_compressed.pt",)), fit="pad", scale=1.0, convert=from_openclip
    ),
    "long-clip": Clip(L14_LONG, Released("zer0int/LongCLIP-GmP-ViT-L-14", SAFE)),
}


def load(name: str, settings: RewardSettings, weights: Path | None = None) -> ClipReward:
    """The reward of a row of `CLIPS`, from `weights` or its published location.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    row = CLIPS[name]
    file = weights or row.weights.fetch()
    model = filled(lambda: CLIPModel(CLIPConfig(**row.config)), row.convert(read_state(file)), f"{name}'s {file.name}")
    return ClipReward(name, model, load_tokenizer(row.tokenizer), settings, fit=row.fit, scale=row.scale)


class ClipReward(NetworkReward):
    """scale · cosine of any `transformers.CLIPModel`.

    Args:
        model, tokenizer: the tokenizer's end token must be the model's `eos_token_id`, whose state represents the text.
        fit: how pictures become square, see `Resize`.
        scale: factor of the cosine; None: the model's exp(logit_scale).
    """

    def __init__(
        self,
        name: str,
        model: CLIPModel,
        tokenizer: Any,
        settings: RewardSettings | None = None,
        *,
        fit: Any = "crop",
        scale: float | None = None,
    ):
        config: Any = model.config
        self.name, self.settings = name, settings or RewardSettings()
        self.resize = Resize(config.vision_config.image_size, fit)
        self.scale = model.logit_scale.detach().double().exp().item() if scale is None else scale
        self.network = prepared(model.requires_grad_(False).eval(), self.settings)
        self.limit: int = config.text_config.max_position_embeddings
        self.tokenizer = tokenizer
        self.windows = Windows(name, tokenizer, self.limit, self.settings.long_prompts)
        self.texts = Remembered(self._encode)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        texts = self.texts(prompts)
        counts = [len(windows) for windows in texts]
        pictures = self.pictures(resized).repeat_interleave(torch.tensor(counts, device=resized.device), 0)
        cosines = (pictures * torch.cat(texts)).sum(-1)
        return self.scale * combined(cosines, counts, self.settings.long_prompts, SOFTNESS)

    def pictures(self, resized: Tensor) -> Tensor:
        """Unit features [B, D] of pixels [B, 3, size, size] in [0, 1]."""
        network: Any = self.network
        seen = network.vision_model(pixel_values=normalise(resized, CLIP_MEAN, CLIP_STD).to(self.dtype))
        return normalize(wide(network.visual_projection(seen.pooler_output)), dim=-1)

    def forget(self) -> None:
        self.texts.clear()

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Unit features [windows, D] of each prompt."""
        split = [self.windows(prompt) for prompt in prompts]
        texts = [window for windows in split for window in windows]
        network: Any = self.network
        features = []
        for start in range(0, len(texts), ENCODED_TOGETHER):
            given = tokens(self.tokenizer, texts[start : start + ENCODED_TOGETHER], self.limit, self.device)
            features.append(network.text_projection(network.text_model(**given).pooler_output))
        return list(normalize(wide(torch.cat(features)), dim=-1).split([len(windows) for windows in split]))
