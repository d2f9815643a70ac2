"""Prompts for a text encoder of limited length: never truncated silently."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hypernoise.errors import no_traceback

ENCODED_TOGETHER = 256  # windows


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
        if self._fits(prompt):
            return [prompt]
        if self.policy == "truncate":
            self._cut(prompt)
            return [prompt]
        windows: list[str] = []
        for clause in re.split(r"(?<=[.,;:!?])\s+|\s*\n\s*", prompt.strip()):
            for part in [clause] if self._fits(clause) else clause.split():
                joined = f"{windows[-1]} {part}" if windows else part
                if windows and self._fits(joined):
                    windows[-1] = joined
                else:
                    windows.append(part)
                    if not self._fits(part):
                        self._cut(part)
        return windows

    def _fits(self, text: str) -> bool:
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids) <= self.limit

    def _cut(self, text: str) -> None:
        self.truncated += 1
        if self.truncated == 1:
            tokens = len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
            warnings.warn(
                f"reward {self.reward!r} reads {self.limit} tokens, but a prompt has {tokens}: the rest is not "
                "scored (such prompts are counted; long_prompts: chunk-mean or chunk-min scores all of it)",
                stacklevel=2,
            )


def load_tokenizer(repository: str) -> Any:
    """The tokenizer of a Hub repository or a folder. InputError if it cannot be loaded."""
    get = f"hf download {repository} --include '*.json' --include '*.txt'"
    with no_traceback(f"the tokenizer of {repository} cannot be loaded (put it in the local Hub cache with: {get})"):
        return AutoTokenizer.from_pretrained(repository, trust_remote_code=False)


def tokens(tokenizer: Any, texts: list[str], limit: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids and mask [texts, longest], truncated to `limit` tokens."""
    given = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {"input_ids": given["input_ids"].to(device), "attention_mask": given["attention_mask"].to(device)}


def combined(scores: Tensor, counts: list[int], policy: str, softness: float) -> Tensor:
    """One score per prompt [B] from its windows' scores [sum of counts].

    The mean, or with policy "chunk-min" the soft minimum −s·log(mean(exp(−score / s))) with `softness` s, which
    lies between the smallest score and the mean, so that other windows cannot make up for a bad one.
    """
    parts = scores.split(counts)
    if policy == "chunk-min":
        return torch.stack([-softness * ((-part / softness).logsumexp(0) - _log(len(part), part)) for part in parts])
    return torch.stack([part.mean() for part in parts])


def _log(number: int, like: Tensor) -> Tensor:
    return like.new_tensor(float(number)).log()
