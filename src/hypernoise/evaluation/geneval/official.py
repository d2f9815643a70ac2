"""The benchmark's 553 prompts, generated here: their file is the output of a published recipe with a fixed seed.

github.com/djghosh13/geneval, prompts/create_prompts.py: numpy's default generator from seed 43 draws 100 prompts per
category from the 80 COCO classes (single objects: each class once), and duplicates are dropped. The result is
checked against `SHA256`, to detect a numpy that draws other numbers.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.rules import COLORS, RELATIONS, Request, parse_lines

SEED, EACH = 43, 100
SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
CLASSES = (  # COCO's 80 in order; mouse, remote and keyboard under the benchmark's names
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def official_requests() -> list[Request]:
    return parse_lines(metadata(), "geneval")


def metadata() -> str:
    """evaluation_metadata.jsonl, byte for byte like the recipe's.

    Raises:
        InputError: this numpy draws other numbers from the seed.
    """
    lines = dict.fromkeys(json.dumps(line) + "\n" for line in _drawn(np.random.default_rng(SEED)))  # each once
    text = "".join(lines)
    if hashlib.sha256(text.encode()).hexdigest() != SHA256:
        raise InputError(
            f"numpy {np.__version__} does not draw the benchmark's prompts from its seed; use "
            "prompts/evaluation_metadata.jsonl of the benchmark's repository instead"
        )
    return text


def _drawn(rng: np.random.Generator) -> list[dict[str, Any]]:
    """All prompts in the benchmark's order, with the recipe's draws from `rng` in the same order."""
    lines = [_line("single_object", [_object(i)], an(CLASSES[i])) for i in rng.choice(len(CLASSES), 80, replace=False)]
    for _ in range(EACH):
        a, b = rng.choice(len(CLASSES), 2, replace=False)
        lines.append(_line("two_object", [_object(a), _object(b)], f"{an(CLASSES[a])} and {an(CLASSES[b])}"))
    for _ in range(EACH):
        a, count = rng.choice(len(CLASSES)), int(rng.integers(2, 4, endpoint=True))
        plural = CLASSES[a] + ("es" if CLASSES[a].endswith("s") else "s")
        exclude = {"exclude": [_object(a, count=count + 1)]}
        lines.append(_line("counting", [_object(a, count=count)], f"{NUMBERS[count]} {plural}", **exclude))
    for _ in range(EACH):
        a, color = 1 + rng.choice(len(CLASSES) - 1), COLORS[rng.choice(len(COLORS))]  # no person gets a colour
        lines.append(_line("colors", [_object(a, color=color)], f"{an(color)} {CLASSES[a]}"))
    for _ in range(EACH):
        (a, b), relation = rng.choice(len(CLASSES), 2, replace=False), RELATIONS[rng.choice(len(RELATIONS))]
        include = [_object(b), _object(a, position=[relation, 0])]
        lines.append(_line("position", include, f"{an(CLASSES[a])} {relation} {an(CLASSES[b])}"))
    for _ in range(EACH):
        a, b = 1 + rng.choice(len(CLASSES) - 1, 2, replace=False)
        one, other = (COLORS[i] for i in rng.choice(len(COLORS), 2, replace=False))
        text = f"{an(one)} {CLASSES[a]} and {an(other)} {CLASSES[b]}"
        lines.append(_line("color_attr", [_object(a, color=one), _object(b, color=other)], text))
    return lines


def _line(tag: str, include: list[dict[str, Any]], text: str, **exclude: Any) -> dict[str, Any]:
    return {"tag": tag, "include": include, **exclude, "prompt": f"a photo of {text}"}


def _object(index: int, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": CLASSES[index], "count": count, **more}


def an(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
