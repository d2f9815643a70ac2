"""One question of a picture."""

from __future__ import annotations

from dataclasses import dataclass

YES = "yes"


@dataclass(frozen=True)
class Question:
    """`parents` are the numbers of earlier questions, from 0, without whose yes this one makes no sense."""

    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()
