"""The colour of an object by CLIP: zero-shot over ten colours, on its crop, masked with grey.

As in the benchmark (github.com/djghosh13/geneval, evaluate_images.py): everything but the object is #999, the crop
is the object's box, and a colour's text feature is the normalised mean of three sentences' unit features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from hypernoise.evaluation.geneval.requests import COLORS
from hypernoise.evaluation.geneval.rules import Detection
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.text import load_tokenizer
from hypernoise.rewards.weights import pretrained

SENTENCES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GREY = 0x99 / 255


class ClipColors:
    """The nearest of `COLORS` for an object in a picture."""

    def __init__(self, model: CLIPModel, tokenizer: Any, name: str):
        self.name, self.clip = name, ClipReward("colors", model, tokenizer)
        self.known: dict[str, Tensor] = {}

    @classmethod
    def load(cls, source: str, device: torch.device | str) -> ClipColors:
        """From a Hub repository or a folder; raises InputError for weights that cannot be loaded or do not fit."""
        return cls(pretrained(CLIPModel, source, f"CLIP {source}").to(device), load_tokenizer(source), source)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, detection: Detection, mask: Tensor) -> str:
        """The colour, from pixels [3, H, W] in [0, 1] and the object's mask [H, W]."""
        left, top, right, bottom = (round(side) for side in detection.box)
        alone = torch.where(mask, pixels, GREY)[None, :, top:bottom, left:right]
        seen = self.clip.pictures(self.clip.resize(alone.to(self.clip.device)))
        return COLORS[int((seen @ self._texts(detection.name).T).argmax())]

    def _texts(self, name: str) -> Tensor:
        """Unit features [colours, D]."""
        if name not in self.known:
            sentences = [sentence.format(color=color, name=name) for color in COLORS for sentence in SENTENCES]
            features = torch.cat(self.clip.texts(sentences)).unflatten(0, (len(COLORS), len(SENTENCES)))
            self.known[name] = normalize(features.mean(1), dim=-1)
        return self.known[name]
