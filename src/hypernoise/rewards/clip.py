"""Cosine rewards: CLIP ViT-H/14, PickScore v1, HPSv2.1 and Long-CLIP are rows of one table.

    score = scale · cos(picture's features, prompt's features)

with the checkpoint's learned scale (CLIP and PickScore: about 100), or 1 if the reference has none (HPSv2).
"""

from __future__ import annotations

# transformers' configurations accept keywords that its stubs do not name
# pyright: reportCallIssue=false
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from hypernoise.generators.hub import fetch
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward, Resize, padded
from hypernoise.rewards.weights import filled, load_tokenizer, read_state, renamed


def _config(joint: int, text: tuple[int, ...], vision: tuple[int, ...], act: str, longest: int) -> dict[str, Any]:
    """Of towers of a width, layers and heads."""

    def tower(size: tuple[int, ...]) -> dict[str, Any]:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        both = {"intermediate_size": 4 * size[0], "projection_dim": joint, "hidden_act": act}
        return {**dict(zip(names, size, strict=True)), **both}

    read, see = {**tower(text), "max_position_embeddings": longest}, {**tower(vision), "patch_size": 14}
    return {"projection_dim": joint, "text_config": read, "vision_config": see}


H14 = _config(1024, (1024, 24, 16), (1280, 32, 16), "gelu", 77)
L14 = _config(768, (768, 12, 12), (1024, 24, 16), "quick_gelu", 248)

OPENCLIP = {  # its names (github.com/mlfoundations/open_clip, model.py and transformer.py), and transformers'
    r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
    r"^transformer\.resblocks": "text_model.encoder.layers",
    r"\.attn\.": ".self_attn.",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.c_fc\.": ".fc1.",
    r"\.c_proj\.": ".fc2.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",  # transformers' own spelling
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.proj$": "visual_projection.weight",
    r"^text_projection$": "text_projection.weight",
}


def from_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `transformers.CLIPModel` from OpenCLIP's, under which HPSv2.1 is published.

    OpenCLIP keeps query, key and value in one matrix, and its projections transposed; everything else differs only in
    its name. Unknown names stay and are refused later.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in renamed(state, OPENCLIP, unused="attn_mask").items():  # the causal mask of older versions
        place, fused, kind = name.partition("in_proj_")
        if fused:
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            converted |= {f"{place}{letter}_proj.{kind}": third.contiguous() for letter, third in thirds}
        else:
            converted[name] = tensor.T.contiguous() if name.endswith("_projection.weight") else tensor
    return converted


@dataclass(frozen=True)
class Clip:
    """One CLIP: its architecture, its weights, and its reference's scoring.

    weights: a repository on the Hub, and the files of which the first that it has is read.
    scale: factor of the cosine; None: the checkpoint's exp(logit_scale).
    convert: from the published weight names to transformers'.
    """

    config: Mapping[str, Any]
    weights: tuple[str, ...]
    fit: str = "crop"
    scale: float | None = None
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = field(default=dict)


TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # one vocabulary for all, OpenAI's
SAFE = ("model.safetensors", "pytorch_model.bin")
CLIPS = {
    "clip": Clip(H14, ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", *SAFE)),
    "pickscore": Clip(H14, ("yuvalkirstain/PickScore_v1", *SAFE)),
    "hpsv2.1": Clip(H14, ("xswu/HPSv2", "HPS_v2.1_compressed.pt"), fit="pad", scale=1.0, convert=from_openclip),
    "long-clip": Clip(L14, ("zer0int/LongCLIP-GmP-ViT-L-14", *SAFE)),
}


def load(name: str, settings: RewardSettings) -> ClipReward:
    """The reward of a row of `CLIPS`. Raises InputError for weights that cannot be loaded or do not fit."""
    row = CLIPS[name]
    state = row.convert(read_state(fetch(*row.weights)))
    model = filled(lambda: CLIPModel(CLIPConfig(**row.config)), state, f"reward {name!r}")
    return ClipReward(name, model, load_tokenizer(TOKENIZER), settings, fit=row.fit, scale=row.scale)


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
        self.scale = model.logit_scale.detach().double().exp().item() if scale is None else scale  # before any rounding
        super().__init__(name, model, Resize(config.vision_config.image_size, fit), settings)
        self.tokenizer, self.longest = tokenizer, config.text_config.max_position_embeddings

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        return self.scale * (self.pictures(resized) * torch.stack(self.texts(prompts))).sum(-1)

    def pictures(self, resized: Tensor) -> Tensor:
        """Unit features [B, D] of pixels [B, 3, size, size] in [0, 1]."""
        seen = self.network.vision_model(pixel_values=self.normalised(resized))
        return normalize(wide(self.network.visual_projection(seen.pooler_output)), dim=-1)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Unit features [D] of each prompt."""
        ids, mask = padded(super()._encode(prompts), "right", self.device)
        states = self.network.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return list(normalize(wide(self.network.text_projection(states)), dim=-1))
