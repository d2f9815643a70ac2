"""Asking a server of the user's own; nothing is contacted unless its address was given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

from hypernoise.errors import InputError, first_line


def post_json(url: str, body: Any, who: str, *, seconds: float, headers: Mapping[str, str] = {}) -> Any:
    """The JSON that `url` answers to the JSON `body`.

    Args:
        who: begins the message of an InputError.
        seconds: to wait for the answer.

    Raises:
        InputError: nobody answers, or with an error.
        ValueError: the answer is no JSON.
    """
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=seconds) as answer:
            return json.load(answer)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise InputError(f"{who} does not answer: {first_line(error)}") from error
