"""The state of a training run, and how it opens and ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hypernoise.errors import InputError, check_is, first_line
from hypernoise.files import output_folder, write_json
from hypernoise.generators.base import Condition, Generator, Sampler, check_texts
from hypernoise.generators.text_cache import KeptInMemory
from hypernoise.noise.base import NoiseNetwork, knows_kl
from hypernoise.noise.draws import OBSERVED_STEP, keyed_noise
from hypernoise.precision import resolve
from hypernoise.prompts import PromptMix, spread
from hypernoise.rewards.base import RewardFunction, check_callable
from hypernoise.rewards.ensemble import known_by
from hypernoise.training.advice import advice
from hypernoise.training.checkpoint import (
    Stateful,
    checkpoints,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
    tidied,
)
from hypernoise.training.config import TrainConfig, recognised
from hypernoise.training.early_stopping import Reading, readings, should_stop
from hypernoise.training.guards import BlowUp, Skipped
from hypernoise.training.lipschitz import check_exact, clamp, lipschitz_seen, scalable
from hypernoise.training.metrics import Log, check_trackers, rows_of
from hypernoise.training.optimizers import autocast, make_optimizer
from hypernoise.training.processes import broadcast, samples_per_round, say, say_once, start
from hypernoise.training.signals import stop_requested

PROCESS = "process.json"
NOISES = 4  # at which the KL and the Lipschitz constant are measured


class Run:
    """A run in progress. `state` names everything that checkpoints hold besides the network: see `Stateful`."""

    def __init__(
        self,
        generator: Generator,
        network: NoiseNetwork,
        reward: RewardFunction,
        prompts: Sequence[str],
        config: TrainConfig,
        validation_reward: RewardFunction | None,
        folder: Path | None,
        accelerator: Accelerator,
    ):
        self.generator, self.network, self.reward, self.prompts = generator, network, reward, prompts
        self.config, self.validation_reward = config, validation_reward
        self.folder, self.accelerator = folder, accelerator
        self.optimizer = make_optimizer(network.trainable_parameters(), config)
        fp16 = config.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(generator.device.type, init_scale=2.0**10, enabled=fp16)
        self.blow_up, self.skipped = BlowUp(config, generator.noise_shape), Skipped()
        self.state: dict[str, Stateful] = {"optimizer": self.optimizer, "scaler": self.scaler, "blow_up": self.blow_up}
        self.fixed = _fixed_settings(config, generator, network, reward, prompts)
        self.step = 0  # completed updates
        self.checkpoint: Path | None = None  # the newest
        self.readings: list[Reading] = []  # of the validation reward
        self.row: dict[str, Any] | None = None  # of the current step, until it is written
        self.committing = False  # inside an update, where the state is neither the old nor the new step's
        self.signal, self.stopped_early = 0, False
        self.advice = ""  # once it is over
        self.began = time.perf_counter()
        self.model: Any = network  # wrapped in DDP with several processes
        self.encode = KeptInMemory(generator, prompts)
        self.log: Log

    @property
    def finished(self) -> bool:
        return self.stopped_early or self.step >= self.config.max_train_steps

    @property
    def ended(self) -> str:
        """How the run ended; empty while it goes on."""
        if self.signal:
            return f"stopped by signal {self.signal}"
        return "stopped early" if self.stopped_early else "done" if self.finished else ""

    @contextmanager
    def opened(self) -> Iterator[Callable[[], int]]:
        """Opens the status file, the log and the signal handlers, and closes them after the block.

        Yields a function that returns the signal received so far, or 0. If the block raises, saves the row of the
        current step and the last completed step.
        """
        main = self.accelerator.is_main_process
        with run_status(self.folder if main else None) as status, self.log.opened():
            # without checkpoints, a signal ends the run like any other program
            with stop_requested() if self.folder is not None else nullcontext(lambda: 0) as stop:
                try:
                    yield stop
                except Exception:
                    for keep in (self.write_row, self._save_last_good):
                        with suppress(InputError):  # a full disk: the error itself reports it
                            keep()
                    raise
            status["ended"] = self.ended

    def clamp(self, noise: Tensor, condition: Condition) -> None:
        """Scales the residual down until its Lipschitz constant at some noises is within the bound."""
        with autocast(self.generator.device, self.config):
            seen = self.accelerator.gather(lipschitz_seen(self.network, noise, condition))
        clamp(self.network, seen.max().item(), self.config.lipschitz.bound)  # type: ignore[union-attr]

    def write_row(self) -> None:
        row, self.row = self.row, None
        if row is not None:
            self.log.write(row)

    def save(self) -> None:
        """Writes a checkpoint, from the first process."""
        if self.folder is not None and self.accelerator.is_main_process:
            self.checkpoint = save_checkpoint(
                self.folder,
                self.step,
                self.network,
                self.generator,
                self.state,
                fixed=self.fixed,
                keep=self.config.checkpoints_total_limit,
            )

    def _save_last_good(self) -> None:
        saved = self.checkpoint is not None and self.checkpoint.name == f"checkpoint-{self.step:06d}"
        if self.step and not (self.committing or saved):
            self.save()


def open_run(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    validation_reward: RewardFunction | None,
    folder: str | Path | None,
    resume: bool,
    progress: bool,
) -> Run:
    """Checks the input, joins the other processes and restores the newest checkpoint. Raises the errors of `train`."""
    _check(config, generator, network, reward, validation_reward, prompts, folder)
    folder = None if folder is None else Path(folder)
    precision = resolve(config.mixed_precision, generator.device)
    if precision.slow:
        say_once(precision.line)
    config = dataclasses.replace(config, mixed_precision=precision.name)
    accelerator = start(generator.device, config.report_to, folder)
    samples_per_round(config, accelerator.num_processes)
    suit = getattr(network, "suit", None)
    if suit is not None:
        suit(generator, prompts)
    if isinstance(network, nn.Module):
        network.to(generator.device)
    run = Run(generator, network, reward, prompts, config, validation_reward, folder, accelerator)
    if folder is not None:
        run.checkpoint = _found(folder, accelerator, resume)
    if run.checkpoint is not None:
        run.step = load_checkpoint(run.checkpoint, network, generator, run.state, fixed=run.fixed)
        say(f"resuming from {run.checkpoint} (delete {folder} to start over)")
    if run.step > config.max_train_steps:
        reached = f"{run.checkpoint} is at step {run.step}, beyond max_train_steps {config.max_train_steps}"
        raise InputError(f"{reached}; give another --output-dir")
    run.log = Log(accelerator, folder, run.step, config, run.fixed, progress)
    if isinstance(network, nn.Module):
        run.model = accelerator.prepare_model(network, device_placement=False)
    run.readings = readings(rows_of(folder), run.step) if folder is not None and run.step else []
    run.stopped_early = should_stop(run.readings, config.patience)  # such a run does not continue
    return run


def finish(run: Run) -> None:
    """Tells every process the last checkpoint; a finished run gets advice on its settings."""
    run.checkpoint = broadcast(run.accelerator, run.checkpoint)
    if run.finished:
        rows = rows_of(run.folder) if run.folder is not None else run.log.history
        exact = run.config.kl_term == "exact" or knows_kl(run.network)
        run.advice = advice(rows, run.config, math.prod(run.generator.noise_shape), exact=exact)
        say(run.advice)


def fixed_noises(
    generator: Generator,
    network: NoiseNetwork,
    prompts: Sequence[str],
    encode: Callable[[list[str]], Condition],
    seed: int,
) -> tuple[Tensor, Condition]:
    """The noises [4, *noise_shape] for diagnostics, and their conditions."""
    noise = keyed_noise(generator.noise_shape, seed=seed, step=OBSERVED_STEP, samples=range(NOISES))
    noise = noise.to(generator.device, network.trainable_parameters()[0].dtype)
    return noise, encode(spread(prompts, NOISES))


@contextmanager
def run_status(folder: Path | None) -> Iterator[dict[str, Any]]:
    """Keeps process.json in `folder`: which process trains, and after the block, how it ended."""
    about: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "ended": ""}

    def write() -> None:
        if folder is not None:
            with suppress(OSError):  # a full disk is reported by required writes
                write_json(folder / PROCESS, about)

    write()
    try:
        yield about
    except BaseException as error:
        about["ended"] = first_line(error) if isinstance(error, Exception) else "interrupted"
        raise
    finally:
        write()


def _check(
    config: TrainConfig,
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    validation_reward: RewardFunction | None,
    prompts: Sequence[str],
    folder: str | Path | None,
) -> None:
    check_is(generator, Sampler, "the generator", "what load_generator or ModuleGenerator makes")
    check_is(network, NoiseNetwork, "the network", "a LoRANoise, ResidualNoise or SpectralNoise")
    check_is(config, TrainConfig, "the config", "a TrainConfig, such as TrainConfig(max_train_steps=100)")
    check_texts(prompts)
    check_texts(config.validation_prompts, "validation_prompts")
    if not prompts:
        raise InputError("no prompt to train on")
    check_callable(reward)
    if validation_reward is not None:
        check_callable(validation_reward, "the validation reward")
    if config.patience and validation_reward is None:
        raise InputError("patience needs a validation reward")
    if config.lipschitz.mode == "clamp" and not scalable(network):
        raise InputError(f"lipschitz: clamp needs a network with scale_output, which a {network.kind!r} network lacks")
    if config.kl_term == "exact" and not knows_kl(network):
        check_exact(generator.noise_shape)
    check_trackers(config.report_to, folder)
    if folder is not None:
        output_folder(folder)


def _found(folder: Path, accelerator: Accelerator, resume: bool) -> Path | None:
    """The checkpoint to resume from, the same in every process. Reports damaged ones; without `resume`, deletes all."""
    found: Path | InputError | None = None
    if accelerator.is_main_process:
        tidied(folder)
        if resume:
            try:
                found, damaged = newest_whole(folder)
                for line in damaged:
                    say(line)
            except InputError as error:
                found = error
        else:
            for old in checkpoints(folder):
                shutil.rmtree(old)
    found = broadcast(accelerator, found)
    if isinstance(found, InputError):
        raise found
    if found is not None and not found.is_dir():
        raise InputError(
            f"{found} is not visible to every process; --output-dir must be on a disk that all nodes share"
        )
    return found


def _fixed_settings(
    config: TrainConfig, generator: Generator, network: NoiseNetwork, reward: RewardFunction, prompts: Sequence[str]
) -> dict[str, Any]:
    """The settings that must be the same on resume to reach the same numbers."""
    settings = recognised(config)
    if config.lr_scheduler == "constant":
        del settings["max_train_steps"]
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    shares = f", mixed {prompts.counts.tolist()}" if isinstance(prompts, PromptMix) else ""
    fixed = {
        **settings,
        "generator": generator.name,
        "network": {"kind": network.kind, **network.settings},
        "rewards": known_by(reward),
        "reward_settings": getattr(reward, "described", None),
        "prompts": f"{len(prompts)} prompts, sha256 {digest}{shares}",
    }
    return json.loads(json.dumps(fixed))  # as it is read back
