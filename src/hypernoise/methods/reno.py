"""Gradient search for the noise: ReNO (Eyring et al. 2024, arXiv 2406.04312), and with white updates.

Each iteration draws, scores, and moves the noise up the reward's gradient; the best picture seen is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError, at_least_one, unknown
from hypernoise.generators.base import Condition
from hypernoise.methods.base import Meter, Problem, Result, fresh_noise, metered, per_sample
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.methods.white_projection import project_white
from hypernoise.objective import l2_kl


@dataclass(frozen=True)
class Update:
    """How the noise moves.

    lr: the step; clip: greatest norm of one sample's gradient.
    norm_weight: multiplies ½‖x‖² − (d − 1) log‖x‖, minus the log-density of a N(0, I) vector's norm.
    white: the gradient is projected onto white noise in frequency space before it is clipped.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any]
    lr: float
    clip: float
    norm_weight: float
    white: bool


UPDATES = {
    # ExplainableML/ReNO, arguments.py and training/optim.py
    "reno": Update(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 5.0, 0.1, 0.01, white=False),
    # arXiv 2602.08646: Adam at 0.1 for SDXL-Turbo, clip 0.03, no penalty
    "white-reno": Update(torch.optim.Adam, {}, 0.1, 0.03, 0.0, white=True),
}


@dataclass(frozen=True, eq=False)
class ReNO:
    """Searches the noise by the reward's gradient, each sample on its own.

    Args:
        iterations: pictures drawn per start; one fewer gradient steps, as published.
        starts: the given noise, and starts − 1 fresh ones; the best picture of all is kept.
        patience: a sample stops after so many iterations without a better picture; None: never.
        update: "reno", or "white-reno" for updates that are projected onto white noise.
        lr: the published step of `update` if None.
        start: a hypernoise method whose noise the search begins from.
    """

    iterations: int = 50
    starts: int = 1
    patience: int | None = None
    update: str = "reno"
    lr: float | None = None
    start: HyperNoise | None = None

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "starts", "patience")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"lr must be a positive number, not {self.lr}")
        if self.update not in UPDATES:
            raise unknown("update", self.update, UPDATES)

    @property
    def name(self) -> str:
        start = f"{self.start.name}-" if self.start else ""
        starts = f"-x{self.starts}" if self.starts > 1 else ""
        patience = f"-p{self.patience}" if self.patience is not None else ""
        lr = f"-lr{self.lr:g}" if self.lr is not None else ""
        return f"{start}{self.update}-{self.iterations}{starts}{patience}{lr}"

    def settings(self) -> dict[str, Any]:
        start = self.start.settings() if self.start else None
        own = {name: getattr(self, name) for name in ("update", "iterations", "starts", "patience", "lr")}
        return {"method": "reno", **own, "start": start}

    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.start.adapter.on(problem.generator) if self.start else None
        given = noise
        with metered(problem) as meter:
            condition = problem.generator.encode(prompts)
            found = []
            for number in range(self.starts):
                begin = noise if number == 0 else fresh_noise(noise, number)
                if network is not None:
                    with torch.no_grad():
                        begin = begin + network(begin, condition).to(begin.dtype)
                found.append(self._climb(meter, prompts, condition, begin))
        best = torch.stack([climb[2].nan_to_num(nan=-math.inf).amax(1) for climb in found]).argmax(0)  # [B]
        rows = torch.arange(len(prompts), device=best.device)
        pixels, noises = (torch.stack([climb[i] for climb in found])[best, rows] for i in (0, 1))
        scores = torch.cat([climb[2] for climb in found], 1)
        kl = l2_kl(noises - given) if self.starts == 1 else None
        return Result(pixels, noises, prompts, kl, scores, meter.spent())

    def _climb(
        self, meter: Meter, prompts: list[str], condition: Condition, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pixels [B, 3, H, W], their noise, and the score of every iteration [B, iterations]."""
        update = UPDATES[self.update]
        # one parameter per sample: each has its own gradient norm, momentum and end
        rows = [x.detach().clone().requires_grad_() for x in noise]
        optimizer = update.optimizer(rows, lr=self.lr or update.lr, **update.settings)
        scores = noise.new_full((len(rows), self.iterations), math.nan)
        best, best_noise = scores.new_full((len(rows),), -math.inf), noise.clone()
        best_pixels: Tensor | None = None
        since = torch.zeros(len(rows), dtype=torch.long, device=noise.device)  # iterations without a better picture
        active = torch.arange(len(rows), device=noise.device)
        for iteration in range(self.iterations):
            last = iteration == self.iterations - 1
            with torch.set_grad_enabled(not last):
                x = torch.stack([rows[i] for i in active.tolist()])
                pixels = meter.draw(x, condition[active])
                hint = f" at iteration {iteration}; lower lr"
                score = meter.score(pixels, [prompts[i] for i in active.tolist()], hint if iteration else "")
            if not last and not score.requires_grad:
                raise InputError(
                    "the reward has no gradient in the pixels, which reno climbs; search and best-of do without"
                )
            scores[active, iteration] = score.detach().to(scores.dtype)
            if best_pixels is None:
                best_pixels = torch.zeros_like(pixels.detach())
            better = score.detach() > best[active]
            won = active[better]
            best[won] = score.detach()[better].to(best.dtype)
            best_noise[won], best_pixels[won] = x.detach()[better], pixels.detach()[better]
            since += 1
            since[won] = 0
            if last or (self.patience is not None and bool((since[active] >= self.patience).all())):
                break
            loss = norm_penalty(x, update.norm_weight) - score
            gradients = torch.autograd.grad(loss.sum(), x)[0]
            if update.white:
                gradients = project_white(gradients)
            norms = gradients.flatten(1).norm(dim=1)
            gradients = gradients * per_sample((update.clip / (norms + 1e-6)).clamp_max(1), gradients)
            optimizer.zero_grad(set_to_none=True)
            for i, gradient in zip(active.tolist(), gradients, strict=True):
                rows[i].grad = gradient
            optimizer.step()
            if self.patience is not None:
                active = active[since[active] < self.patience]
        assert best_pixels is not None
        return best_pixels, best_noise, scores


def norm_penalty(noise: Tensor, weight: float) -> Tensor:
    """weight · (½‖x‖² − (d − 1) log‖x‖) of each sample [B], least where ‖x‖² = d − 1; in fp32 or better.

    That is minus the log-density of ‖x‖ under N(0, I), up to a constant (ReNO, section 3).
    """
    wide = noise if noise.dtype == torch.float64 else noise.float()
    square = wide.flatten(1).square().sum(1)
    return weight * (0.5 * square - 0.5 * (noise[0].numel() - 1) * square.log())
