"""Whether a reward is one: a score per picture, with a gradient that reaches the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.ensemble import WeightedSum

STEP = 1e-2  # of the difference along the gradient, as a change of pixels' root mean square


def check_reward(
    reward: RewardFunction, *, size: tuple[int, int] = (64, 64), prompts: tuple[str, ...] = ("a red ring", "two cats")
) -> None:
    """Tries a reward on noise pictures, one per prompt.

    Raises:
        InputError: the scores' shape is not [B]; they are not finite; their gradient is cut, or that of one
            member of a sum; a picture's score depends on another picture; or the scores do not rise along
            their gradient.
    """
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(len(prompts), 3, *size, generator=draw).requires_grad_()
    scores = reward(pixels, list(prompts))
    if scores.shape != (len(prompts),):
        raise InputError(f"the reward gave shape {list(scores.shape)}; it must give one score per picture")
    if not scores.isfinite().all():
        raise InputError(f"the reward gave {scores.tolist()} for pictures of noise; scores must be finite")
    check_gradients(reward, scores, pixels)
    (first,) = torch.autograd.grad(scores[0], pixels, retain_graph=True)
    if first[1:].any():
        raise InputError("the reward's first score depends on the other pictures; it must be each picture's own")
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    along = gradient / gradient.norm() * STEP * pixels.numel() ** 0.5
    with torch.no_grad():
        after, before = (reward(pixels + sign * along, list(prompts)).sum() for sign in (1, -1))
    if after <= before:
        raise InputError(
            f"the reward does not rise along its gradient ({before.item():.6g} to {after.item():.6g}): the gradient "
            "is not the scores' (a custom backward, a straight-through step?)"
        )


def check_gradients(reward: RewardFunction, scores: Tensor, pixels: Tensor) -> None:
    """Silence here would train nothing: the scores, and those of each member of a sum, must depend on the pixels.

    `scores` are what `reward` has just given for `pixels`, with their graph.

    Raises:
        InputError: a gradient is missing or zero everywhere; it names the member.
    """
    parts = {"the reward": scores}
    if isinstance(reward, WeightedSum):
        parts = {f"reward {name!r}": score for name, score in reward.scores.items() if reward.weights[name]}
    for name, score in parts.items():
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score.sum(), pixels, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.any():
            raise InputError(
                f"{name}: the gradient is cut: its scores do not depend differentiably on the pixels "
                "(a detach, a no_grad, rounding or numpy inside it)"
            )
