"""The training loop: noise, residual, picture, reward, one update."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from hypernoise.errors import InputError
from hypernoise.files import output_folder
from hypernoise.generators.base import Condition, Generator
from hypernoise.noise.base import NoiseNetwork, kl_of, knows_kl
from hypernoise.noise.draws import key_of, training_noise
from hypernoise.objective import limit_gradient
from hypernoise.precision import resolve
from hypernoise.prompts import PromptMix, prompts_of_step, spread
from hypernoise.rewards.base import RewardFunction, check_callable
from hypernoise.rewards.check import check_gradients
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints, load_checkpoint, newest_whole, save_checkpoint, tidied, writing
from hypernoise.training.config import TrainConfig, recognised
from hypernoise.training.early_stopping import Reading, parted, readings
from hypernoise.training.embeddings import Encoded, encoder
from hypernoise.training.guards import (
    NOT_THE_REWARDS,
    Round,
    Skipped,
    check_blow_up,
    faults_of,
    saturation,
    scored,
    told,
)
from hypernoise.training.lipschitz import check_exact, clamp, exact_gap, lipschitz_seen, scalable, squared_excess
from hypernoise.training.metrics import METRICS, mean_of
from hypernoise.training.optimizers import Average, make_optimizer, set_learning_rate
from hypernoise.training.processes import broadcast, gathered, samples_per_round, say, say_once, start
from hypernoise.training.run_status import running
from hypernoise.training.samples import COUNT, draw_samples
from hypernoise.training.signals import stop_requested
from hypernoise.training.steps import autocast, gradient_through_last, steps_of
from hypernoise.training.tracking import MetricsLog, begin_tracking, check_trackers, track
from hypernoise.training.watch import NOISES, watch, watched_noise


@dataclass(frozen=True)
class TrainResult:
    """What a run did: the step it reached, its rows (one per step of this call), and its last checkpoint.

    `finished` is False if it was interrupted and the same call would go on; `signal` is then what interrupted it.
    """

    step: int
    finished: bool
    history: list[dict[str, float]]
    checkpoint: Path | None
    parted: bool = False  # it ended early: the watched reward fell while the trained one did not
    signal: int = 0
    skipped: int = 0  # steps of this call whose reward or gradient was not finite


def train(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    watched: RewardFunction | None = None,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Trains `network` in place to lower E[kl_weight·½‖f‖² − reward(g(x + f))]; the generator stays as it is.

    Noise, prompt order and torch's global generator are set from (seed, step, sample) at every step, so a resumed
    run gives the numbers of an uninterrupted one, and several processes (see `processes`) those of one. With `ema`
    the network ends as its running average.

    Args:
        reward: any callable (pixels [B, 3, H, W] in [0, 1], prompts) -> [B], higher is better.
        watched: a reward that is only measured, every `watched_every` steps, on the same pictures; with `patience`
            the run ends when it and the trained reward part (`parting.parted`).
        output: where metrics.jsonl and checkpoints go; nothing is written if None.
        resume: go on from the newest whole checkpoint in `output`, if there is one; if False, they are removed.

    Ctrl-C or SIGTERM ends the run after the step at hand, with a checkpoint, `finished` False; a second Ctrl-C at once.

    Raises:
        InputError: no prompt, a batch that processes and accumulation do not divide, a reward that raises or has no
            gradient, too many steps that were not finite, a KL or pictures that have blown up, a checkpoint of
            other settings or of a later step, a disk that is full, or a clamp on a network that cannot be scaled.
    """
    folder = Path(output) if output is not None else None
    precision = resolve(config.mixed_precision, generator.device)
    if precision.slow:
        say_once(precision.line)
    config = dataclasses.replace(config, mixed_precision=precision.name)
    _check(config, network, reward, watched, prompts, folder)
    if config.kl_term == "exact" and not knows_kl(network):
        check_exact(generator.noise_shape)
    accelerator = start(generator.device, config.trackers, folder)
    samples_per_round(config, accelerator.num_processes)  # refuses a batch that they do not divide
    main = accelerator.is_main_process
    if isinstance(network, nn.Module):
        network.to(generator.device)
    optimizer = make_optimizer(network.trainable_parameters(), config)
    scaler = torch.amp.GradScaler(generator.device.type, init_scale=2.0**10, enabled=precision.name == "fp16")
    average = Average(network, config.ema) if config.ema else None
    scales = reward if isinstance(reward, WeightedSum) else None
    if scales is not None:
        scales.gather = accelerator.gather  # type: ignore[assignment]
    fixed = _fixed_settings(config, generator, network, reward, prompts)
    state: dict[str, Any] = {"fixed": fixed, "reward": scales, "average": average, "scaler": scaler}
    step, checkpoint = 0, None
    if folder is not None:
        checkpoint = _found(folder, accelerator, resume)
        if checkpoint is not None:
            step = load_checkpoint(checkpoint, network, generator, optimizer, **state)
            say(f"going on from {checkpoint} (delete {folder} to start anew)")
    if step > config.steps:
        raise InputError(f"{checkpoint} is at step {step}, beyond the {config.steps} asked for; give another --output")
    log = MetricsLog(folder, step) if folder is not None and main else None
    if config.trackers:
        begin_tracking(accelerator, fixed)
    model: Any = (
        accelerator.prepare_model(network, device_placement=False) if isinstance(network, nn.Module) else network
    )
    base_saturation = broadcast(accelerator, log.first.get("saturated") if log is not None else None)
    dimensions = math.prod(generator.noise_shape)
    history: list[dict[str, float]] = []
    skipped, saved, saved_at = Skipped(config.skip_limit), len(history), time.monotonic()
    seen = readings(folder / METRICS, step) if folder is not None and step else []
    apart = parted(seen, config.patience)  # a run that has ended early does not go on
    signal, began, at_first = 0, time.perf_counter(), step

    whole, begun, scales_before = True, step, {}

    def keep_last_good() -> None:
        if folder is None or not (main and whole) or step == 0 or folder / f"checkpoint-{step:06d}" == checkpoint:
            return
        if scales is not None and step == begun:  # the step that failed has moved them
            scales.load_state(scales_before)
        save_checkpoint(folder, step, network, generator, optimizer, keep=config.keep, **state)

    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not (progress and main))
    embeddings = Path(config.embeddings_folder) if config.embeddings_folder else (folder or Path()) / "embeddings"
    asked = _asked(config, prompts, step) if config.embeddings == "disk" else prompts
    encoding = encoder(config.embeddings, generator, embeddings, accelerator, asked)
    noted = running(folder if main else None)
    with noted as note, encoding as encode, bar, stop_requested() as stop, _at_an_error(keep_last_good):
        run = _Run(config, generator, network, model, reward, watched, encode, accelerator, optimizer, scaler, average)
        while step < config.steps and not (signal or apart):
            begun, scales_before = step, scales.state if scales is not None else {}
            started, calls = time.perf_counter(), steps_of(config, step)
            texts = prompts_of_step(prompts, step, config.batch_size, config.seed)
            watching = watched is not None and (step + 1) % config.watched_every == 0
            rounds = [
                _round(run, step, part, texts, watching=watching, check=not history)
                for part in range(config.accumulation)
            ]
            row, signal = _measured(run, rounds, stop())
            if step == 0 and row["gradient_norm"] == 0:
                raise InputError(
                    "no gradient reaches the noise network: with these generator_steps and gradient_steps the "
                    "pictures do not depend on the noise through what is differentiated"
                )
            base_saturation = row["saturated"] if base_saturation is None else base_saturation
            told_row = {"step": step + 1, **{name: value for name, value in row.items() if math.isfinite(value)}}
            with _written_if_wrong(log, told_row):
                check_blow_up(config, step + 1, row["kl"], dimensions, row["saturated"] - base_saturation)
            whole = False
            faults = _update(run, step, rounds, row)
            step, whole = step + 1, True
            if "skipped" in row:
                told_row["skipped"] = 1
            if faults:
                say(f"step {step} skipped: {told(faults)}")
            with _written_if_wrong(log, {**told_row, "faults": faults}):
                skipped.note(bool(faults), step, faults)
            row = told_row
            seconds = time.perf_counter() - started
            pace = (time.perf_counter() - began) / (step - at_first)
            row |= {
                "seconds": round(seconds, 4),
                "images_per_second": round(config.batch_size / seconds, 3),
                "memory_gib": round(_memory(generator.device) / 2**30, 3),
                "eta_seconds": round(pace * (config.steps - step), 1),
            }
            if len(config.step_counts) > 1:
                row["generator_steps"] = calls
            if config.watch and main and (step % config.watch_every == 0 or step == config.steps):
                with autocast(generator.device, config):
                    row |= watch(config.watch, generator, network, prompts, seed=config.seed, encode=encode)
            if folder is not None and config.samples_every and step % config.samples_every == 0:
                with autocast(generator.device, config), average.in_place() if average is not None else nullcontext():
                    sheet = draw_samples(generator, network, prompts, encode, steps=calls, seed=config.seed)
                if main:  # drawn by all: a base in shards cannot be called by one process alone
                    with writing("sample grid", "the checkpoints are whole"):
                        sheet.save(output_folder(folder / "samples") / f"step-{step:06d}.png")
            history.append(row)
            shown_now = {"reward": f"{row.get('reward', math.nan):.4f}", "kl": f"{row.get('kl', math.nan):.3f}"}
            bar.set_postfix(shown_now | ({"skipped": skipped.count} if skipped.count else {}), refresh=False)
            bar.update()
            if log is not None:
                log.write({**row, "faults": faults} if faults else row)
            track(accelerator, row)
            if watching and {"reward", "watched_reward"} <= row.keys():
                seen.append(Reading(step, row["reward"], row["watched_reward"]))
                apart = parted(seen, config.patience)
            late = config.checkpoint_minutes and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            due = signal or apart or step == config.steps or step % config.checkpoint_every == 0
            if folder is not None and main and (due or late):
                metric = mean_of(history[saved:], config.best_by) if config.best_by else None
                checkpoint = save_checkpoint(
                    folder, step, network, generator, optimizer, keep=config.keep, metric=metric, **state
                )
                saved, saved_at = len(history), time.monotonic()
        finished = step >= config.steps or apart
        if average is not None and finished:
            network.load_trainable_state(average.state)
            if config.lipschitz == "clamp":  # layers each under a bound may have averages whose product is over it
                noise, condition = watched_noise(generator, network, prompts, seed=config.seed, encode=encode)
                _clamp(run, noise, condition)
        checkpoint = broadcast(accelerator, checkpoint)  # which is then whole, in every process
        note["ended"] = f"stopped by signal {signal}" if signal else "ended early" if apart else "done"
    if config.trackers:
        for tracker in accelerator.trackers:
            tracker.finish()
    return TrainResult(step, finished, history, checkpoint, apart, signal, skipped.count)


