"""The best of several wordings of a prompt by the reward, all drawn from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.methods.base import Problem, Result, metered

Rewriter = Callable[[str, int], list[str]]
"""Of a prompt, and how many rewrites are wanted; fewer may come. Deterministic ones make results repeatable."""


@dataclass(frozen=True, eq=False)
class PromptSearch:
    """Draws the prompt and n − 1 rewrites of it; the reward scores each picture for the prompt that was asked.

    Rewrites that the text encoder would cut are left out. The generator's calls and the seconds are counted, the
    rewriter's calls are not.

    Args:
        rewriter: see `rewriters`; its `name`, if it has one, tells its results apart from another's.
    """

    rewriter: Rewriter
    n: int = 8

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"prompt-search takes n of at least 1, not {self.n}")

    @property
    def name(self) -> str:
        return f"prompt-search-{self.n}"

    def settings(self) -> dict[str, Any]:
        rewriter = getattr(self.rewriter, "name", getattr(self.rewriter, "__name__", type(self.rewriter).__name__))
        return {"method": "prompt-search", "n": self.n, "rewriter": rewriter}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        generator = problem.generator
        with metered(problem) as meter:
            found = {prompt: self._wordings(generator, prompt) for prompt in dict.fromkeys(prompts)}
            wordings = [found[prompt] for prompt in prompts]
            scores = torch.full((len(prompts), self.n), math.nan, device=noise.device)
            best = torch.full((len(prompts),), -math.inf, device=noise.device)
            drawn_with, best_pixels = list(prompts), None
            for number in range(max(map(len, wordings))):
                rows = [i for i, texts in enumerate(wordings) if len(texts) > number]
                texts = [wordings[i][number] for i in rows]
                pixels = meter.draw(noise[rows], generator.encode(texts))
                score = meter.score(pixels, [prompts[i] for i in rows]).to(scores.dtype)
                scores[rows, number] = score
                if best_pixels is None:  # the first wording is the prompt itself, which every sample has
                    best_pixels = pixels.clone()
                for place, i in enumerate(rows):
                    if score[place] > best[i]:
                        best[i], best_pixels[i], drawn_with[i] = score[place], pixels[place], texts[place]
        assert best_pixels is not None
        return Result(best_pixels, noise, drawn_with, None, scores, meter.spent())

    def _wordings(self, generator: Generator, prompt: str) -> list[str]:
        rewrites = self.rewriter(prompt, self.n - 1) if self.n > 1 else []
        return list(dict.fromkeys([prompt, *(text for text in rewrites if _fits(generator, text))]))[: self.n]


def _fits(generator: Generator, text: str) -> bool:
    try:
        generator.encode([text])
    except InputError:
        return False
    return True
