"""A reward behind an HTTP endpoint: scores without a gradient, for validation only.

    POST {"prompts": [...], "images": [PNG in base64, ...]}  ->  {"scores": [...]}

A request without pictures, answered by an empty list, checks that the server is up.
"""

from __future__ import annotations

import base64
import io
import json
from http.client import HTTPException
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from hypernoise.errors import InputError, first_line
from hypernoise.files import picture_of
from hypernoise.rewards.base import Reward

SCHEMES = ("http://", "https://")
SECONDS = 120


class EndpointReward(Reward):
    """Scores from a user's server.

    Args:
        name: its URL, http:// or https://.

    Raises:
        InputError: no response, or not one finite score per picture; or pictures that need a gradient.
    """

    def __init__(self, name: str):
        self.name = name
        self._ask([], [])

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1], which the server sees in 256 levels."""
        if pixels.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"reward {self.name!r} is an endpoint, which gives no gradient: name it in validation_reward"
            )
        return torch.tensor(self._ask(prompts, [_png(own) for own in pixels]), device=pixels.device)

    def _ask(self, prompts: list[str], images: list[str]) -> list[float]:
        body = json.dumps({"prompts": prompts, "images": images}).encode()
        request = Request(self.name, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                scores = json.load(answer)["scores"]
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise InputError(f"reward {self.name!r} does not answer: {first_line(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'reward {self.name!r} does not answer with {{"scores": [...]}}') from error
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or len(scores) != len(images):
            raise InputError(f"reward {self.name!r} answers with {scores!r:.80} for {len(images)} pictures")
        return [float(score) for score in scores]


def _png(pixels: Tensor) -> str:
    kept = io.BytesIO()
    picture_of(pixels).save(kept, "PNG")
    return base64.b64encode(kept.getvalue()).decode()
