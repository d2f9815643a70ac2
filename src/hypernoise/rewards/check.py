"""Checks a reward: one score per picture, with a correct gradient to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hypernoise.errors import InputError, no_traceback
from hypernoise.generators.base import check_texts
from hypernoise.rewards.base import RewardFunction, check_callable, scored
from hypernoise.rewards.ensemble import WeightedSum, each_of

STEPS = (1e-2, 1e-3)  # finite differences, in root mean square of the pixel change; the first precise one counts
REACH = 10.0  # largest value of a direction, relative to its root mean square
CUT = "the scores do not depend differentiably on the pixels (a detach, a no_grad, rounding, numpy, or a constant)"
OTHERS = "one picture's score depends on the other pictures; score each picture separately"


def check_reward(
    reward: RewardFunction, *, size: tuple[int, int] = (64, 64), prompts: Sequence[str] = ("a red ring", "two cats")
) -> None:
    """Tries a reward on noise pictures, one per prompt; for a weighted sum, every member with a weight.

    Args:
        size: of the pictures.
        prompts: ones that the reward accepts; for a reward of classes, some of their names.

    A random reward gets the same random numbers at every try. A cut gradient shows along four changes of the
    pixels (`_directions`); a term that depends on none of them is missed.

    Raises:
        InputError: it does not accept (pixels, prompts); the scores' shape is not [B]; they are not finite; a
            picture's score depends on another picture; or the gradient is cut, wholly or in part: finite
            differences disagree with it.
    """
    check_callable(reward)
    check_texts(prompts)
    sizes = isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not sizes or not prompts:
        raise InputError(f"check_reward needs a prompt and a size such as (64, 64), not {prompts!r} and {size!r}")
    draw = torch.Generator().manual_seed(0)
    pixels = 0.1 + 0.8 * torch.rand(len(prompts), 3, *size, generator=draw)  # leaves room for a step
    for name, part in each_of(reward, weighted=True).items():
        _check(name, part, pixels, list(prompts))


def check_gradients(reward: RewardFunction, scores: Tensor, pixels: Tensor) -> None:
    """The scores, and those of each member of a sum, must depend on the pixels.

    `scores` are the result of `reward` for `pixels`, with their graph. Raises InputError, with the member's name, for a
    gradient that is missing or zero everywhere.
    """
    parts = {"the reward": scores}
    if isinstance(reward, WeightedSum):
        parts = {f"reward {name!r}": score for name, score in reward.member_scores().items() if reward.weights[name]}
    for name, score in parts.items():
        if gradient_of(score.sum(), pixels).any():
            continue
        if len(score) > 1 and gradient_of(score[0], pixels).any():
            raise InputError(f"{name}: the gradients of a batch cancel: {OTHERS}")
        raise InputError(f"{name}: the gradient is cut: {CUT}")


def _check(name: str, reward: RewardFunction, pixels: Tensor, prompts: list[str]) -> None:
    def tried(pixels: Tensor, prompts: list[str]) -> Tensor:
        given = f"pictures {list(pixels.shape)} and prompts {prompts!r}"
        with no_traceback(f"{name} fails for {given} (set size and prompts of check_reward)"):
            return reward(pixels, prompts)

    def call(pixels: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return scored(tried, pixels, prompts, name)

    pixels.requires_grad_()
    scores = call(pixels)
    if not scores.isfinite().all():
        raise InputError(f"{name} returned {scores.tolist()} for noise pictures; scores must be finite")
    first, gradient = gradient_of(scores[0], pixels), gradient_of(scores.sum(), pixels)
    pixels, scores = pixels.detach(), scores.detach()
    with torch.no_grad():
        others = call(torch.cat([pixels[:1], 1 - pixels[1:]]))
        if first[1:].any() or (others[0] - scores[0]).abs() > 1e-4 * scores.abs().max():
            raise InputError(f"{name}: {OTHERS}")
        if not gradient.any():
            raise InputError(f"{name}: the gradient is cut: {CUT}")
        draw = torch.Generator().manual_seed(2)
        grain = torch.randn(4, *pixels.shape, generator=draw) * STEPS[-1]  # an invisible change, and 5 times its effect
        faint = 5 * torch.stack([(call(pixels + part) - scores).abs().max() for part in grain]).max().item()
        for change in _directions(pixels, gradient):
            _compare(name, call, pixels, change, scores, gradient, faint)


def gradient_of(score: Tensor, pixels: Tensor) -> Tensor:
    """The gradient of a number in the pixels; zero if it does not depend on them."""
    found = None
    if score.requires_grad:
        (found,) = torch.autograd.grad(score, pixels, retain_graph=True, allow_unused=True)
    return torch.zeros_like(pixels) if found is None else found


def _directions(pixels: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """Changes [B, 3, H, W] of root mean square 1: along the gradient, and along contrast, colours and coarse
    patches, which a part of the reward missing in the gradient may depend on."""
    draw = torch.Generator().manual_seed(1)
    colors = torch.randn(len(pixels), 3, 1, 1, generator=draw)
    patches = torch.randn(len(pixels), 3, 4, 4, generator=draw)
    patches = torch.nn.functional.interpolate(patches, pixels.shape[-2:])
    for change in (gradient, pixels - 0.5, colors.expand_as(pixels), patches):
        size = change.flatten(1).square().mean(1).sqrt()
        size = torch.maximum(size, change.flatten(1).abs().amax(1) / REACH)
        yield change / size.clamp(min=1e-30).view(-1, 1, 1, 1)


def _compare(
    name: str,
    call: Callable[[Tensor], Tensor],
    pixels: Tensor,
    change: Tensor,
    scores: Tensor,
    gradient: Tensor,
    faint: float,
) -> None:
    """Raises InputError if finite differences of the scores along `change` disagree with `gradient`; differences of
    less than `faint` count as rounding."""
    slope = (gradient * change).flatten(1).sum(1)  # [B], scores per step
    steepest = gradient.flatten(1).norm(dim=1) * change.flatten(1).norm(dim=1)
    for step in STEPS:
        far_down, down, up, far_up = (call(pixels + share * step * change) for share in (-1, -0.5, 0.5, 1))
        rise, near, bend = (far_up - far_down) / 2, up - down, (far_up + far_down) / 2 - scores
        sure = (rise - near).abs() < 0.1 * rise.abs()  # neither curved nor rounded off
        sure &= (bend.abs() < 0.25 * rise.abs()) & (rise.abs() > (1e-5 * scores.abs()).clamp(min=faint))
        found = rise / step
        off = (found - slope).abs()
        wrong = sure & (off > 0.2 * torch.maximum(found.abs(), slope.abs())) & (off > 0.01 * steepest)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise InputError(
                f"{name}: the gradient disagrees with the scores: a change of the pixels moves a score by "
                f"{rise[first].item():.4g} instead of {step * slope[first].item():.4g} (part of it is cut "
                "by a detach, a no_grad, rounding or numpy, or has a custom backward)"
            )
        if sure.all():
            return
