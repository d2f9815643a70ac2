"""Requests to a server that the user named; no other is ever contacted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

from hypernoise.errors import InputError, first_line


def post_json(url: str, body: Any, who: str, *, seconds: float, headers: Mapping[str, str] = {}) -> Any:
    """The JSON response of `url` to the JSON `body`.

    Args:
        who: the start of an InputError's message.
        seconds: timeout.

    Raises:
        InputError: no response, or an error response.
        ValueError: the response is not JSON.
    """
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=seconds) as answer:
            return json.load(answer)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise InputError(f"{who} does not answer: {first_line(error)}") from error
