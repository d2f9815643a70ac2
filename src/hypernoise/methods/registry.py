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


def _noise_networks(given: Given, name: str = "hypernoise", strength: float = 1.0) -> list[HyperNoise]:
    runs = _trained(name, given.adapters, "--adapter")
    return [HyperNoise(folder, strength=strength, name=own) for own, folder in runs]


def _reno(found: re.Match[str], given: Given) -> list[Method]:
    starts: Sequence[HyperNoise | None] = _noise_networks(given) if found[1] else [None]
    return [ReNO(int(found[2] or 50), start=start) for start in starts]


def _prompt_search(found: re.Match[str], given: Given) -> list[Method]:
    if given.rewriter is None:
        raise InputError("prompt-search needs a rewriter: --rewriter URL, or prompts of the scenes world")
    return [PromptSearch(given.rewriter, int(found[1] or 8))]


METHODS: list[tuple[str, str, Callable[[re.Match[str], Given], list[Method]]]] = [  # pattern, example, maker
    (r"plain", "plain", lambda found, given: [Plain()]),
    (r"best-of-(\d{1,6})", "best-of-8", lambda found, given: [BestOfN(int(found[1]))]),
    (r"search-(\d{1,6})x(\d{1,6})", "search-7x4", lambda found, given: [Search(int(found[1]), int(found[2]))]),
    (r"(hypernoise-)?reno(?:-(\d{1,6}))?", "reno-50", _reno),
    (r"prompt-search(?:-(\d{1,6}))?", "prompt-search-8", _prompt_search),
    (r"hypernoise", "hypernoise", lambda found, given: [*_noise_networks(given)]),
    (
        r"hypernoise@(\d*\.?\d+)",
        "hypernoise@0.5",
        lambda found, given: [*_noise_networks(given, found[0], float(found[1]))],
    ),
    (
        r"finetune",
        "finetune",
        lambda found, given: [
            FineTune(folder, name=name) for name, folder in _trained("finetune", given.finetuned, "--finetuned")
        ],
    ),
]
EXAMPLES = [*(example for _, example, _ in METHODS), "hypernoise-reno-50"]


def make_methods(names: Sequence[str], given: Given) -> list[Method]:
    """The methods with these names; `hypernoise` and `finetune` give one per training run.

    Raises InputError for an unknown name, with the nearest one, or for one that lacks what it needs.
    """
    made: list[Method] = []
    for name in names:
        makers = [(match, make) for pattern, _, make in METHODS if (match := re.fullmatch(pattern, name))]
        if not makers:
            raise unknown("method", name, EXAMPLES)
        (match, make), *_ = makers
        made += make(match, given)
    return made
