"""Best of several wordings of a prompt by the reward, all drawn from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.generators.base import Generator, check_texts
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.settings import MOST_AT_ONCE, whole_number

Rewriter = Callable[[str, int], list[str]]
"""From a prompt and the number of rewrites to rewrites, maybe fewer. Repeatable results need a deterministic one."""


@dataclass(frozen=True, eq=False)
class PromptSearch:
    """Draws the prompt and n − 1 rewrites of it; the reward scores each picture for the original prompt.

    Rewrites that the text encoder would truncate are dropped. The generator's calls and the seconds are counted, the
    rewriter's calls are not.

    Args:
        rewriter: any function, such as one that asks a language model; its `name`, if any, is part of the key of
            cached results.
    """

    rewriter: Rewriter
    n: int = 8

    def __post_init__(self) -> None:
        whole_number(self.n, "n", most=MOST_AT_ONCE)

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
            best: dict[int, tuple[Tensor, Tensor, str]] = {}  # of each sample: score, pixels, wording
            for number in range(max(map(len, wordings))):
                rows = [i for i, texts in enumerate(wordings) if len(texts) > number]
                texts = [wordings[i][number] for i in rows]
                pixels = meter.draw(noise[rows], generator.encode(texts))
                score = meter.score(pixels, [prompts[i] for i in rows])
                for i, mine, drawn, text in zip(rows, score, pixels, texts, strict=True):
                    if i not in best or mine > best[i][0]:
                        best[i] = mine, drawn.clone(), text
        _, drawn, texts = zip(*best.values(), strict=True)  # every sample has a first wording, so they are in order
        return Result(torch.stack(drawn), noise, list(texts), None, meter.spent())

    def _wordings(self, generator: Generator, prompt: str) -> list[str]:
        rewrites = self.rewriter(prompt, self.n - 1) if self.n > 1 else []
        check_texts(rewrites, "a rewriter's result")
        fitting = [prompt]
        for text in rewrites:
            with suppress(InputError):  # one that the text encoder would truncate
                generator.encode([text])
                fitting.append(text)
        return list(dict.fromkeys(fitting))[: self.n]
