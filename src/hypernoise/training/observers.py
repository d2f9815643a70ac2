"""Measurements during training, as columns of the step's row: speed, KL and Lipschitz constant, sample grids.

Always on the same few noises and prompts, so that curves show changes of the network and not of the
noises. Nothing here uses torch's global random state, so observed runs train to the same weights.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from diffusers.utils import make_image_grid
from torch import Tensor

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.files import output_folder, picture_of, writing
from hypernoise.noise.draws import OBSERVED_STEP, VALIDATION_STEP, noise_for
from hypernoise.prompts import spread
from hypernoise.training.run import Run
from hypernoise.training.step import Batch

NOISES = 4  # at which the KL and the Lipschitz constant are measured


def pace(run: Run, batch: Batch) -> dict[str, float]:
    """Seconds and pictures per second of the step, and peak memory so far."""
    seconds = time.perf_counter() - batch.began
    row = {"seconds": round(seconds, 4), "images_per_second": round(len(batch.prompts) / seconds, 3)}
    peak = peak_memory(run.generator.device)
    return row | ({} if peak is None else {"memory_gib": round(peak / 2**30, 3)})


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes in use so far: the GPU's, otherwise this process's; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def diagnostics(run: Run, batch: Batch) -> dict[str, float]:
    """The columns for `config.diagnostics`, every `diagnostics_steps` and at the last step.

    lipschitz: the greatest ‖J‖₂ at the noises, a lower bound of Lip(f), and gap_bound, the largest possible sum of the
    dropped KL terms if Lip(f) equals it (infinite for L ≥ 1). kl: kl_gap, these terms in nats, and kl_gap_error, their
    standard error.
    """
    config, row = run.config, {}
    due = run.step % config.diagnostics_steps == 0 or run.step == config.max_train_steps
    if not (config.diagnostics and due and run.accelerator.is_main_process):
        return {}
    noise = noise_for(run.generator, run.network, seed=config.seed, step=OBSERVED_STEP, samples=range(NOISES))
    condition = run.encode(spread(run.prompts, NOISES))
    with run.autocast():
        if "lipschitz" in config.diagnostics:
            row["lipschitz"] = spectral_norm(run.network, noise, condition).max().item()
            row["gap_bound"] = kl_gap_bound(run.dimensions, row["lipschitz"])
        if "kl" in config.diagnostics:
            gap = estimate_kl(run.network, noise, condition).gap
            row["kl_gap"], row["kl_gap_error"] = gap.value, gap.error
    return row


@torch.no_grad()
def sample_grid(run: Run, batch: Batch) -> dict[str, Any]:
    """Draws the validation prompts every `validation_steps` from the same noises, plain above improved, as a PNG."""
    config, texts = run.config, run.config.validation_prompts
    due = run.step % config.validation_steps == 0 and run.accelerator.is_main_process
    if run.folder is None or not (texts and due):
        return {}
    noise = noise_for(run.generator, run.network, seed=config.seed, step=VALIDATION_STEP, samples=range(len(texts)))
    settings = {"num_inference_steps": batch.inference_steps, "seed": config.seed}
    rows: list[list[Tensor]] = [[], []]
    with run.autocast():
        for x, text in zip(noise.split(1), texts, strict=True):  # one by one, to save memory
            c = run.encode([text])
            for row, z in zip(rows, (x, x + run.network(x, c)), strict=True):
                row.append(run.generator.sample(z, c, **settings)[0].float().cpu())
    with writing("sample grid", "the checkpoints are intact"):
        sheet = make_image_grid([picture_of(pixels) for row in rows for pixels in row], rows=2, cols=len(texts))
        sheet.save(output_folder(run.folder / "samples") / f"step-{run.step:06d}.png")
    return {}


OBSERVERS = (pace, diagnostics, sample_grid)
