"""The scenes world's prompts, split so that no combination is in both training and evaluation, and their rewrites.

A combination is the content, in any wording: "a circle and a square" equals "a square and a circle",
and "left of" reversed is "right of". The split is fixed by a hash, the same on every machine. The training pictures
of rewards and generator also give colours to counts and relations, and so may show two coloured shapes
side by side whose pair is an evaluation caption, under a different caption (docs/scenes.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product

import numpy as np

from hypernoise.scenes.world import CATEGORIES, COLORS, Request, Thing, all_requests

EVALUATED_SHARE = 1 / 3
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def split(category: str) -> tuple[list[Request], list[Request]]:
    """Training and evaluation requests of a category; no combination is in both."""
    groups: dict[str, list[Request]] = {}
    for request in all_requests(category):
        groups.setdefault(combination(request), []).append(request)
    ordered = sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())
    held_out = round(len(ordered) * EVALUATED_SHARE)
    trained = [request for key in ordered[held_out:] for request in groups[key]]
    evaluated = [request for key in ordered[:held_out] for request in groups[key]]
    return trained, evaluated


def combination(request: Request) -> str:
    """A key equal for all wordings of a request."""
    things = [f"{t.count} {t.color} {t.shape}" for t in request.things]
    if request.relation in ("right of", "below"):
        return f" {OPPOSITE[request.relation]} ".join(reversed(things))
    return f" {request.relation or 'and'} ".join(things if request.relation else sorted(things))


def training_prompts(per_category: int = 400, seed: int = 0) -> list[str]:
    """Training captions, with the six categories equally often."""
    return [request.caption for request in _balanced([split(c)[0] for c in CATEGORIES], per_category, seed)]


def evaluation_requests(per_category: int = 50, seed: int = 0) -> list[Request]:
    """Evaluation requests, with the six categories equally often; never trained on."""
    return _balanced([split(c)[1] for c in CATEGORIES], per_category, seed)


def digest(requests: Sequence[Request]) -> str:
    """SHA-256 of the captions, one per line: identifies a result's prompts."""
    return hashlib.sha256("\n".join(request.caption for request in requests).encode()).hexdigest()


def _balanced(groups: list[list[Request]], each: int, seed: int) -> list[Request]:
    rng = np.random.default_rng([seed, each])
    chosen: list[Request] = []
    for group in groups:
        rounds = [rng.permutation(len(group)) for _ in range(-(-each // len(group)))]
        chosen += [group[i] for i in np.concatenate(rounds)[:each]]
    return chosen


class ScenesRewriter:
    """Rewrites of a caption without a language model, in an order fixed by the caption; none for any other text.

    A caption keeps its meaning when its two objects swap places, and becomes more specific when objects without a
    colour get one, as a language model's rewrites do too.
    """

    name = "scenes"

    def __init__(self) -> None:
        self.requests = {request.caption: request for category in CATEGORIES for request in all_requests(category)}

    def __call__(self, prompt: str, number: int) -> list[str]:
        """At most `number`, the swapped wording first; a picture of any of them is right for `prompt`."""
        request = self.requests.get(prompt)
        if request is None:
            return []
        swapped = Request(request.category, request.things[::-1], OPPOSITE.get(request.relation or ""))
        plain = [swapped] if len(request.things) == 2 else []
        dressed = [own for form in [request, *plain] for own in _colored(form)]
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
        order = np.random.default_rng(seed).permutation(len(dressed))
        wordings = [form.caption for form in [*plain, *(dressed[i] for i in order)]]
        return [text for text in dict.fromkeys(wordings) if text != prompt][:number]


def _colored(request: Request) -> list[Request]:
    """The request with every choice of different colours for its objects, keeping requested ones."""
    options = [[thing.color] if thing.color else list(COLORS) for thing in request.things]
    found = []
    for colors in product(*options):
        if len(set(colors)) == len(colors):
            things = tuple(Thing(t.shape, color, t.count) for t, color in zip(request.things, colors, strict=True))
            found.append(Request(request.category, things, request.relation))
    return found
