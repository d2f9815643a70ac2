"""The scenes world's prompts, split so that no combination is in both training and evaluation.

A combination is the content, in any wording: "a circle and a square" equals "a square and a circle",
and "left of" reversed is "right of". The split is fixed by a hash, the same on every machine. The training pictures
of rewards and generator also give colours to counts and relations, and so may show two coloured shapes
side by side whose pair is an evaluation caption, under a different caption (docs/scenes.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hypernoise.scenes.world import CATEGORIES, Request, all_requests

EVALUATED_SHARE = 1 / 3
EVALUATION_VERSION = 1  # raised when the evaluation requests change; a test pins their hash
TURNED_ROUND = {"right of": "left of", "below": "above"}


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
    if request.relation in TURNED_ROUND:
        return f" {TURNED_ROUND[request.relation]} ".join(reversed(things))
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
