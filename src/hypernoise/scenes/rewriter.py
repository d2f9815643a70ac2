"""Rewrites of the scenes world's captions, without a language model.

A caption keeps its meaning when its two objects swap places, and becomes more specific when objects without a
colour get one, as a language model's rewrites do too.
"""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np

from hypernoise.scenes.world import CATEGORIES, COLORS, Request, Thing, all_requests

TURNED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}


class ScenesRewriter:
    """Rewrites of a caption, in an order fixed by the caption; none for a text that is not a caption of this world."""

    name = "scenes"

    def __init__(self) -> None:
        self.requests = {request.caption: request for category in CATEGORIES for request in all_requests(category)}

    def __call__(self, prompt: str, number: int) -> list[str]:
        """At most `number`, the swapped wording first; a picture of any of them is right for `prompt`."""
        request = self.requests.get(prompt)
        if request is None:
            return []
        plain = [_turned(request)] if len(request.things) == 2 else []
        dressed = [_dressed(form, colors) for form in [request, *plain] for colors in _colorings(form)]
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
        order = np.random.default_rng(seed).permutation(len(dressed))
        wordings = [form.caption for form in [*plain, *(dressed[i] for i in order)]]
        return [text for text in dict.fromkeys(wordings) if text != prompt][:number]


def _turned(request: Request) -> Request:
    return Request(request.category, tuple(reversed(request.things)), TURNED[request.relation])


def _colorings(request: Request) -> list[tuple[str, ...]]:
    """Colours for the objects of `request`, all different, keeping requested ones."""
    options = [[thing.color] if thing.color else list(COLORS) for thing in request.things]
    return [colors for colors in product(*options) if len(set(colors)) == len(colors)]


def _dressed(request: Request, colors: tuple[str, ...]) -> Request:
    things = tuple(Thing(t.shape, color, t.count) for t, color in zip(request.things, colors, strict=True))
    return Request(request.category, things, request.relation)
