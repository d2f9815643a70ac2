"""Creates methods from their names on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hypernoise.errors import InputError, unknown
from hypernoise.methods.base import Method
from hypernoise.methods.best_of_n import BestOfN, Plain
from hypernoise.methods.finetune import FineTune
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.methods.prompt_search import PromptSearch, Rewriter
from hypernoise.methods.reno import ReNO
from hypernoise.methods.search import Search

EXAMPLES = [
    "plain", "best-of-8", "search-7x4", "reno-50", "prompt-search-8", "hypernoise", "hypernoise@0.5", "finetune",
]  # fmt: skip
NUMBERED: dict[str, Callable[..., Method]] = {  # methods whose name has all their arguments
    r"plain": Plain,
    r"best-of-(\d{1,6})": BestOfN,
    r"search-(\d{1,6})x(\d{1,6})": Search,
    r"reno(?:-(\d{1,6}))?": ReNO,
}


def make_methods(
    names: Sequence[str],
    *,
    adapters: Sequence[str] = (),
    finetuned: Sequence[str] = (),
    rewriter: Rewriter | None = None,
) -> list[list[Method]]:
    """The method of each name, in a list; `hypernoise` and `finetune` are lists of one per directory of a training run.

    Raises InputError for an unknown name, with the nearest one, or for one that lacks what it needs.
    """
    return [_made(name, adapters, finetuned, rewriter) for name in names]


def _made(name: str, adapters: Sequence[str], finetuned: Sequence[str], rewriter: Rewriter | None) -> list[Method]:
    for pattern, method in NUMBERED.items():
        if found := re.fullmatch(pattern, name):
            return [method(*(int(number) for number in found.groups() if number))]
    if found := re.fullmatch(r"prompt-search(?:-(\d{1,6}))?", name):
        if rewriter is None:
            raise InputError("prompt-search needs a rewriter: --prompts scenes has one, PromptSearch takes any")
        return [PromptSearch(rewriter, int(found[1] or 8))]
    if found := re.fullmatch(r"hypernoise(?:@(\d*\.?\d+))?", name):
        strength = float(found[1] or 1)
        return [HyperNoise(own, strength=strength, name=run) for run, own in _runs(name, adapters, "--adapter")]
    if name == "finetune":
        return [FineTune(own, name=run) for run, own in _runs(name, finetuned, "--finetuned")]
    raise unknown("method", name, EXAMPLES)


def _runs(name: str, folders: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """A name and a directory for each training run; the plain name if there is only one."""
    if not folders:
        raise InputError(f"method {name!r} needs {flag} DIR, the directory it was saved in")
    return [(name if len(folders) == 1 else f"{name}-{number}", folder) for number, folder in enumerate(folders, 1)]
