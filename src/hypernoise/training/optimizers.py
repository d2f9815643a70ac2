"""The optimiser, its learning rate over the run, a running average of what trains, and the precision of products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hypernoise.noise.base import NoiseNetwork
from hypernoise.precision import resolve
from hypernoise.training.config import TrainConfig


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay)


def set_learning_rate(optimizer: Optimizer, config: TrainConfig, step: int) -> None:
    """The rate of one step: warm-up, then constant or falling to 0. A function of the step alone."""
    warm = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    done = min(1.0, step / config.max_train_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.lr_scheduler]
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * (warm * left)


class Average:
    """A running average of what trains: each update keeps `decay` of the past.

    At first it keeps less, (1 + n)/(10 + n) after n updates, so that the untrained weights fade.
    """

    def __init__(self, network: NoiseNetwork, decay: float):
        self.network, self.decay, self.updates = network, decay, 0
        self.weights = {name: tensor.clone() for name, tensor in network.trainable_state().items()}

    def update(self) -> None:
        """Takes in the network's weights as they are now."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.network.trainable_state()
        torch._foreach_lerp_(list(self.weights.values()), [now[name] for name in self.weights], 1 - kept)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the network has the average's weights."""
        own = {name: tensor.clone() for name, tensor in self.network.trainable_state().items()}
        self.network.load_trainable_state(self.weights)
        try:
            yield
        finally:
            self.network.load_trainable_state(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """Inside the block matrix products are in the run's mixed precision, if any."""
    precision = resolve(config.mixed_precision, device)
    mixed = precision.name != "no"
    return torch.autocast(device.type, precision.dtype if mixed else None, enabled=mixed)
