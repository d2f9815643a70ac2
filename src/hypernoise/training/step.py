"""One training step: batch, forward and backward, the measured row, and the update."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hypernoise.diagnostics.lipschitz import lipschitz_bound, most_stretched
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork, kl_of
from hypernoise.noise.draws import key_of, noise_for
from hypernoise.objective import kl_gap, limit_gradient, noise_objective
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.base import Prompts, scored
from hypernoise.rewards.check import check_gradients
from hypernoise.training.config import TrainConfig
from hypernoise.training.guards import NOT_THE_REWARDS, Round, faults_of, shortened
from hypernoise.training.processes import say
from hypernoise.training.run import Run, set_learning_rate

DRAW = -1  # the sample number in the key of a step's inference steps: no sample uses it
ITERATIONS = 3  # power iterations, from a new start at every step: no state to resume
NOISES = 4  # of a batch part, at which the Lipschitz constant is measured


@dataclass(frozen=True)
class Batch:
    """The data of a step, a function of (seed, step) alone.

    prompts: of all processes and accumulation steps. parts: the accumulation steps' numbers.
    """

    prompts: list[str]
    inference_steps: int
    validated: bool  # whether the validation reward also scores its pictures
    parts: range
    began: float  # start time in seconds


def batch_of(run: Run) -> Batch:
    config = run.config
    return Batch(
        prompts_of_step(run.prompts, run.step, config.train_batch_size, config.seed),
        inference_steps_of(config, run.step),
        run.validation_reward is not None and (run.step + 1) % config.validation_steps == 0,
        range(config.gradient_accumulation_steps),
        time.perf_counter(),
    )


def inference_steps_of(config: TrainConfig, step: int) -> int:
    """Denoiser calls per picture of an update: one of `num_inference_steps`, keyed by (seed, step)."""
    counts = config.inference_steps
    return counts[key_of(config.seed, step, DRAW) % len(counts)]


def forward_backward(run: Run, batch: Batch, part: int) -> Round:
    """Draws this process's samples of an accumulation step, scores them, and accumulates their gradient."""
    config, generator, accelerator, count = run.config, run.generator, run.accelerator, run.samples
    first = (part * accelerator.num_processes + accelerator.process_index) * count
    samples = range(first, first + count)
    torch.manual_seed(key_of(config.seed, run.step, first))  # for rewards that draw random numbers
    prompts = Prompts(batch.prompts[first : first + count])
    drawn_for = [0] * count if config.one_noise_per_step else samples
    noise = noise_for(generator, run.network, seed=config.seed, step=run.step, samples=drawn_for)  # [B, *noise_shape]
    condition = run.encode(prompts)
    prompts.read = False
    with nullcontext() if part == batch.parts[-1] else accelerator.no_sync(run.model):
        with run.autocast():
            residual = run.model(noise, condition)  # f(x0, c)
            if residual.shape != noise.shape:
                shapes = f"{list(residual.shape)} for noise {list(noise.shape)}"
                raise InputError(f"the noise network returned a residual of shape {shapes}")
            improved = noise + residual
            if config.sample_clip:
                share = run.scaler.get_scale() / (count * config.gradient_accumulation_steps)
                improved = limit_gradient(improved, config.sample_clip, share)
            seeds = [key_of(config.seed, run.step, sample) for sample in samples]
            pixels = generator.sample(improved, condition, num_inference_steps=batch.inference_steps, seed=seeds)
        drawn = pixels.detach().to(noise.dtype)
        rewards = scored(run.reward, pixels.to(noise.dtype), prompts)  # in fp32
        nats = kl_of(run.network, noise, condition, residual)
        loss, kl = noise_objective(nats, rewards, config.kl_weight).mean(), nats.mean()
        if config.kl_term == "exact" and not run.network.knows_kl:
            gap = exact_gap(run.network, noise, condition).mean()
            loss, kl = loss + config.kl_weight * gap, kl + gap.detach()
        if config.lipschitz.mode == "penalty":
            with run.autocast():
                excess = squared_excess(run.network, noise, condition, config.lipschitz.bound)
            loss = loss + config.lipschitz.weight * excess
        if not run.log.history:  # the first step of this call
            check_gradients(run.reward, rewards, pixels)
            if prompts.read and set(condition.tensors) == {"index"} and len(set(prompts)) > 1:
                say(
                    "the reward reads the prompt, which the noise network does not see: give the generator an `embed` "
                    "(a module that takes only noise is not passed its result)"
                )
        accelerator.backward(run.scaler.scale(loss / config.gradient_accumulation_steps))
    clipped = ((drawn <= 0) | (drawn >= 1)).float().mean()  # where clamping cuts the gradient
    means = {"loss": loss, "reward": rewards.mean(), "kl": kl, "clipped": clipped}
    members = getattr(run.reward, "member_scores", dict)()
    means |= {f"reward/{name}": scores.mean() for name, scores in members.items()}
    first = not run.log.history  # where a reward that does not fit is found, whenever it is measured
    if run.validation_reward is not None and (batch.validated or first):
        with torch.no_grad(), torch.random.fork_rng(devices=[drawn.device] if drawn.is_cuda else []):
            pictures = drawn.nan_to_num(0.0, 1.0, 0.0)  # `commit` reports non-finite values
            scores = scored(run.validation_reward, pictures, prompts, "the validation reward")
            means |= {"validation_reward": scores.mean()} if batch.validated else {}
    means = {name: mean.detach().float().to(noise.device) for name, mean in means.items()}
    return Round(prompts, noise, condition, drawn, rewards.detach(), means)


