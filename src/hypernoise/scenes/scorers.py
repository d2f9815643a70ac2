"""The scenes reward: a matcher whose tokens attend to the picture, BLIP's image-text matching in miniature.

Its weights come with the package; `dev/scenes/` built and trained it on drawn pictures of the world's size, to which
other pictures are resized.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval, CLIPTokenizer

from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward, Resize, padded
from hypernoise.rewards.weights import pretrained
from hypernoise.scenes.world import SIZE

LONGEST = 24  # tokens, including start and end tokens
TEMPERATURE = 3  # of P(matches): otherwise the log-odds are so large that a wrong picture has no gradient
WEIGHTS = Path(str(files("hypernoise").joinpath("scenes/weights")))


def matcher_pictures(model: BlipForImageTextRetrieval, pixels: Tensor) -> Tensor:
    """States [B, 1 + patches, width] of pixels [B, 3, H, W] in [0, 1]."""
    return model.vision_model(pixel_values=pixels * 2 - 1).last_hidden_state


def matcher_words(model: BlipForImageTextRetrieval, pictures: Tensor, tokens: Any) -> tuple[Tensor, ...]:
    """States [B, words, width] of captions that attend to their pictures' states `pictures`, layer by layer."""
    seen = torch.ones(pictures.shape[:2], dtype=torch.long, device=pictures.device)
    return model.text_encoder(
        **tokens, encoder_hidden_states=pictures, encoder_attention_mask=seen, output_hidden_states=True
    ).hidden_states


def match_logit(model: BlipForImageTextRetrieval, words: Tensor) -> Tensor:
    """Log-odds [B] that each caption matches its picture."""
    scores = model.itm_head(words[:, 0]).float()
    return scores[:, 1] - scores[:, 0]


class Scorer(NetworkReward):
    """P(matches) of a matcher, at a temperature of 3."""

    def __init__(self, name: str, settings: RewardSettings | None = None, folder: Path = WEIGHTS / "matcher"):
        model = pretrained(BlipForImageTextRetrieval, str(folder), "the scenes matcher")
        super().__init__(name, model, Resize(SIZE), settings)
        self.tokenizer, self.longest = CLIPTokenizer.from_pretrained(WEIGHTS / "generator" / "tokenizer"), LONGEST

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        ids, mask = padded(self.texts(prompts), "right", self.device)
        pictures = matcher_pictures(self.network, resized.to(self.dtype))
        words = matcher_words(self.network, pictures, {"input_ids": ids, "attention_mask": mask})[-1]
        return torch.sigmoid(match_logit(self.network, words) / TEMPERATURE)


load = Scorer  # as the table of rewards calls it
