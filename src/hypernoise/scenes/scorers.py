"""The scenes reward: a matcher in which words look at the picture, BLIP's image-text matching at miniature size.

Its weights come with the package; `dev/scenes/reward.py` made them from drawn pictures. It reads pictures of the
world's size.
"""

from __future__ import annotations

# transformers' configurations are built from keywords that its stubs do not name
# pyright: reportCallIssue=false, reportArgumentType=false
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPTokenizer,
)

from hypernoise.errors import InputError
from hypernoise.generators.text_cache import Remembered
from hypernoise.quiet import no_loading_bars
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import prepared
from hypernoise.rewards.text import Windows, combined
from hypernoise.scenes.world import SIZE

WIDTH, PATCH = 128, 8
PLACES_SEEN = 10  # times the usual start of the position embeddings, which a patch's colours would drown
LONGEST = 24  # tokens, start and end marks included
SOFTNESS = 0.1  # of the soft minimum over a long prompt's windows, in scores
TEMPERATURE = 3  # of P(matches): the log-odds are sure enough that a wrong picture would have no slope left to climb
WEIGHTS = Path(str(files("hypernoise").joinpath("scenes/weights")))


def build_matcher(tokenizer: CLIPTokenizer, layers: int = 2) -> BlipForImageTextRetrieval:
    """Words that attend to the picture's patches, and a matched-or-not head (BLIP's ITM, arXiv 2201.12086)."""
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = BlipTextConfig(
        **size,
        num_hidden_layers=3,
        encoder_hidden_size=WIDTH,
        vocab_size=len(tokenizer),
        max_position_embeddings=LONGEST,
        is_decoder=True,  # what gives BLIP's layers their attention to the picture; the words still see each other
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_marks(tokenizer),
    )
    vision = BlipVisionConfig(
        **size,
        num_hidden_layers=layers,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_range=0.02,  # the default, 1e-10, is for weights that are loaded, and hardly trains
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=WIDTH)
    model = BlipForImageTextRetrieval(config)
    model.vision_model.embeddings.position_embedding.data.mul_(PLACES_SEEN)
    return model


def _marks(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def matcher_pictures(model: BlipForImageTextRetrieval, pixels: Tensor) -> Tensor:
    """States [B, 1 + patches, width] of pixels [B, 3, H, W] in [0, 1]."""
    return model.vision_model(pixel_values=pixels * 2 - 1).last_hidden_state


def matcher_words(model: BlipForImageTextRetrieval, pictures: Tensor, tokens: Any) -> tuple[Tensor, ...]:
    """States [B, words, width] of captions that look at their pictures, whose states are `pictures`, layer by layer."""
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
    """A matcher as a reward; loads its weights, frozen, on first use, to the pictures' device."""

    def __init__(self, name: str, folder: Path | None = None, settings: RewardSettings | None = None):
        self.name, self.settings = name, settings or RewardSettings()
        self.folder = folder or WEIGHTS / "matcher"
        self.model: Any = None
        self.tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "generator" / "tokenizer")
        self.windows = Windows(name, self.tokenizer, LONGEST, self.settings.long_prompts)
        self._split = Remembered(lambda prompts: [self.windows(prompt) for prompt in prompts])

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """P(matches) [B] of pixels [B, 3, 64, 64] in [0, 1], at a temperature of 3."""
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
            loaded: Any = BlipForImageTextRetrieval
            with no_loading_bars():
                model = loaded.from_pretrained(self.folder).float().eval().requires_grad_(False)
            self.model = prepared(model, self.settings)
        if self.model.device != device:
            self.model.to(device)
