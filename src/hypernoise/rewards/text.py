"""Prompts for a text encoder of limited length: never truncated silently."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hypernoise.errors import no_traceback


class Windows:
    """Splits a prompt into texts that fit an encoder of `limit` tokens, special tokens included.

    policy "truncate" returns the prompt as it is, counts it in `truncated` if it does not fit, and warns at the
    first; the chunk policies split at clause ends, or between words in a clause that is too long itself,
    and fill each window from the left.
    """

    def __init__(self, reward: str, tokenizer: Any, limit: int, policy: str):
        self.reward, self.tokenizer, self.limit, self.policy = reward, tokenizer, limit, policy
        self.truncated = 0

    def __call__(self, prompt: str) -> list[str]:
        if self.policy == "truncate" or self._tokens(prompt) <= self.limit:
            return [self._noted(prompt)]
        windows: list[str] = []
        for clause in re.split(r"(?<=[.,;:!?])\s+|\s*\n\s*", prompt.strip()):
            for part in [clause] if self._tokens(clause) <= self.limit else clause.split():
                joined = f"{windows[-1]} {part}" if windows else part
                if windows and self._tokens(joined) <= self.limit:
                    windows[-1] = joined
                else:
                    windows.append(self._noted(part))
        return windows

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def _noted(self, text: str) -> str:
        """The text, counted if it is too long."""
        tokens = self._tokens(text)
        self.truncated += tokens > self.limit
        if tokens > self.limit and self.truncated == 1:
            warnings.warn(
                f"reward {self.reward!r} reads {self.limit} tokens, but a prompt has {tokens}: the rest is not "
                "scored (such prompts are counted; long_prompts: chunk-mean or chunk-min scores all of it)",
                stacklevel=2,
            )
        return text


def load_tokenizer(repository: str) -> Any:
    """The tokenizer of a Hub repository or a folder. InputError if it cannot be loaded."""
    get = f"hf download {repository} --include '*.json' --include '*.txt'"
    with no_traceback(f"the tokenizer of {repository} cannot be loaded (put it in the local Hub cache with: {get})"):
        return AutoTokenizer.from_pretrained(repository, trust_remote_code=False)


def combined(scores: Tensor, counts: list[int], policy: str, softness: float) -> Tensor:
    """One score per prompt [B] from its windows' scores [sum of counts].

    The mean, or with policy "chunk-min" the soft minimum −s·log(mean(exp(−score / s))) with `softness` s, which
    lies between the smallest score and the mean, so that other windows cannot make up for a bad one.
    """
    parts = scores.split(counts)
    if policy == "chunk-min":
        return torch.stack([-softness * ((-part / softness).logsumexp(0) - math.log(len(part))) for part in parts])
    return torch.stack([part.mean() for part in parts])