def exact_gap(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """`kl_gap` of each sample [B]."""
    x = noise.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        return kl_gap(network(x, condition).flatten(1), x)


def squared_excess(network: NoiseNetwork, noise: Tensor, condition: Condition, bound: float) -> Tensor:
    """max(0, ‖f(x + v/2) − f(x − v/2)‖ − bound)², averaged over noises; v is the most stretched direction at x.

    The norm is a finite difference over ‖v‖ = 1, not a second derivative: its gradient needs no double backward, so
    any attention kernel and checkpointing work, and it is itself a lower bound of Lip(f).
    """
    x, c = noise[:NOISES].detach(), condition[:NOISES]
    _, direction = most_stretched(network, x, c, iterations=ITERATIONS)
    ends = network(x + direction / 2, c) - network(x - direction / 2, c)
    return (ends.float().flatten(1).norm(dim=1) - bound).clamp_min(0).square().mean()


def lipschitz_seen(network: NoiseNetwork, noise: Tensor, condition: Condition) -> Tensor:
    """What a clamp limits [n]: the product of layer norms if the network has one, else ‖J‖₂ at some noises."""
    certain = lipschitz_bound(network)
    if math.isfinite(certain):
        return torch.tensor([certain], device=noise.device)
    return most_stretched(network, noise[:NOISES], condition[:NOISES], iterations=ITERATIONS)[0]


def measure(run: Run, rounds: list[Round], asked: int) -> tuple[dict[str, Any], int]:
    """The step's row over all processes, its gradient norm before clipping, and the signal any process received.

    One exchange between processes and one device read per step.

    Raises:
        InputError: the first step has no gradient at all.
    """
    accelerator = run.accelerator
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.network.trainable_parameters(), run.config.max_grad_norm)
    names = list(rounds[0].means)
    means = torch.stack([sum((seen.means[name] for seen in rounds), torch.zeros(())) for name in names])
    own = torch.cat([means / run.config.gradient_accumulation_steps, torch.tensor([float(asked)]).to(means)])
    shared = accelerator.reduce(own, "mean") if accelerator.num_processes > 1 else own
    *values, signal, gradient = torch.cat([shared, norm.detach().float()[None].to(own)]).tolist()  # type: ignore[list-item]
    if run.step == 0 and gradient == 0:
        raise InputError(
            "no gradient reaches the noise network: the pictures do not depend on the noise differentiably "
            "(a detach, a no_grad, rounding or numpy)"
        )
    row = {"step": run.step + 1, **dict(zip(names, values, strict=True)), "gradient_norm": gradient}
    return row, asked or (15 if signal else 0)


def commit(run: Run, rounds: list[Round], row: dict[str, Any]) -> None:
    """Ends the step: the optimiser's update, or, if a number is not finite, none and a report of the faults."""
    config, scaler = run.config, run.scaler
    faults: list[str] = []
    run.committing = True
    if math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"]):
        set_learning_rate(run.optimizer, config, run.step)
        scaler.step(run.optimizer)
        if config.lipschitz.mode == "clamp":
            with run.autocast():
                seen = lipschitz_seen(run.network, rounds[-1].noise, rounds[-1].condition)
            greatest: float = run.accelerator.gather(seen).max().item()  # type: ignore[union-attr]
            if greatest > config.lipschitz.bound:
                run.network.scale_output(config.lipschitz.bound / greatest)
    else:
        row["skipped"] = 1
        narrow = math.isfinite(row["loss"]) and scaler.is_enabled() and scaler.get_scale() >= 1
        if not narrow:  # otherwise fp16 overflowed, and the loss scale is lowered
            faults = gather_object(faults_of(run.reward, rounds)) or [NOT_THE_REWARDS]
            row["faults"] = faults
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.committing = False
    if faults:
        say(f"step {run.step} skipped: {shortened(faults)}")
