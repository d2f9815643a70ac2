"""The scenes reward: a small matcher that learns from a larger one, on drawn pictures and their near misses.

    python -m dev.scenes.reward --teacher runs/teacher/matcher --output runs/scenes-reward

The teacher is the matcher of commit 4c14b69 (`git archive 4c14b69 src/hypernoise/scenes/weights/matcher`). The student
matches its log-odds and its picture states (Sanh et al. 2019, arXiv 1910.01108), on pictures moved to where it
is most wrong (Goodfellow et al. 2015, arXiv 1412.6572), so that its gradient can be climbed. With `--pictures` some of
them are a generator's own. Ends with the pairwise accuracy on held-out captions, which trained nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from transformers import BlipForImageTextRetrieval

from dev.scenes import lessons, networks
from dev.scenes.matcher import build_matcher
from dev.scenes.training import StageConfig, TrainState
from hypernoise.commands.flags import parse
from hypernoise.files import write_json
from hypernoise.scenes import scorers


@dataclass(frozen=True)
class RewardConfig(StageConfig):
    teacher: Path = Path("runs/teacher/matcher")
    output: Path = Path("runs/scenes-reward")
    steps: int = 2500
    lr: float = 5e-4
    batch_size: int = 48
    """Pictures per step."""
    broken_share: float = 0.35
    """Share of the pictures that are broken, and so match nothing."""
    misses: int = 1
    """False captions per picture."""
    radius: float = 0.5
    """Each picture is moved by up to so much, as a Euclidean norm over its pixels."""
    generator: Path | None = None
    """A pipeline whose own pictures are half of every batch."""
    start_from: Path | None = None
    """A student to go on from."""
    tested: int = 200
    """Held-out pictures per category for the accuracy."""


def shortened(teacher: Any, matcher: Any) -> Any:
    """`matcher` with the teacher's weights, of its picture layers the first and the last."""
    last = f"vision_model.encoder.layers.{len(teacher.vision_model.encoder.layers) - 1}."
    weights = {}
    for name, value in teacher.state_dict().items():
        if name.startswith(last):
            weights["vision_model.encoder.layers.1." + name.removeprefix(last)] = value
        elif not name.startswith("vision_model.encoder.layers.") or name.startswith("vision_model.encoder.layers.0."):
            weights[name] = value
    matcher.load_state_dict(weights)
    return matcher


def train_reward(config: RewardConfig) -> None:
    torch.manual_seed(config.seed)
    teacher = BlipForImageTextRetrieval.from_pretrained(config.teacher).float().eval().requires_grad_(False)
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    matcher: Any = build_matcher(tokenizer)
    if config.start_from:
        matcher.load_state_dict(BlipForImageTextRetrieval.from_pretrained(config.start_from).float().state_dict())
    else:
        shortened(teacher, matcher)
    state = TrainState(config, "matcher", [matcher], config.lr, config.steps)
    draw = own_pictures(config) if config.generator else None
    while state.step < config.steps:
        rng = np.random.default_rng([config.seed, 3, state.step])
        broken = round(config.broken_share * config.batch_size)
        batch = [
            lessons.lesson(lessons.taught_request(rng), lessons.FORBIDDEN, config.misses, rng, broken=i < broken)
            for i in range(config.batch_size)
        ]
        pixels = lessons.to_tensor([x.pixels for x in batch])
        captions = [x.caption for x in batch] + [caption for x in batch for caption in x.false_captions]
        truth = torch.zeros(len(captions))
        truth[broken : config.batch_size] = 1
        known = torch.ones(len(captions))
        if draw:
            half = torch.arange(0, config.batch_size, 2)
            pixels[half] = draw([batch[i].caption for i in half], state.step)
            known[half] = 0  # only the teacher says what a generated picture matches
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        with state.autocast():
            seen = pixels.clone().requires_grad_()
            first = answers(matcher, seen, tokens, config.misses)[1] / scorers.TEMPERATURE
            (slope,) = torch.autograd.grad(binary_cross_entropy_with_logits(first, truth), seen)
            reach = config.radius * torch.from_numpy(rng.random(config.batch_size)).to(slope)
            steepness = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
            moved = (pixels + (reach / steepness).view(-1, 1, 1, 1) * slope).clamp(0, 1)
            with torch.no_grad():
                taught, expected = answers(teacher, moved, tokens, config.misses)
            states, logit = answers(matcher, moved, tokens, config.misses)
            matched = logit_error(logit, expected)
            copied = (states.float() - taught.float()).square().mean()
            right = (binary_cross_entropy_with_logits(logit, truth, reduction="none") * known).sum() / known.sum()
        loss = matched + 0.3 * right + copied
        state.update(loss, {"loss": loss, "matched": matched, "copied": copied, "right": right})
    state.load_average()
    matcher.half().save_pretrained(config.output / "matcher")
    report(config)


def answers(model: Any, pixels: Tensor, tokens: Any, misses: int) -> tuple[Tensor, Tensor]:
    """Picture states [B, 1 + patches, width], and log-odds of own captions, then false ones [B · (1 + misses)]."""
    pictures = scorers.matcher_pictures(model, pixels)
    words = scorers.matcher_words(model, torch.cat([pictures, pictures.repeat_interleave(misses, 0)]), tokens)
    return pictures, scorers.match_logit(model, words[-1])


def logit_error(logit: Tensor, expected: Tensor) -> Tensor:
    """Of log-odds at the temperature that the reward reads them at."""
    return smooth_l1_loss(logit / scorers.TEMPERATURE, expected.clamp(-9, 9) / scorers.TEMPERATURE)


def own_pictures(config: RewardConfig) -> Any:
    """Draws captions with the generator, from noise that is a function of the step."""
    from hypernoise.generators.registry import load_generator

    generator = load_generator(str(config.generator), device=config.device)

    @torch.no_grad()
    def draw(captions: list[str], step: int) -> Tensor:
        rng = torch.Generator().manual_seed(config.seed * 10**6 + step)
        noise = torch.randn(len(captions), *generator.noise_shape, generator=rng)
        return generator.sample(noise, generator.encode(captions), num_inference_steps=1).float()

    return draw


@torch.no_grad()
def report(config: RewardConfig) -> None:
    """Pairwise accuracy per category on pictures of held-out captions against near misses, to accuracy.json."""
    scorer = scorers.Scorer("scenes-match", folder=config.output / "matcher")
    rng = np.random.default_rng([config.seed, 4])
    accuracy = {}
    for category, group in lessons.EVALUATED.items():
        asked = [group[rng.integers(len(group))] for _ in range(config.tested)]
        batch = [lessons.lesson(request, frozenset(), config.misses, rng) for request in asked]
        pixels = lessons.to_tensor([x.pixels for x in batch])
        own = scorer(pixels, [x.caption for x in batch])
        misses = torch.stack([scorer(pixels, [x.false_captions[i] for x in batch]) for i in range(config.misses)])
        accuracy[category] = round((own > misses).float().mean().item(), 4)
    write_json(config.output / "accuracy.json", accuracy)
    print(json.dumps(accuracy), flush=True)


if __name__ == "__main__":
    settings = parse(RewardConfig)
    settings.output.mkdir(parents=True, exist_ok=True)
    train_reward(settings)
