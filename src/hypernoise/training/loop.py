"""The training loop: noise, residual, picture, reward, one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.rewards.base import RewardFunction
from hypernoise.training.config import TrainConfig
from hypernoise.training.guards import check_skipped, fallen_since, readings
from hypernoise.training.observers import OBSERVERS
from hypernoise.training.run import Run
from hypernoise.training.step import batch_of, commit, forward_backward, measure


@dataclass(frozen=True)
class TrainResult:
    """The result of a run: the step reached, its rows (of this call's steps, the last 10,000), its last checkpoint.

    `finished` is False if a signal interrupted the run; the same call then resumes from the checkpoint. A signal in the
    last step leaves it True: ask `signal` before going on to other work.
    """

    step: int
    finished: bool
    history: list[dict[str, Any]]
    checkpoint: Path | None
    stopped_early: bool = False  # the validation reward fell while the trained one did not
    signal: int = 0
    advice: str = ""  # on the settings, once the run is over
    skipped: int = 0  # steps of this call with a non-finite reward or gradient


def train(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    validation_reward: RewardFunction | None = None,
    output_dir: str | Path | None = None,
    resume_from_checkpoint: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Trains `network` in place to minimise E[kl_weight·½‖f‖² − reward(g(x + f))]; the generator stays frozen.

    Noise, prompt order and torch's global random state are functions of (seed, step, sample), so a resumed run, or one
    in several processes (see `processes`), gives the numbers of an uninterrupted run in one process.

    Args:
        reward: any callable (pixels [B, 3, H, W] in [0, 1], prompts) -> [B], higher is better.
        validation_reward: measured on the same pictures but not trained on; with `patience` it can end the run
            (`guards.fallen_since`).
        output_dir: receives metrics.jsonl and checkpoints; if None, nothing is written.
        resume_from_checkpoint: continue from the newest undamaged checkpoint in `output_dir`; if False, delete existing
            checkpoints.

    With an `output_dir`, Ctrl-C or SIGTERM ends the run after the current step with a checkpoint, and a second Ctrl-C
    at once; without one, signals act as usual. An error leaves a checkpoint of the last completed step.

    Raises:
        InputError: no prompts, a batch that is not a multiple of processes × accumulation, a reward that raises or has
            no gradient, too many non-finite steps, a KL or pictures that blow up, a checkpoint with other settings or
            of a later step, a full disk, or a clamp on a network that cannot be rescaled.
    """
    settings = {"output_dir": output_dir, "resume": resume_from_checkpoint, "progress": progress}
    run = Run(generator, network, reward, prompts, config, validation_reward=validation_reward, **settings)
    with run.opened() as stop:
        while not run.ended:
            batch = batch_of(run)
            rounds = [forward_backward(run, batch, part) for part in batch.parts]
            row, run.signal = measure(run, rounds, stop())
            run.row = row  # what is written, also if a later line raises
            run.blow_up.check(run.step + 1, row)
            commit(run, rounds, row)
            for observe in OBSERVERS:
                row |= observe(run, batch)
            run.write_row()
            check_skipped(run.log.history)
            if new := readings([run.log.history[-1]]):
                run.readings += new
                run.fallen_since = fallen_since(run.readings, config.patience)
            if run.ended or run.step % config.checkpointing_steps == 0:
                run.save()
        run.finish()
    ending = {"stopped_early": run.fallen_since is not None, "signal": run.signal, "advice": run.advice}
    return TrainResult(run.step, run.finished, list(run.log.history), run.checkpoint, skipped=run.log.skipped, **ending)
