"""The training loop: noise, residual, picture, reward, one update."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.objective import l2_kl, limit_gradient, noise_objective
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.check import check_gradients
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from hypernoise.training.config import TrainConfig
from hypernoise.training.limit import clamp, lipschitz_seen, scalable, squared_excess
from hypernoise.training.noise import key_of, keyed_noise
from hypernoise.training.parting import Reading, parted, readings
from hypernoise.training.prompts import prompts_of_step
from hypernoise.training.tracking import MetricsLog
from hypernoise.training.watch import watch


@dataclass(frozen=True)
class TrainResult:
    """What a run did: the step it reached, its rows (one per step of this call), and its last checkpoint.

    `finished` is False if it was interrupted and the same call would go on.
    """

    step: int
    finished: bool
    history: list[dict[str, float]]
    checkpoint: Path | None
    parted: bool = False  # it ended early: the watched reward fell while the trained one did not


def train(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: list[str],
    config: TrainConfig,
    *,
    watched: RewardFunction | None = None,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Trains `network` in place to lower E[kl_weight·½‖f‖² − reward(g(x + f))]; the generator stays as it is.

    Noise, prompt order and torch's global generator are set from (seed, step) at every step, so a resumed run
    gives the numbers of an uninterrupted one.

    Args:
        reward: any callable (pixels [B, 3, H, W] in [0, 1], prompts) -> [B], higher is better.
        watched: a reward that is only measured, every `watched_every` steps, on the same pictures; with `patience`
            the run ends when it and the trained reward part (`parting.parted`).
        output: where metrics.jsonl and checkpoints go; nothing is written if None.
        resume: go on from the newest checkpoint in `output`, if there is one; if False, they are removed.

    Ctrl-C ends the run after the step at hand, with a checkpoint, `finished` False; a second one at once.

    Raises:
        InputError: no prompt, a batch that processes and accumulation do not divide, a reward without
            gradient, a non-finite loss or gradient, a checkpoint of other settings or of a later step, or a
            clamp on a network that cannot be scaled.
    """
    if not prompts:
        raise InputError("no prompt to train on")
    if config.patience and watched is None:
        raise InputError("patience needs a watched reward")
    if config.lipschitz == "clamp" and not scalable(network):
        raise InputError(f"lipschitz: clamp needs a network with scale_output, which {network.kind!r} has not")
    accelerator = Accelerator(device_placement=False)
    per_round = _samples_per_round(config, accelerator.num_processes)
    if isinstance(network, nn.Module):
        network.to(generator.device)
    optimizer = _optimizer(network.trainable_parameters(), config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(config))
    folder = Path(output) if output is not None else None
    fixed = _fixed_settings(config, generator, network, reward, prompts)
    scales = reward if isinstance(reward, WeightedSum) else None
    step, checkpoint = 0, None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        found = checkpoints(folder)
        if found and resume:
            checkpoint = found[-1]
            step = load_checkpoint(checkpoint, network, generator, optimizer, schedule, fixed=fixed, reward=scales)
        elif accelerator.is_main_process:
            for old in found:
                shutil.rmtree(old)
    if step > config.steps:
        raise InputError(f"{checkpoint} is at step {step}, beyond the {config.steps} asked for; give another --output")
    log = MetricsLog(folder, step) if folder is not None and accelerator.is_main_process else None
    parameters = network.trainable_parameters()
    model: Any = (
        accelerator.prepare_model(network, device_placement=False) if isinstance(network, nn.Module) else network
    )
    history: list[dict[str, float]] = []
    seen = readings(folder / "metrics.jsonl", step) if folder is not None and step else []
    apart = parted(seen, config.patience)  # a run that has ended early does not go on

    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not (progress and accelerator.is_main_process))
    with bar, _stop_requested() as stop_requested:
        stopping = apart
        while step < config.steps and not stopping:
            started = time.perf_counter()
            torch.manual_seed(key_of(config.seed, step))  # for rewards that draw random numbers
            texts = prompts_of_step(prompts, step, config.batch_size, config.seed)
            sums = torch.zeros(4, device=generator.device)
            watching = watched is not None and (step + 1) % config.watched_every == 0
            members: dict[str, float] = {}
            for part in range(config.accumulation):
                first = (part * accelerator.num_processes + accelerator.process_index) * per_round
                samples = range(first, first + per_round)
                mine = [texts[i] for i in samples]
                noise = keyed_noise(generator.noise_shape, seed=config.seed, step=step, samples=samples)
                noise = noise.to(generator.device, parameters[0].dtype)
                condition = generator.encode(mine)
                last = part == config.accumulation - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    with _autocast(generator, config):
                        residual = model(noise, condition)  # f(x0, c)
                        improved = noise + residual
                        if config.sample_clip is not None:
                            share = 1 / (per_round * config.accumulation)
                            improved = limit_gradient(improved, config.sample_clip, share)
                        pixels = generator.sample(
                            improved,
                            condition,
                            steps=config.generator_steps,
                            seed=key_of(config.seed, step, first),
                        )
                    rewards = reward(pixels.to(noise.dtype), mine)  # outside autocast: bf16 would round the scores
                    loss = noise_objective(residual, rewards, config.kl_weight).mean()
                    if config.lipschitz == "penalty":
                        with _autocast(generator, config):
                            excess = squared_excess(network, noise, condition, config.lipschitz_bound)
                        loss = loss + config.lipschitz_weight * excess
                    if not history:
                        check_gradients(reward, rewards, pixels)
                    _check_finite("loss", loss, step)
                    accelerator.backward(loss / config.accumulation)
                shown = torch.zeros_like(rewards)
                if watched is not None and watching:
                    with torch.no_grad(), _chance_aside(generator.device):
                        shown = watched(pixels.detach().to(noise.dtype), mine)
                parts = loss, rewards.mean(), l2_kl(residual).mean(), shown.mean()
                sums += torch.stack(parts).detach().float()
                if isinstance(reward, WeightedSum):
                    for name, value in reward.last.items():
                        key = f"reward/{name}"
                        members[key] = members.get(key, 0.0) + value.item() / config.accumulation
            gradient_norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            _check_finite("gradient's norm", gradient_norm, step)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if config.lipschitz == "clamp":
                with _autocast(generator, config):
                    stretch = lipschitz_seen(network, noise, condition)  # type: ignore[possibly-unbound]  # of the last round
                clamp(network, accelerator.gather(stretch).max().item(), config.lipschitz_bound)  # type: ignore[union-attr]
            step += 1

            loss_mean, reward_mean, kl_mean, watched_mean = (
                accelerator.reduce(sums, "mean") / config.accumulation
            ).tolist()  # type: ignore[union-attr]
            row = {
                "step": step,
                "loss": loss_mean,
                "reward": reward_mean,
                "kl": kl_mean,
                **members,
                **({"watched_reward": watched_mean} if watching else {}),
                "gradient_norm": float(gradient_norm),
                "seconds": round(time.perf_counter() - started, 4),
            }
            if (
                config.watch
                and accelerator.is_main_process
                and (step % config.watch_every == 0 or step == config.steps)
            ):
                with _autocast(generator, config):
                    row |= watch(config.watch, generator, network, prompts, seed=config.seed)
            history.append(row)
            bar.set_postfix(reward=f"{reward_mean:.4f}", kl=f"{kl_mean:.3f}", refresh=False)
            bar.update()
            if log is not None:
                log.write(row)
            if watching:
                seen.append(Reading(step, reward_mean, watched_mean))
                apart = parted(seen, config.patience)
            stopping = stop_requested() or apart
            due = stopping or step == config.steps or step % config.checkpoint_every == 0
            if folder is not None and accelerator.is_main_process and due:
                checkpoint = save_checkpoint(
                    folder, step, network, generator, optimizer, schedule, fixed=fixed, reward=scales
                )
    return TrainResult(step, step >= config.steps or apart, history, checkpoint, apart)


