"""Prompts as token ids for text encoders of limited length: never truncated silently."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from hypernoise.errors import no_traceback


class Reader:
    """Token ids [L] of a prompt for an encoder of `limit` tokens, special tokens included.

    A longer prompt is truncated and counted in `truncated`; the first one is warned of.
    """

    def __init__(self, reward: str, tokenizer: Any, limit: int):
        self.reward, self.tokenizer, self.limit, self.truncated = reward, tokenizer, limit, 0

    def __call__(self, prompt: str) -> Tensor:
        ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > self.limit:
            self.truncated += 1
            if self.truncated == 1:
                warnings.warn(
                    f"reward {self.reward!r} reads {self.limit} tokens, but a prompt has {len(ids)}: "
                    "the rest is not scored",
                    stacklevel=2,
                )
            ids = self.tokenizer(prompt, truncation=True, max_length=self.limit).input_ids
        return torch.tensor(ids)


def padded(texts: list[Tensor], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, longest] of texts [L]."""
    both = (texts, [torch.ones_like(text) for text in texts])
    ids, mask = (pad_sequence(rows, batch_first=True, padding_side=side).to(device) for rows in both)
    return ids, mask


def load_tokenizer(repository: str) -> Any:
    """The tokenizer of a Hub repository or a folder. InputError if it cannot be loaded."""
    get = f"hf download {repository} --include '*.json' --include '*.txt'"
    with no_traceback(f"the tokenizer of {repository} cannot be loaded (put it in the local Hub cache with: {get})"):
        return AutoTokenizer.from_pretrained(repository, trust_remote_code=False)
