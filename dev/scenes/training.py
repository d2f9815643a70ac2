"""The state of one training of the scenes benchmark's own networks: weights, average, optimiser, step."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hypernoise.errors import InputError


@dataclass(frozen=True)
class StageConfig:
    """What every stage that trains has: where, from which seed, on what, and how often it saves."""

    output: Path = Path("runs/scenes")
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 250


def load_stage(file: Path) -> dict[str, Tensor]:
    """The weights that an earlier stage saved.

    Raises:
        InputError: they are missing.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: run the stage that makes it, or copy dev/scenes/weights/*.safetensors")
    return load_file(file)


class TrainState:
    """Weights, their running average, optimiser and step of one stage; saves, resumes and logs itself."""

    def __init__(
        self,
        config: StageConfig,
        name: str,
        modules: list[nn.Module],
        lr: float,
        steps: int,
        rates: tuple[float, ...] = (),
    ):
        """With `rates`, every module learns at its own multiple of `lr`, and is clipped on its own."""
        self.config, self.name, self.lr, self.steps, self.step = config, name, lr, steps, 0
        self.modules = nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        trained = [[p for p in module.parameters() if p.requires_grad] for module in modules]
        groups = trained if rates else [self.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "rate": rate} for group, rate in zip(groups, rates or (1.0,), strict=True)],
            lr=lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.file = config.output / f"{name}.checkpoint.pt"
        self.log = config.output / "metrics.jsonl"
        if self.file.exists():
            saved = torch.load(self.file, weights_only=True, map_location=config.device)
            self.modules.load_state_dict(saved["modules"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average, self.step = saved["average"], saved["step"]
        torch.manual_seed(config.seed + self.step)
        self.started = time.time()

    def autocast(self):
        return torch.autocast(torch.device(self.config.device).type, torch.bfloat16)

    def update(self, loss: Tensor, logged: dict[str, Tensor]) -> None:
        warm, left = (self.step + 1) / 100, (self.steps - self.step) / (0.7 * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["rate"] * min(1.0, warm, left)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(0.995, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        if self.step % 25 == 0:
            row = {"stage": self.name, "step": self.step, **{k: round(v.item(), 5) for k, v in logged.items()}}
            row["seconds"] = round(time.time() - self.started, 1)
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if self.step % self.config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        saved = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        torch.save(saved, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)
        torch.manual_seed(self.config.seed + self.step)  # as a resumed run starts: the same numbers either way

    def load_average(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)