def _samples_per_round(config: TrainConfig, processes: int) -> int:
    parts = processes * config.accumulation
    if config.batch_size % parts:
        raise InputError(
            f"batch_size {config.batch_size} must be a multiple of {parts} "
            f"({processes} processes x accumulation {config.accumulation})"
        )
    return config.batch_size // parts


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


def _learning_rate(config: TrainConfig) -> Callable[[int], float]:
    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (config.warmup + 1))
        return warm * (0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps))) if config.decay else 1.0)

    return factor


def _fixed_settings(
    config: TrainConfig, generator: Generator, network: NoiseNetwork, reward: RewardFunction, prompts: list[str]
) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one to reach the same numbers."""
    free = {"checkpoint_every", "watched_every", "patience", "watch", "watch_every"}
    if not config.decay:
        free |= {"steps"}
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig) if f.name not in free}
    if config.lipschitz == "free":  # as checkpoints were before there was a limit
        settings |= {"lipschitz": None, "lipschitz_bound": None, "lipschitz_weight": None}
    named = getattr(reward, "__name__", type(reward).__name__)
    rewards, how = (reward.weights, reward.described) if isinstance(reward, WeightedSum) else (named, None)
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    fixed = {
        **settings,
        "generator": generator.name,
        "network": {"kind": network.kind, **network.settings},
        "rewards": rewards,
        "reward_settings": how,
        "prompts": f"{len(prompts)} prompts, sha256 {digest}",
    }
    return json.loads(json.dumps(fixed))  # as it will be read back


def _check_finite(what: str, value: torch.Tensor, step: int) -> None:
    if not torch.isfinite(value):
        raise InputError(f"the {what} is {value.item()} at step {step}; lower lr or the rewards' weights")


def _autocast(generator: Generator, config: TrainConfig) -> torch.autocast:
    return torch.autocast(generator.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")


@contextmanager
def _chance_aside(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside the block are drawn again after it: watching changes nothing that trains."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside the block the first Ctrl-C only raises a flag; the second interrupts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
