"""Shared by rewards that are frozen networks: a resize, a device, a precision, prompts as tokens."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hypernoise.generators.text_cache import Remembered
from hypernoise.rewards.base import Reward, RewardSettings, check_pairs
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalise


class NetworkReward(Reward):
    """A reward whose scores are a frozen network's; a subclass implements `score`.

    The network moves to the pictures' device. A subclass that reads prompts sets `tokenizer`, and `longest`, in tokens
    with the special ones: a longer prompt is truncated, and the first one is warned of.
    """

    tokenizer: Any = None
    longest = 0
    _truncates = False

    def __init__(self, name: str, network: nn.Module, resize: Resize, settings: RewardSettings | None):
        self.name, self.resize, self.settings = name, resize, settings or RewardSettings()
        self.network: Any = prepared(network.requires_grad_(False).eval(), self.settings)
        self.texts = Remembered(self._encode)

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1], of any size."""
        check_pairs(pixels, prompts)
        if self.device != pixels.device:
            self.network.to(pixels.device)
            self.texts.clear()  # they may be on the other device
        return self.score(self.resize(pixels), prompts)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pictures resized by `self.resize`."""
        raise NotImplementedError

    def _encode(self, prompts: list[str]) -> list[Any]:
        """What `self.texts` caches for each prompt: by default its token ids [L]."""
        texts = []
        for prompt in prompts:
            ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > self.longest:
                if not self._truncates:
                    cut = f"reads {self.longest} tokens, but a prompt has {len(ids)}: the rest is not scored"
                    warnings.warn(f"reward {self.name!r} {cut}", stacklevel=2)
                self._truncates = True
                ids = self.tokenizer(prompt, truncation=True, max_length=self.longest).input_ids
            texts.append(torch.tensor(ids))
        return texts

    def normalised(
        self, resized: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
    ) -> Tensor:
        """The network's input, in its precision."""
        return normalise(resized, mean, std).to(self.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def padded(texts: list[Tensor], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, longest] of texts [L]."""
    both = (texts, [torch.ones_like(text) for text in texts])
    ids, mask = (pad_sequence(rows, batch_first=True, padding_side=side).to(device) for rows in both)
    return ids, mask


def prepared(network: nn.Module, settings: RewardSettings) -> Any:
    """A loaded network in the precision of `settings`; checkpointed block by block if requested.

    transformers checkpoints only in training mode, which has no other effect on networks without dropout.
    """
    network.to(getattr(torch, settings.dtype))
    if settings.checkpointing:
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()):
            raise AssertionError("a reward's network must be built without dropout")
        parts: Any = network.modules()
        for part in parts:
            if getattr(part, "supports_gradient_checkpointing", False):
                newer = getattr(part, "activation_checkpointing_enable", None)
                (newer or part.gradient_checkpointing_enable)({"use_reentrant": False})
                if hasattr(part, "_require_grads_hook"):  # for adapters: it makes the token embeddings leaves
                    part.disable_input_require_grads()
        network.train()
    return network


def linear_head(width: int) -> nn.Sequential:
    """The head of ImageReward and the aesthetic predictor: linear layers from `width` features to a score.

    Both are published with dropout between the layers, which only affects their numbering.
    """
    sizes = pairwise((width, 1024, 128, 64, 16, 1))
    layers = {number: nn.Linear(into, out) for number, (into, out) in zip("02467", sizes, strict=True)}
    return nn.Sequential(OrderedDict(layers))
