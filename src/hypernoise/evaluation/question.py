"""A question about a picture."""

from __future__ import annotations

from dataclasses import dataclass

YES = "yes"


@dataclass(frozen=True)
class Question:
    """`parents` are the numbers, from 0, of earlier questions that must be answered yes for this one to make sense."""

    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()
