"""Language models that reword prompts: behind an OpenAI-compatible endpoint, or in a local directory.

Nothing is contacted or downloaded unless its address or directory is given.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError, first_line
from hypernoise.quiet import no_loading_bars

REQUEST = (
    "Rewrite the following prompt of a text-to-image model in {number} different ways that say more clearly what is to "
    "be seen. Keep every object, number, colour and position that it names, and add no other object. Answer with one "
    "rewrite a line and nothing else.\n\n{prompt}"
)
TIMEOUT = 60.0  # seconds


def parse_lines(answer: str, number: int) -> list[str]:
    """The first `number` lines that are not empty, without list marks and quotation marks around them."""
    lines = [
        re.sub(r"^\s*(?:\d+[.):]|[-*•])\s*", "", line).strip().strip("\"'“”").strip() for line in answer.splitlines()
    ]
    return [line for line in lines if line][:number]


class EndpointRewriter:
    """Asks `POST url/chat/completions`, at temperature 0.

    Args:
        url: such as http://localhost:8000/v1.
        model: the model's name there.
        key: sent as a bearer token if not empty; by default what the environment has in OPENAI_API_KEY.
    """

    def __init__(self, url: str, model: str, *, key: str | None = None):
        if not re.match(r"https?://", url):
            raise InputError(f"a rewriter's address starts with http:// or https://, not {url!r}")
        self.url, self.model = url.rstrip("/"), model
        self.key = os.environ.get("OPENAI_API_KEY", "") if key is None else key
        self.name = f"{self.url} {model}"

    def __call__(self, prompt: str, number: int) -> list[str]:
        """Raises InputError if the endpoint does not answer, or not in this form."""
        message = {"role": "user", "content": REQUEST.format(number=number, prompt=prompt)}
        body = json.dumps({"model": self.model, "temperature": 0, "messages": [message]}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                content = json.load(answer)["choices"][0]["message"]["content"] or ""
                if not isinstance(content, str):
                    raise TypeError(content)
        except (OSError, HTTPException) as error:
            raise InputError(f"the rewriter at {self.url} does not answer: {error or type(error).__name__}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"the rewriter at {self.url} does not answer as /chat/completions does") from error
        return parse_lines(content, number)


class LocalRewriter:
    """A causal language model of transformers, read from a directory; greedy, so that it repeats itself.

    Raises:
        InputError: the directory holds no model that transformers can load.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu", longest: int = 512):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not Path(folder).is_dir():
            hint = (
                "" if "/" in str(folder) and ":" not in str(folder) else "; an endpoint starts with http:// or https://"
            )
            raise InputError(f"no language model at {folder}: it is not a directory{hint}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            with no_loading_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no language model: {first_line(error)}") from error
        self.model = model.to(device).eval()
        self.longest = longest
        self.name = str(folder)

    def __call__(self, prompt: str, number: int) -> list[str]:
        request = REQUEST.format(number=number, prompt=prompt)
        if self.tokenizer.chat_template:
            request = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
            )
        tokens = self.tokenizer(request, return_tensors="pt").to(self.model.device)
        written = self.model.generate(**tokens, max_new_tokens=self.longest, do_sample=False)
        answer = self.tokenizer.decode(written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        return parse_lines(answer, number)
