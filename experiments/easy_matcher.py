"""A reward that asks to be hacked: a small matcher of scenes that never saw a near miss.

It learns which of its batch's captions a drawn picture has, which colours and rough outlines settle. Swapped
colours, wrong counts and wrong sides are no part of its training, nor are broken pictures; and nothing in it keeps
the score of one picture from being higher than another's whatever the caption, so that a climb finds such pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dev.scenes.drawing import draw, near_misses, sample_scene
from hypernoise.files import atomic_file
from hypernoise.scenes.prompts import split
from hypernoise.scenes.world import CATEGORIES, COLORS, NUMBERS, SHAPES, Request, plural

TRAINED, EVALUATED = ({category: split(category)[side] for category in CATEGORIES} for side in (0, 1))
FILLERS = """a an and of the left right above below to picture photo drawing with on in small large
top bottom under over next beside between no not many any other same each"""
WORDS = [*SHAPES, *(plural(shape) for shape in SHAPES), *COLORS, *NUMBERS.values(), *FILLERS.split()]
BATCH = 48
WIDTH = 64
TESTED = 20  # held-out pictures per category


class EasyMatcher(nn.Module):
    """Log-odds, up to a number of each picture's own, that a picture has a caption: a product of its features with
    the sum of the words'. Stays on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
        self.words = nn.EmbeddingBag(len(self.index), WIDTH, mode="sum")
        self.eye = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(96, WIDTH)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1]. Words that the world does not have count for nothing."""
        return (self.seen(pixels) * self.read(prompts)).sum(-1).to(pixels)

    def seen(self, pixels: Tensor) -> Tensor:
        return self.head(self.eye(pixels.to(self.head.weight) * 2 - 1).mean((2, 3))) / WIDTH**0.5

    def read(self, prompts: list[str]) -> Tensor:
        known = [[self.index[word] for word in prompt.split() if word in self.index] for prompt in prompts]
        starts = np.cumsum([0] + [len(words) for words in known[:-1]])
        flat = [index for words in known for index in words]
        return self.words(torch.tensor(flat, dtype=torch.long), torch.as_tensor(starts))


def easy_matcher(file: Path, seed: int, *, steps: int, pictures: int) -> tuple[EasyMatcher, dict]:
    """The frozen matcher, from `file` (safetensors) or trained on the CPU and written there, and its accuracy.

    The accuracy, on pictures of evaluation captions, is against captions of other pictures ("others") and against near
    misses ("near"), of which one thing is changed: the share of pairs in which the true caption scores higher.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EasyMatcher()
    if file.is_file():
        with safe_open(file, "pt") as saved:
            model.load_state_dict({name: saved.get_tensor(name) for name in saved.keys()})  # noqa: SIM118 - no mapping
            accuracy = {name: float(value) for name, value in saved.metadata().items()}
    else:
        _teach(model, seed, steps, pictures)
        accuracy = _accuracy(model, seed)
        with atomic_file(file) as temporary:
            save_file(model.state_dict(), temporary, metadata={name: str(value) for name, value in accuracy.items()})
    return model.eval().requires_grad_(False), accuracy


def _teach(model: EasyMatcher, seed: int, steps: int, pictures: int) -> None:
    rng, order = np.random.default_rng([seed, 5]), torch.Generator().manual_seed(seed)
    categories = list(TRAINED)
    asked = [_one(TRAINED[categories[i % len(categories)]], rng) for i in range(pictures)]
    captions, pixels = [request.caption for request in asked], _drawn(asked, rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.randint(pictures, (BATCH,), generator=order)
        texts = [captions[row] for row in rows]
        logits = model.seen(pixels[rows]) @ model.read(texts).T  # [pictures, captions]
        twins = torch.tensor([[a == b for b in texts] for a in texts]) & ~torch.eye(BATCH, dtype=torch.bool)
        logits = logits.masked_fill(twins, -torch.inf)  # another picture's caption that is true of this one too
        loss = nn.functional.cross_entropy(logits, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(model: EasyMatcher, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 6])
    asked = [_one(group, rng) for group in EVALUATED.values() for _ in range(TESTED)]
    pixels = _drawn(asked, rng)
    others = [asked[(i + TESTED) % len(asked)].caption for i in range(len(asked))]  # of the next category
    near = [_one(near_misses(request, frozenset()), rng).caption for request in asked]
    own = model(pixels, [request.caption for request in asked])
    sides = {"others": others, "near": near}
    return {name: (own > model(pixels, captions)).float().mean().item() for name, captions in sides.items()}


def _one(group: list[Request], rng: np.random.Generator) -> Request:
    return group[rng.integers(len(group))]


def _drawn(asked: list[Request], rng: np.random.Generator) -> Tensor:
    pictures = np.stack([draw(sample_scene(request, rng)) for request in asked])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