@contextmanager
def _at_an_error(keep: Callable[[], None]) -> Iterator[None]:
    """Keeps what a run has reached if the block raises."""
    try:
        yield
    except Exception:
        with suppress(InputError):  # a disk that is full: the error itself tells it, or comes first
            keep()
        raise


@contextmanager
def _written_if_wrong(log: MetricsLog | None, row: dict[str, Any]) -> Iterator[None]:
    """Writes the row of a step that ends the run."""
    try:
        yield
    except InputError:
        if log is not None:
            log.write(row)
        raise


@dataclass(frozen=True)
class _Run:
    """What stays through a run: everything a step needs but its number."""

    config: TrainConfig
    generator: Generator
    network: NoiseNetwork
    model: Any  # the network, in DDP's wrapper where there are several processes
    reward: RewardFunction
    watched: RewardFunction | None
    encode: Encoded
    accelerator: Accelerator
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None

    @property
    def per_round(self) -> int:
        """Samples of this process in a round."""
        return samples_per_round(self.config, self.accelerator.num_processes)

    @property
    def members(self) -> list[str]:
        """The names of the rewards in the sum."""
        return list(self.reward.members) if isinstance(self.reward, WeightedSum) else []


def _round(run: _Run, step: int, part: int, texts: list[str], *, watching: bool, check: bool) -> Round:
    """One round of a step: this process's samples drawn, rewarded, and their gradient added to the others'.

    Args:
        texts: the prompts of the whole batch.
        check: whether the reward's gradient is looked at, too.
    """
    config, generator, accelerator, device = run.config, run.generator, run.accelerator, run.generator.device
    first = (part * accelerator.num_processes + accelerator.process_index) * run.per_round
    samples = range(first, first + run.per_round)
    torch.manual_seed(key_of(config.seed, step, first))  # for rewards that draw random numbers
    mine = [texts[i] for i in samples]
    noise = training_noise(
        config.noise, generator.noise_shape, seed=config.seed, step=step, samples=samples, count=config.fixed_noises
    ).to(device, run.network.trainable_parameters()[0].dtype)
    condition, calls = run.encode(mine), steps_of(config, step)
    last = part == config.accumulation - 1
    with nullcontext() if last else accelerator.no_sync(run.model):
        with autocast(device, config):
            residual = run.model(noise, condition)  # f(x0, c)
            improved = noise + residual
            if config.sample_clip:
                share = run.scaler.get_scale() / (run.per_round * config.accumulation)
                improved = limit_gradient(improved, config.sample_clip, share)
            with gradient_through_last(generator, config.gradient_steps, calls):
                seeds = [key_of(config.seed, step, sample) for sample in samples]
                pixels = generator.sample(improved, condition, steps=calls, seed=seeds)
        rewards = scored(run.reward, pixels.to(noise.dtype), mine, step)  # outside autocast: no rounded scores
        nats = kl_of(run.network, noise, condition, residual)
        loss, kl = (config.kl_weight * nats - rewards).mean(), nats.mean()
        if config.kl_term == "exact" and not knows_kl(run.network):
            gap = exact_gap(run.network, noise, condition).mean()
            loss, kl = loss + config.kl_weight * gap, kl + gap.detach()
        if config.lipschitz == "penalty":
            with autocast(device, config):
                excess = squared_excess(run.network, noise, condition, config.lipschitz_bound)
            loss = loss + config.lipschitz_weight * excess
        if check:
            check_gradients(run.reward, rewards, pixels)
        accelerator.backward(run.scaler.scale(loss / config.accumulation))
    drawn = pixels.detach().to(noise.dtype)
    means = {"loss": loss, "reward": rewards.mean(), "kl": kl, "saturated": saturation(drawn)}
    if isinstance(run.reward, WeightedSum):
        means |= {f"reward/{name}": run.reward.last[name] for name in run.members}
    if run.watched is not None and watching:
        with torch.no_grad(), _chance_aside(device):
            means["watched_reward"] = scored(run.watched, drawn, mine, step, "the watched reward").mean()
    means = {name: mean.detach().float().to(device) for name, mean in means.items()}
    return Round(mine, noise, condition, drawn, rewards.detach(), means)


