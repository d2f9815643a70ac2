"""Measurements during training, as columns of the step's row: speed, KL and Lipschitz constant, sample grids.

Always on the same few noises and prompts, so that curves show changes of the network and not of the
noises. Nothing here uses torch's global random state, so observed runs train to the same weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.files import output_folder, writing
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.draws import VALIDATION_STEP, keyed_noise
from hypernoise.training.optimizers import autocast
from hypernoise.training.run import Run, fixed_noises
from hypernoise.training.step import Batch

GAP = 4  # px between the pictures of a grid


def pace(run: Run, batch: Batch) -> dict[str, float]:
    """Seconds and pictures per second of the step, peak memory so far, and remaining time."""
    now = time.perf_counter()
    seconds, per_step = now - batch.began, (now - run.began) / (run.step - run.log.start)
    row = {
        "seconds": round(seconds, 4),
        "images_per_second": round(len(batch.prompts) / seconds, 3),
        "eta_seconds": round(per_step * (run.config.max_train_steps - run.step), 1),
    }
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
    """The columns for `config.diagnostics`, every `diagnostics_steps` and at the last step."""
    config = run.config
    due = run.step % config.diagnostics_steps == 0 or run.step == config.max_train_steps
    if not (config.diagnostics and due and run.accelerator.is_main_process):
        return {}
    with autocast(run.generator.device, config):
        noise, condition = fixed_noises(run.generator, run.network, run.prompts, run.encode, config.seed)
        return diagnosed(config.diagnostics, run.network, noise, condition)


def diagnosed(names: Sequence[str], network: NoiseNetwork, noise: Tensor, condition: Condition) -> dict[str, float]:
    """Columns by name. lipschitz: the greatest ‖J‖₂ at the noises, a lower bound of Lip(f), and gap_bound, the largest
    possible sum of the dropped KL terms if Lip(f) equals it (infinite from 1 on). kl: kl_gap, these terms in nats, and
    kl_gap_error, their standard error."""
    row: dict[str, float] = {}
    if "lipschitz" in names:
        row["lipschitz"] = spectral_norm(network, noise, condition).max().item()
        row["gap_bound"] = kl_gap_bound(noise[0].numel(), row["lipschitz"])
    if "kl" in names:
        gap = estimate_kl(network, noise, condition).gap
        row["kl_gap"], row["kl_gap_error"] = gap.value, gap.error
    return row


def sample_grid(run: Run, batch: Batch) -> dict[str, Any]:
    """Draws the validation prompts every `validation_steps` from the same noises, plain above improved, as a PNG."""
    config = run.config
    if run.folder is None or not (config.validation_prompts and run.accelerator.is_main_process):
        return {}
    if run.step % config.validation_steps:
        return {}
    with autocast(run.generator.device, config):
        rows = _samples(run, batch.inference_steps)
    with writing("sample grid", "the checkpoints are intact"):
        grid(rows).save(output_folder(run.folder / "samples") / f"step-{run.step:06d}.png")
    return {}


@torch.no_grad()
def _samples(run: Run, inference_steps: int) -> list[list[Tensor]]:
    generator, seed, texts = run.generator, run.config.seed, run.config.validation_prompts
    noise = keyed_noise(generator.noise_shape, seed=seed, step=VALIDATION_STEP, samples=range(len(texts)))
    noise = noise.to(generator.device, run.network.trainable_parameters()[0].dtype)
    rows: list[list[Tensor]] = [[], []]
    for i, text in enumerate(texts):  # one by one, to save memory
        x, c = noise[i : i + 1], run.encode([text])
        for row, z in zip(rows, (x, x + run.network(x, c)), strict=True):
            row.append(generator.sample(z, c, num_inference_steps=inference_steps, seed=seed)[0].float().cpu())
    return rows


def grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of pictures [3, H, W] in [0, 1] of one size."""
    height, width = rows[0][0].shape[1:]
    sheet = Image.new("RGB", (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            values = picture.clamp(0, 1).permute(1, 2, 0).mul(255).round().byte()
            sheet.paste(Image.fromarray(values.numpy()), (column * (width + GAP), number * (height + GAP)))
    return sheet


OBSERVERS = (pace, diagnostics, sample_grid)
