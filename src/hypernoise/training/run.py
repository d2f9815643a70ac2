"""The state of a training run, and how it opens and ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from hypernoise.adapters import compare_base, read_about, read_weights, write_adapter
from hypernoise.errors import InputError, check_is, first_line
from hypernoise.files import output_folder, read_json, write_json
from hypernoise.generators.base import Generator, check_generator, check_texts
from hypernoise.generators.text_cache import KeptInMemory
from hypernoise.noise.base import NoiseNetwork
from hypernoise.precision import resolve
from hypernoise.prompts import PromptMix
from hypernoise.rewards.base import RewardFunction, check_callable
from hypernoise.rewards.ensemble import known_by
from hypernoise.training.advice import advice
from hypernoise.training.checkpoint import ABOUT, STATE, checkpoints, new_checkpoint, newest_whole, tidied
from hypernoise.training.config import MOST_DIMENSIONS, TrainConfig, recognised
from hypernoise.training.guards import BlowUp, fallen_since, readings
from hypernoise.training.metrics import Log, check_trackers, rows_of
from hypernoise.training.processes import say, say_once, start, stop_requested

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

PROCESS = "process.json"


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay)


def set_learning_rate(optimizer: Optimizer, config: TrainConfig, step: int) -> None:
    """The learning-rate factor of a step: warm-up, then constant or decaying to 0. Depends only on the step."""
    warm = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    done = min(1.0, step / config.max_train_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.lr_scheduler]
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * (warm * left)


class Run:
    """A run in progress. `state` names everything that checkpoints hold besides the network.

    Creating it checks the input, joins the other processes and restores the newest checkpoint, or without `resume`
    deletes all of them. Raises the errors of `train`.
    """

    def __init__(
        self,
        generator: Generator,
        network: NoiseNetwork,
        reward: RewardFunction,
        prompts: Sequence[str],
        config: TrainConfig,
        *,
        validation_reward: RewardFunction | None,
        output_dir: str | Path | None,
        resume: bool,
        progress: bool,
    ):
        self.generator, self.network, self.reward, self.prompts = generator, network, reward, prompts
        self.config, self.validation_reward = config, validation_reward
        self._check()
        check_trackers(config.report_to, output_dir)
        self.folder = None if output_dir is None else output_folder(output_dir)
        self.precision = resolve(config.mixed_precision, generator.device)
        if self.precision.slow:
            say_once(self.precision.line)
        self.config = dataclasses.replace(config, mixed_precision=self.precision.name)
        self.accelerator = start(generator.device, config.report_to, self.folder)
        self.samples = config.samples_per_round(self.accelerator.num_processes)
        network.suit(generator, prompts)
        network.to(generator.device)
        self.optimizer = make_optimizer(network.trainable_parameters(), config)
        fp16 = self.precision.name == "fp16"
        self.scaler = torch.amp.GradScaler(generator.device.type, init_scale=2.0**10, enabled=fp16)
        self.blow_up = BlowUp(config, self.dimensions)
        self.state: dict[str, Stateful] = {"optimizer": self.optimizer, "scaler": self.scaler, "blow_up": self.blow_up}
        self.fixed = self._fixed_settings()
        self.encode = KeptInMemory(generator, prompts)
        self.step = 0  # completed updates
        self.row: dict[str, Any] | None = None  # of the current step, until it is written
        self.committing = False  # inside an update, where the state is neither the old nor the new step's
        self.signal = 0
        self.advice = ""  # once it is over
        self.checkpoint = self._found(resume)  # the newest
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        self.saved = self.step  # the newest checkpoint's
        earlier = [row for row in rows_of(self.folder) if row["step"] <= self.step]
        hidden = not (progress and self.accelerator.is_main_process)
        bar = tqdm(total=config.max_train_steps, initial=self.step, unit="step", disable=hidden)
        self.log = Log(self.accelerator, self.folder, earlier, self.fixed, bar)
        self.model: Any = self.accelerator.prepare_model(network, device_placement=False)  # DDP for several processes
        self.readings = readings(earlier)  # of the validation reward
        self.fallen_since = fallen_since(self.readings, config.patience)  # such a run does not continue

    def _check(self) -> None:
        config, network = self.config, self.network
        check_generator(self.generator)
        self.dimensions = math.prod(self.generator.noise_shape)
        kinds = "a LoRANoise, ResidualNoise or SpectralNoise, or a subclass of hypernoise.noise.base.NoiseNetwork"
        check_is(network, NoiseNetwork, "the network", kinds)
        check_is(config, TrainConfig, "the config", "a TrainConfig, such as TrainConfig(max_train_steps=100)")
        check_texts(self.prompts)
        check_texts(config.validation_prompts, "validation_prompts")
        if not self.prompts:
            raise InputError("no prompt to train on")
        check_callable(self.reward)
        if self.validation_reward is not None:
            check_callable(self.validation_reward, "the validation reward")
        elif config.patience:
            raise InputError("patience needs a validation reward")
        if config.lipschitz.mode == "clamp":
            network.scale_output(1.0)  # raises if it cannot
        if config.kl_term == "exact" and not network.knows_kl and self.dimensions > MOST_DIMENSIONS:
            raise InputError(
                f"kl_term: exact needs a backward pass per dimension of the noise, {MOST_DIMENSIONS} at most; this "
                f"noise has {self.dimensions}: use kl_term: l2, with lipschitz: penalty or clamp"
            )

    def _found(self, resume: bool) -> Path | None:
        """The checkpoint to resume from, the same in every process. Reports damaged ones; or deletes all."""
        if self.folder is None:
            return None
        found: Path | InputError | None = None
        if self.accelerator.is_main_process:
            tidied(self.folder)
            for old in [] if resume else checkpoints(self.folder):
                shutil.rmtree(old)
            try:
                found, damaged = newest_whole(self.folder)
                say("\n".join(damaged))
            except InputError as error:
                found = error
        (found,) = broadcast_object_list([found])
        if isinstance(found, InputError):
            raise found
        if found is not None and not found.is_dir():
            raise InputError(
                f"{found} is not visible to every process; --output-dir must be on a disk that all nodes share"
            )
        return found

    def _fixed_settings(self) -> dict[str, Any]:
        """The settings that must be the same on resume to reach the same numbers."""
        settings, prompts = recognised(self.config), self.prompts
        if self.config.lr_scheduler == "constant":
            del settings["max_train_steps"]
        digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
        shares = f", mixed {prompts.counts.tolist()}" if isinstance(prompts, PromptMix) else ""
        fixed = {
            **settings,
            "generator": self.generator.name,
            "noise_shape": self.generator.noise_shape,
            "call": self.generator.call_settings(),
            "network": {"kind": self.network.kind, **self.network.settings},
            "rewards": known_by(self.reward),
            "prompts": f"{len(prompts)} prompts, sha256 {digest}{shares}",
        }
        return json.loads(json.dumps(fixed))  # as it is read back

    def _load(self, folder: Path) -> None:
        """Restores the state of a checkpoint, with the same settings and base."""
        about = read_json(folder / ABOUT, f"{folder / ABOUT}")
        for name, value in self.fixed.items():
            saved = about["fixed"].get(name, value)  # older checkpoints lack some
            if saved != value:
                raise InputError(
                    f"{folder} was trained with {name} = {saved!r}, not {value!r}; "
                    "resume with the same settings, or give another --output-dir"
                )
        compare_base(read_about(folder), self.generator, folder)
        self.network.load_trainable_state(read_weights(folder))
        parts = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        for name, part in self.state.items():
            part.load_state_dict(parts[name])
        self.step = int(about["step"])
        say(f"resuming from {folder} (delete {self.folder} to start over)")
        if self.step > self.config.max_train_steps:
            reached = f"{folder} is at step {self.step}, beyond max_train_steps {self.config.max_train_steps}"
            raise InputError(f"{reached}; give another --output-dir")

    def save(self) -> None:
        """Writes a checkpoint, from the first process."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        with new_checkpoint(self.folder, self.step, keep=self.config.checkpoints_total_limit) as folder:
            write_adapter(self.network, folder, generator=self.generator, training={**self.fixed, "steps": self.step})
            with (folder / STATE).open("wb") as file:
                torch.save({name: part.state_dict() for name, part in self.state.items()}, file)
            write_json(folder / ABOUT, {"step": self.step, "fixed": self.fixed})
        self.checkpoint, self.saved = checkpoints(self.folder)[-1], self.step

    @property
    def finished(self) -> bool:
        return self.fallen_since is not None or self.step >= self.config.max_train_steps

    @property
    def ended(self) -> str:
        """How the run ended; empty while it goes on."""
        if self.signal:
            return f"stopped by signal {self.signal}"
        if self.fallen_since is not None:
            return "stopped early"
        return "done" if self.finished else ""

    @contextmanager
    def opened(self) -> Iterator[Callable[[], int]]:
        """Opens the status file, the log and the signal handlers, and closes them after the block.

        Yields a function that returns the signal received so far, or 0. If the block raises, saves the row of the
        current step and the last completed step.
        """
        ended = "interrupted"
        self._write_status("")
        # without checkpoints, a signal ends the run like any other program
        with stop_requested() if self.folder is not None else nullcontext(lambda: 0) as stop:
            try:
                with self.log.bar:
                    yield stop
                for tracker in self.accelerator.trackers:
                    tracker.finish()
                ended = self.ended
            except Exception as error:
                ended = first_line(error)
                with suppress(InputError):  # a full disk: the error itself reports it
                    self.write_row()
                with suppress(InputError):
                    if self.step != self.saved and not self.committing:
                        self.save()
                raise
            finally:
                self._write_status(ended)

    def _write_status(self, ended: str) -> None:
        """Writes process.json: which process trains, and how it ended."""
        about = {"host": socket.gethostname(), "pid": os.getpid(), "ended": ended}
        if self.folder is not None and self.accelerator.is_main_process:
            with suppress(OSError):  # a full disk is reported by required writes
                write_json(self.folder / PROCESS, about)

    def write_row(self) -> None:
        row, self.row = self.row, None
        if row is not None:
            self.log.write(row)

    def autocast(self) -> torch.autocast:
        return self.precision.autocast(self.generator.device)

    def finish(self) -> None:
        """Tells every process the last checkpoint; says why a run stopped early, and its advice if it is finished."""
        (self.checkpoint,) = broadcast_object_list([self.checkpoint])
        if self.fallen_since is not None:
            say(
                f"stopped early at step {self.step}: the validation reward has fallen since about step "
                f"{self.fallen_since} while the trained one has not; the pictures improve by the trained reward only"
            )
        if self.finished:
            exact = self.config.kl_term == "exact" or self.network.knows_kl
            rows = rows_of(self.folder) or self.log.history
            self.advice = advice(rows, self.config, self.dimensions, exact=exact)
            say(self.advice)