def _measured(run: _Run, rounds: list[Round], asked: int) -> tuple[dict[str, float], int]:
    """The step's row over all processes, with the norm of its clipped gradient, and the signal that any of them got."""
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.network.trainable_parameters(), run.config.clip)
    names = list(rounds[0].means)
    means = torch.stack([sum((seen.means[name] for seen in rounds), torch.zeros(())) for name in names])
    return _agreed_row(run.accelerator, names, means / run.config.accumulation, norm, asked)


def _update(run: _Run, step: int, rounds: list[Round], row: dict[str, float]) -> list[str]:
    """Takes the optimiser's step, unless a number is not finite: what was at fault then; the row notes it."""
    scaler, config = run.scaler, run.config
    faults: list[str] = []
    if math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"]):
        set_learning_rate(run.optimizer, config, step)
        scaler.step(run.optimizer)
        if config.lipschitz == "clamp":
            _clamp(run, rounds[-1].noise, rounds[-1].condition)
        if run.average is not None:
            run.average.update()
    else:
        row["skipped"] = 1
        narrow = math.isfinite(row["loss"]) and scaler.is_enabled() and scaler.get_scale() >= 1
        if not narrow:  # else it is fp16's range: the loss is scaled less from now on
            faults = gathered(run.accelerator, faults_of(run.reward, rounds)) or [NOT_THE_REWARDS]
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return faults


