"""Caches of encoded prompts.

A prompt's embedding depends only on its text and the text encoder, not on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hypernoise.generators.base import Condition, Generator

REMEMBERED = 100_000  # prompts; 400 MB of fp32 features of size 1024
MEMORY = 2**30  # bytes of embeddings kept in memory


class Remembered:
    """Caches the result of `encode` for each prompt; forgets the oldest of more than `REMEMBERED`."""

    def __init__(self, encode: Callable[[list[str]], Sequence[Any]]):
        self.encode = encode
        self.made: dict[str, Any] = {}

    def __call__(self, prompts: list[str]) -> list[Any]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.made]
        fresh = dict(zip(new, self.encode(new), strict=True)) if new else {}
        found = [fresh[prompt] if prompt in fresh else self.made[prompt] for prompt in prompts]
        self.made.update(fresh)
        while len(self.made) > REMEMBERED:
            self.made.pop(next(iter(self.made)))
        return found

    def clear(self) -> None:
        self.made.clear()


class KeptInMemory:
    """Encodes each prompt when it is first seen and caches it, as long as all of them fit into `limit` bytes.

    Prompts with embeddings of different lengths are not cached.
    """

    def __init__(self, generator: Generator, prompts: Sequence[str], limit: int = MEMORY):
        self.generator, self.limit, self.count = generator, limit, len(set(prompts))
        self.rows, self.fits = Remembered(self._alone), True

    def __call__(self, prompts: list[str]) -> Condition:
        if self.fits:
            rows = [row.tensors for row in self.rows(prompts)]
            shapes = [{name: tensor.shape for name, tensor in row.items()} for row in rows]
            size = self.count * sum(tensor.nbytes for tensor in rows[0].values())
            self.fits = size <= self.limit and all(own == shapes[0] for own in shapes)
            if self.fits:
                whole = Condition({name: torch.cat([row[name] for row in rows]) for name in rows[0]})
                return whole.to(self.generator.device)
            self.rows.clear()
        return self.generator.encode(prompts)

    def _alone(self, prompts: list[str]) -> list[Condition]:
        """Each is encoded alone: in a batch, its last bits would depend on the others."""
        with self.generator.encoding():
            return [self.generator.encode([prompt]).to("cpu") for prompt in prompts]
