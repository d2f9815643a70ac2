"""Train the scenes benchmark's two rewards on drawn pictures.

    python -m hypernoise.scenes.make_rewards --kind clip --output runs/scenes-rewards
    python -m hypernoise.scenes.make_rewards --kind matcher --output runs/scenes-rewards

Resumable from its last checkpoint to the same weights, seeded, CPU or GPU. Ends with the pairwise accuracy on
pictures and near misses of evaluation captions, which trained nothing, per category.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hypernoise.files import write_json
from hypernoise.generators.registry import pick_device
from hypernoise.scenes import lessons, networks, scorers
from hypernoise.scenes.training import TrainState
from hypernoise.scenes.world import COLORS, SHAPES, SIZE, Request, Scene


@dataclass(frozen=True)
class RewardConfig:
    """How one scorer is trained."""

    kind: Literal["clip", "matcher"] = "matcher"
    output: Path = Path("runs/scenes-rewards")
    seed: int = 0
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    steps: int = 9500
    lr: float = 1e-3
    batch_size: int = 96
    """Pictures per step."""
    broken_share: float = 0.3
    """Share of the matcher's pictures that are broken, and so match nothing."""
    misses: int = 3
    """False captions per picture."""
    radius: float = 0.5
    """Each picture is moved by up to so much, as a Euclidean norm over its pixels, to where it is scored worst."""
    checkpoint_every: int = 250
    tested: int = 200
    """Held-out pictures per category for the accuracy."""


def main(config: RewardConfig) -> None:
    config = replace(config, device=str(pick_device(config.device)))
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    build: Any = scorers.build_clip if config.kind == "clip" else scorers.build_matcher
    model = build(tokenizer).to(config.device)
    reader = Reader().to(config.device)
    state = TrainState(config, config.kind, [model, reader], config.lr, config.steps)
    loss_of = clip_loss if config.kind == "clip" else matcher_loss
    broken = 0 if config.kind == "clip" else round(config.broken_share * config.batch_size)
    while state.step < config.steps:
        rng = np.random.default_rng([config.seed, 3, state.step])
        batch = [
            lessons.lesson(lessons.taught_request(rng), lessons.FORBIDDEN, config.misses, rng, broken=i < broken)
            for i in range(config.batch_size)
        ]
        pixels = lessons.to_tensor([x.pixels for x in batch]).to(config.device)
        reach = torch.from_numpy(config.radius * rng.random(config.batch_size)).to(pixels)
        losses = partial(loss_of, model, reader, tokenizer, batch)
        with state.autocast():
            loss, logged = losses(worst(pixels, reach, losses))
        state.update(loss, logged)
    state.load_average()
    model.half().save_pretrained(config.output / config.kind)
    report(config)


Losses = tuple[Tensor, dict[str, Tensor]]  # what is trained on; what is logged, "loss" the score's own


def worst(pixels: Tensor, reach: Tensor, losses: Callable[[Tensor], Losses]) -> Tensor:
    """Pixels [B, 3, H, W], each moved by the norm `reach` [B] up the loss (Goodfellow et al. 2015, arXiv 1412.6572).

    A scorer that learns from these does not jump at changes that nobody sees; its gradient, which a noise
    network is to climb, then points where the picture really changes (Santurkar et al. 2019, arXiv 1906.09453).
    """
    pixels = pixels.requires_grad_()
    (slope,) = torch.autograd.grad(losses(pixels)[1]["loss"], pixels)
    steepness = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
    return (pixels + (reach / steepness).view(-1, 1, 1, 1) * slope).clamp(0, 1).detach()