def _agreed_row(
    accelerator: Accelerator, names: list[str], means: torch.Tensor, norm: torch.Tensor, asked: int
) -> tuple[dict[str, float], int]:
    """The step's row over all processes, and the signal that any of them got.

    One exchange and one reading from the device per step.
    """
    several = accelerator.num_processes > 1
    own = torch.cat([means, torch.tensor([float(asked)]).to(means)])
    together = torch.cat([accelerator.reduce(own, "mean") if several else own, norm.detach().float()[None].to(own)])  # type: ignore[list-item]
    *shared, signal, gradient = together.tolist()
    row = dict(zip(names, shared, strict=True)) | {"gradient_norm": gradient}
    return row, asked or (15 if signal else 0)


def _clamp(run: _Run, noise: torch.Tensor, condition: Condition) -> None:
    """Scales the residual down to the bound, by what some noises show."""
    with autocast(run.generator.device, run.config):
        stretch = lipschitz_seen(run.network, noise, condition)
    clamp(run.network, run.accelerator.gather(stretch).max().item(), run.config.lipschitz_bound)  # type: ignore[union-attr]


def _check(
    config: TrainConfig,
    network: NoiseNetwork,
    reward: RewardFunction,
    watched: RewardFunction | None,
    prompts: Sequence[str],
    folder: Path | None,
) -> None:
    if not prompts:
        raise InputError("no prompt to train on")
    check_callable(reward)
    if watched is not None:
        check_callable(watched, "the watched reward")
    if config.patience and watched is None:
        raise InputError("patience needs a watched reward")
    if config.lipschitz == "clamp" and not scalable(network):
        raise InputError(f"lipschitz: clamp needs a network with scale_output, which {network.kind!r} has not")
    if config.embeddings == "disk" and folder is None and not config.embeddings_folder:
        raise InputError("embeddings on disk need an output, or an embeddings_folder")
    check_trackers(config.trackers, folder)
    columns = ["reward", *(["watched_reward"] if watched is not None else [])]
    columns += [f"reward/{name}" for name in reward.members] if isinstance(reward, WeightedSum) else []
    if config.best_by and config.best_by not in columns:
        raise InputError(f"best_by must be one of {', '.join(columns)}, not {config.best_by!r}")
    if folder is not None:
        output_folder(folder)


