"""Creates methods from their names on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypernoise.errors import InputError, unknown
from hypernoise.methods.base import Method
from hypernoise.methods.finetune import FineTune
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.methods.plain import Plain
from hypernoise.methods.prompt_search import PromptSearch, Rewriter
from hypernoise.methods.reno import ReNO
from hypernoise.methods.search import BestOfN, Search


@dataclass(frozen=True)
class Given:
    """What methods may need in addition to their name: directories of trained networks, and a prompt rewriter."""

    adapters: Sequence[str] = ()
    finetuned: Sequence[str] = ()
    rewriter: Rewriter | None = None


def _trained(kind: str, folders: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """A name and a directory for each training run; the plain name if there is only one."""
    if not folders:
        raise InputError(f"method {kind!r} needs {flag} DIR, the directory it was saved in")
    return [(kind if len(folders) == 1 else f"{kind}-{number}", folder) for number, folder in enumerate(folders, 1)]


def _hypernoise(given: Given, strength: str | None = None) -> list[HyperNoise]:
    runs = _trained(f"hypernoise@{strength}" if strength else "hypernoise", given.adapters, "--adapter")
    return [HyperNoise(folder, strength=float(strength or 1), name=name) for name, folder in runs]


def _finetune(given: Given) -> list[FineTune]:
    return [FineTune(folder, name=name) for name, folder in _trained("finetune", given.finetuned, "--finetuned")]


def _prompt_search(given: Given, n: str | None) -> list[PromptSearch]:
    if given.rewriter is None:
        raise InputError("prompt-search needs a rewriter: --rewriter URL, or prompts of the scenes world")
    return [PromptSearch(given.rewriter, int(n or 8))]


METHODS: list[tuple[str, str, Callable[..., Sequence[Method]]]] = [  # example, pattern, maker from the pattern's groups
    ("plain", r"plain", lambda given: [Plain()]),
    ("best-of-8", r"best-of-(\d{1,6})", lambda given, n: [BestOfN(int(n))]),
    ("search-7x4", r"search-(\d{1,6})x(\d{1,6})", lambda given, rounds, k: [Search(int(rounds), int(k))]),
    ("reno-50", r"reno(?:-(\d{1,6}))?", lambda given, n: [ReNO(int(n or 50))]),
    (
        "hypernoise-reno-50",
        r"hypernoise-reno(?:-(\d{1,6}))?",
        lambda given, n: [ReNO(int(n or 50), start=start) for start in _hypernoise(given)],
    ),
    ("prompt-search-8", r"prompt-search(?:-(\d{1,6}))?", _prompt_search),
    ("hypernoise", r"hypernoise", _hypernoise),
    ("hypernoise@0.5", r"hypernoise@(\d*\.?\d+)", _hypernoise),
    ("finetune", r"finetune", _finetune),
]


def make_methods(names: Sequence[str], given: Given) -> list[Method]:
    """The methods with these names; `hypernoise` and `finetune` give one per training run.

    Raises InputError for an unknown name, with the nearest one, or for one that lacks what it needs.
    """
    made: list[Method] = []
    for name in names:
        for _, pattern, make in METHODS:
            if found := re.fullmatch(pattern, name):
                made += make(given, *found.groups())
                break
        else:
            raise unknown("method", name, [example for example, _, _ in METHODS])
    return made