class Reader(nn.Module):
    """Reads off a tower's states what is where, which teaches it to see before whole captions mean anything.

    It is thrown away after the training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(scorers.WIDTH, 1 + len(SHAPES) + 1 + len(COLORS))
        self.place = nn.Linear(scorers.WIDTH, 2)
        self.layout = nn.Linear(scorers.WIDTH, 2 * len(SHAPES))
        self.flaw = nn.Linear(scorers.WIDTH, 1)

    def patches_error(self, patches: Tensor, batch: list[lessons.Lesson]) -> Tensor:
        """Of the shape, the colour and the place of what is at each patch [B, patches, width]."""
        shape, color, place = (
            torch.from_numpy(np.stack(part)).to(patches.device)
            for part in zip(*(lessons.shown(x.scene) for x in batch), strict=True)
        )
        there = shape > 0
        shape_read, color_read = self.patch(patches).float().split([1 + len(SHAPES), 1 + len(COLORS)], -1)
        astray = (self.place(patches[there]).float() - place[there]).square().mean()
        return cross_entropy(shape_read.mT, shape) + cross_entropy(color_read.mT, color) + astray

    def flaws_error(self, patches: Tensor, batch: list[lessons.Lesson]) -> Tensor:
        """Of which patches [B, patches, width] a broken picture is broken in."""
        flawed = torch.from_numpy(np.stack([x.flawed for x in batch])).to(patches.device)
        return binary_cross_entropy_with_logits(self.flaw(patches)[..., 0].float(), flawed.float())

    def layout_error(self, features: Tensor, batch: list[lessons.Lesson]) -> Tensor:
        """Of where each shape's one object is, read off a picture's unit feature [B, width]."""
        found = [
            (row, list(SHAPES).index(placed.shape), placed.x, placed.y)
            for row, x in enumerate(batch)
            for placed in x.scene.objects
            if sum(other.shape == placed.shape for other in x.scene.objects) == 1
        ]
        if not found:
            return features.new_zeros(())
        rows, shapes, *places = (list(part) for part in zip(*found, strict=True))
        read = self.layout(features * scorers.WIDTH**0.5).view(len(batch), len(SHAPES), 2)[rows, shapes].float()
        return (read - torch.tensor(places, device=read.device).T / (SIZE / 2) + 1).square().mean()

    def asked_layout_error(self, texts: Tensor, asked: list[Request]) -> Tensor:
        """Of where a relation puts its two shapes, read off the captions' unit features by the pictures' reader."""
        found = []
        for row, request in enumerate(asked):
            if request.relation:
                along = 0 if request.relation in ("left of", "right of") else 1
                first = -0.5 if request.relation in ("left of", "above") else 0.5
                for thing, place in zip(request.things, (first, -first), strict=True):
                    found.append((row, list(SHAPES).index(thing.shape), along, place))
        if not found:
            return texts.new_zeros(())
        rows, shapes, axes, places = (list(part) for part in zip(*found, strict=True))
        read = self.layout(texts * scorers.WIDTH**0.5).view(len(asked), len(SHAPES), 2)[rows, shapes, axes].float()
        return (read - torch.tensor(places, device=read.device)).square().mean()

    def nouns_error(self, words: Tensor, ids: Tensor, nouns: dict[str, int], batch: list[lessons.Lesson]) -> Tensor:
        """Of the place and the colour of the object that each noun of a caption [B, words, width] names.

        Counts are left out: they name several.
        """
        found = [
            (row, int((ids[row] == nouns[thing.shape]).nonzero()[0]), placed)
            for row, x in enumerate(batch)
            if x.request.category != "counting"
            for thing in x.request.things
            for placed in x.scene.objects
            if placed.shape == thing.shape
        ]
        states = words[[row for row, _, _ in found], [column for _, column, _ in found]]
        places = torch.tensor([[placed.x, placed.y] for _, _, placed in found], device=words.device) / (SIZE / 2) - 1
        colors = torch.tensor([1 + list(COLORS).index(placed.color) for _, _, placed in found], device=words.device)
        color_read = self.patch(states).float()[:, 1 + len(SHAPES) :]
        return 2 * (self.place(states).float() - places).square().mean() + 0.2 * cross_entropy(color_read, colors)

    def relations_error(self, words: Tensor, ids: Tensor, tokenizer: Any, asked: list[tuple[Request, Scene]]) -> Tensor:
        """Of how far apart the things really are between which a caption, true or false, names a relation."""
        found = []
        for row, (request, scene) in enumerate(asked):
            if not request.relation:
                continue
            first, second = ([o for o in scene.objects if o.shape == thing.shape] for thing in request.things)
            if first and second:
                token = tokenizer(request.relation).input_ids[1]
                offset = first[0].x - second[0].x, first[0].y - second[0].y
                found.append((row, int((ids[row] == token).nonzero()[0]), offset))
        if not found:
            return words.new_zeros(())
        states = words[[row for row, _, _ in found], [column for _, column, _ in found]]
        offsets = torch.tensor([offset for _, _, offset in found], device=words.device) / (SIZE / 2)
        return (self.place(states).float() - offsets).square().mean()


def clip_loss(model: Any, reader: Reader, tokenizer: Any, batch: list[lessons.Lesson], pixels: Tensor) -> Losses:
    """Softmax over each picture's near misses and all captions plainly false of it, and over pictures likewise."""
    n, misses, device = len(batch), len(batch[0].misses), pixels.device
    pictures, patches = scorers.clip_pictures(model, pixels)
    captions = [x.caption for x in batch] + [caption for x in batch for caption in x.false_captions]
    texts = scorers.clip_texts(model, _tokens(tokenizer, captions, device))
    scale = model.logit_scale.exp().clamp(max=50)
    usable = torch.tensor([[a is b or lessons.is_false(a.request, b.scene) for a in batch] for b in batch])
    across = (scale * pictures @ texts[:n].T).masked_fill(~usable.to(device), -1e4)  # [pictures, captions]
    near = scale * (pictures[:, None] * texts[n:].view(n, misses, -1)).sum(-1)
    truth = torch.arange(n, device=device)
    by_picture, by_text = cross_entropy(torch.cat([across, near], 1), truth), cross_entropy(across.T, truth)
    hard = cross_entropy(torch.cat([across.diagonal()[:, None], near], 1), torch.zeros_like(truth))
    right = (across.diagonal()[:, None] > near).float().mean()
    reading = reader.patches_error(patches, batch)
    asked = [x.request for x in batch] + [miss for x in batch for miss in x.misses]
    layout, asked_layout = reader.layout_error(pictures, batch), reader.asked_layout_error(texts, asked)
    loss = by_picture + 0.5 * by_text + hard + reading + 2 * layout + 20 * asked_layout
    logged = {"loss": by_picture, "near": hard, "right": right, "reading": reading, "layout": layout}
    return loss, {**logged, "asked_layout": asked_layout}