def _found(folder: Path, accelerator: Accelerator, resume: bool) -> Path | None:
    """The checkpoint to go on from, the same in every process; what is damaged is told. Others go if not `resume`."""
    found = None
    if accelerator.is_main_process:
        tidied(folder)
    if accelerator.is_main_process and resume:
        try:
            newest, broken = newest_whole(folder)
        except InputError as error:
            newest, broken = error, []
        for line in broken:
            say(line)
        found = newest
    elif accelerator.is_main_process:
        for old in checkpoints(folder):
            shutil.rmtree(old)
    found = broadcast(accelerator, found)
    if isinstance(found, InputError):
        raise found
    if found is not None and not found.is_dir():
        raise InputError(f"{found} is not seen by every process; --output must be on a disk that all nodes share")
    return found


def _asked(config: TrainConfig, prompts: Sequence[str], step: int) -> list[str]:
    """The prompts that a run will see from a step on, with those it is watched by."""
    if (config.steps - step) * config.batch_size >= len(prompts):
        return list(prompts)
    coming = (prompts_of_step(prompts, later, config.batch_size, config.seed) for later in range(step, config.steps))
    shown = [*spread(prompts, NOISES), *spread(prompts, COUNT)]
    return [*shown, *(prompt for batch in coming for prompt in batch)]


def _fixed_settings(
    config: TrainConfig, generator: Generator, network: NoiseNetwork, reward: RewardFunction, prompts: Sequence[str]
) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one to reach the same numbers."""
    settings = recognised(config)
    if not config.decay:
        del settings["steps"]
    if config.lipschitz == "free":  # as checkpoints were before there was a limit
        settings |= {"lipschitz": None, "lipschitz_bound": None, "lipschitz_weight": None}
    named = getattr(reward, "__name__", type(reward).__name__)
    rewards, how = (reward.weights, reward.described) if isinstance(reward, WeightedSum) else (named, None)
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    shares = f", mixed {prompts.counts.tolist()}" if isinstance(prompts, PromptMix) else ""
    fixed = {
        **settings,
        "generator": generator.name,
        "network": {"kind": network.kind, **network.settings},
        "rewards": rewards,
        "reward_settings": how,
        "prompts": f"{len(prompts)} prompts, sha256 {digest}{shares}",
    }
    return json.loads(json.dumps(fixed))  # as it will be read back


def _memory(device: torch.device) -> int:
    """Bytes held at most so far: of the accelerator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _chance_aside(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside the block are drawn again after it: watching changes nothing that trains."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
