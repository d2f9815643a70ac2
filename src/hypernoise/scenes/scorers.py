"""The scenes reward: a matcher whose tokens attend to the picture, BLIP's image-text matching in miniature.

Its weights come with the package; `dev/scenes/` built and trained it on drawn pictures. It takes pictures
of the world's size.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval, CLIPTokenizer

from hypernoise.errors import InputError
from hypernoise.generators.text_cache import Remembered
from hypernoise.rewards.base import RewardSettings, check_pairs
from hypernoise.rewards.network import prepared
from hypernoise.rewards.text import Windows, combined
from hypernoise.rewards.weights import pretrained
from hypernoise.scenes.world import SIZE

LONGEST = 24  # tokens, including start and end tokens
SOFTNESS = 0.1  # soft minimum over a long prompt's windows, in scores
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


def load(name: str, settings: RewardSettings) -> Scorer:
    """The shipped matcher, as the reward `name`."""
    return Scorer(name, settings=settings)


class Scorer:
    """A matcher as a reward; loads its frozen weights on first use, to the pictures' device."""

    def __init__(self, name: str, folder: Path | None = None, settings: RewardSettings | None = None):
        self.name, self.settings = name, settings or RewardSettings()
        self.folder = folder or WEIGHTS / "matcher"
        self.model: Any = None
        self.tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "generator" / "tokenizer")
        self.windows = Windows(name, self.tokenizer, LONGEST, self.settings.long_prompts)
        self._split = Remembered(lambda prompts: [self.windows(prompt) for prompt in prompts])

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """P(matches) [B] of pixels [B, 3, 64, 64] in [0, 1], at a temperature of 3."""
        check_pairs(pixels, prompts)
        if pixels.shape[1:] != (3, SIZE, SIZE):
            raise InputError(f"reward {self.name!r} reads {SIZE}x{SIZE} pictures, not {list(pixels.shape[2:])}")
        self._ready(torch.empty(0, device=self.settings.device or pixels.device).device)
        split = self._split(prompts)
        counts, texts = [len(windows) for windows in split], [window for windows in split for window in windows]
        seen = pixels.to(self.model.device, self.model.dtype)
        pictures = matcher_pictures(self.model, seen).repeat_interleave(torch.tensor(counts, device=seen.device), 0)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        words = matcher_words(self.model, pictures, tokens.to(seen.device))[-1]
        scores = torch.sigmoid(match_logit(self.model, words) / TEMPERATURE)
        return combined(scores, counts, self.settings.long_prompts, SOFTNESS).to(pixels.device)

    def _ready(self, device: torch.device) -> None:
        if self.model is None:
            model = pretrained(BlipForImageTextRetrieval, str(self.folder), "the scenes matcher")
            self.model = prepared(model, self.settings)
        if self.model.device != device:
            self.model.to(device)
