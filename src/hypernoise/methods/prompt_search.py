"""Best of several wordings of a prompt by the reward, all drawn from the same noise.

Wordings come from any function, such as a language model behind an OpenAI-compatible endpoint; only an
endpoint whose URL is given is contacted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.endpoints import post_json
from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.settings import MOST_AT_ONCE, whole

Rewriter = Callable[[str, int], list[str]]
"""From a prompt and the number of rewrites to rewrites, maybe fewer. Repeatable results need a deterministic one."""

REQUEST = (
    "Rewrite the following prompt of a text-to-image model in {number} different ways that say more clearly what is to "
    "be seen. Keep every object, number, colour and position that it names, and add no other object. Answer with one "
    "rewrite a line and nothing else.\n\n{prompt}"
)
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, eq=False)
class PromptSearch:
    """Draws the prompt and n − 1 rewrites of it; the reward scores each picture for the original prompt.

    Rewrites that the text encoder would truncate are dropped. The generator's calls and the seconds are counted, the
    rewriter's calls are not.

    Args:
        rewriter: such as `EndpointRewriter`; its `name`, if any, is part of the key of cached results.
    """

    rewriter: Rewriter
    n: int = 8

    def __post_init__(self) -> None:
        whole(self, "n", most=MOST_AT_ONCE)

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
        return list(dict.fromkeys([prompt, *(text for text in rewrites if _fits(generator, text))]))[: self.n]


def _fits(generator: Generator, text: str) -> bool:
    try:
        generator.encode([text])
    except InputError:
        return False
    return True


def parse_lines(answer: str, number: int) -> list[str]:
    """The first `number` non-empty lines, without list markers and enclosing quotation marks."""
    lines = [
        re.sub(r"^\s*(?:\d+[.):]|[-*•])\s*", "", line).strip().strip("\"'“”").strip() for line in answer.splitlines()
    ]
    return [line for line in lines if line][:number]


class EndpointRewriter:
    """Calls `POST url/chat/completions`, at temperature 0.

    OPENAI_API_KEY from the environment, if set, is sent as a bearer token.

    Args:
        url: such as http://localhost:8000/v1.
        model: the model's name there.
    """

    def __init__(self, url: str, model: str):
        if not re.match(r"https?://", url):
            raise InputError(f"a rewriter's URL starts with http:// or https://, not {url!r}")
        if not model:
            raise InputError("name the endpoint's model with --rewriter-model")
        self.url, self.model = url.rstrip("/"), model
        self.name = f"{self.url} {model}"

    def __call__(self, prompt: str, number: int) -> list[str]:
        """Raises InputError if the endpoint does not respond in this format."""
        message = {"role": "user", "content": REQUEST.format(number=number, prompt=prompt)}
        body = {"model": self.model, "temperature": 0, "messages": [message]}
        key, who = os.environ.get("OPENAI_API_KEY"), f"the rewriter at {self.url}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = post_json(f"{self.url}/chat/completions", body, who, seconds=TIMEOUT, headers=headers)
            return parse_lines(answer["choices"][0]["message"]["content"] or "", number)
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # AttributeError: content is not a text
            raise InputError(f"{who} does not return a /chat/completions response") from error