def matcher_loss(model: Any, reader: Reader, tokenizer: Any, batch: list[lessons.Lesson], pixels: Tensor) -> Losses:
    """Matched or not: each picture with its caption, with near misses, and broken with its own caption."""
    n, misses, device = len(batch), len(batch[0].misses), pixels.device
    pictures = scorers.matcher_pictures(model, pixels)
    own, false = [x.caption for x in batch], [caption for x in batch for caption in x.false_captions]
    states = torch.cat([pictures, pictures.repeat_interleave(misses, 0)])
    tokens = _tokens(tokenizer, own + false, device)
    words = scorers.matcher_words(model, states, tokens)
    logit = scorers.match_logit(model, words[-1])
    own_logit, miss_logit = logit[:n], logit[n:]
    whole = torch.tensor([not x.broken for x in batch], device=logit.device)
    matching = binary_cross_entropy_with_logits(own_logit, whole.float()) + binary_cross_entropy_with_logits(
        miss_logit, torch.zeros_like(miss_logit)
    )
    clean = [x for x in batch if not x.broken]
    noun_ids = {shape: tokenizer(shape).input_ids[1] for shape in SHAPES}
    reading = reader.patches_error(pictures[whole, 1:], clean)
    flaws = reader.flaws_error(pictures[:, 1:], batch)
    # after the first layer, so that the others can compare what the nouns have found
    nouns = reader.nouns_error(words[1][:n][whole], tokens.input_ids[:n][whole], noun_ids, clean)
    asked = [(x.request, x.scene) for x in batch] + [(miss, x.scene) for x in batch for miss in x.misses]
    relations = reader.relations_error(words[2], tokens.input_ids, tokenizer, asked)
    right = (own_logit[whole, None] > miss_logit.view(n, misses)[whole]).float().mean()
    told = (own_logit[whole].mean() - own_logit[~whole].mean()).detach()  # log-odds between whole and broken
    logged = {
        "loss": matching,
        "right": right,
        "whole_over_broken": told,
        "reading": reading,
        "flaws": flaws,
        "nouns": nouns,
        "relations": relations,
    }
    return matching + reading + flaws + nouns + relations, logged


def _tokens(tokenizer: Any, captions: list[str], device: torch.device) -> Any:
    return tokenizer(captions, padding=True, return_tensors="pt").to(device)


@torch.no_grad()
def report(config: RewardConfig) -> None:
    """Pairwise accuracy per category on evaluation captions' pictures against near misses, to accuracy JSON."""
    scorer = scorers.Scorer(config.kind, config.kind, config.output / config.kind)
    rng = np.random.default_rng([config.seed, 4])
    accuracy = {}
    for category, group in lessons.EVALUATED.items():
        asked = [group[rng.integers(len(group))] for _ in range(config.tested)]
        batch = [lessons.lesson(request, frozenset(), config.misses, rng) for request in asked]
        pixels = lessons.to_tensor([x.pixels for x in batch]).to(config.device)
        own = scorer(pixels, [x.caption for x in batch])
        misses = torch.stack([scorer(pixels, [x.false_captions[i] for x in batch]) for i in range(config.misses)])
        accuracy[category] = (own > misses).float().mean().item()
    write_json(config.output / f"{config.kind}-accuracy.json", accuracy)
    print(json.dumps({name: round(value, 4) for name, value in accuracy.items()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(RewardConfig, description=__doc__))
