"""The optimiser, its learning rate over the run, and a running average of what it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypernoise.errors import InputError
from hypernoise.noise.base import NoiseNetwork
from hypernoise.training.config import TrainConfig


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Raises InputError for adamw8bit where bitsandbytes is not installed."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    if config.optimizer == "adamw8bit":
        return _adamw8bit()(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


def _adamw8bit() -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("optimizer adamw8bit needs bitsandbytes: pip install 'hypernoise[8bit]'") from error
    return bitsandbytes.optim.AdamW8bit


def set_learning_rate(optimizer: Optimizer, config: TrainConfig, step: int) -> None:
    """The rate of one step: warm-up, then constant or down to 0. It is a function of the step: there is no state."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    done = min(1.0, step / config.steps) if config.decay else 0.0
    factor = warm * (1 - done if config.decay_shape == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


class Average:
    """A running average of what trains: each update leaves `decay` of the past.

    From the start it follows faster, (1 + n)/(10 + n) after n updates, so that the untrained weights fade.
    """

    def __init__(self, network: NoiseNetwork, decay: float):
        self.network, self.decay, self.updates = network, decay, 0
        self.state = {name: tensor.clone() for name, tensor in network.trainable_state().items()}

    def update(self) -> None:
        """Takes in the network's weights as they are now."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.network.trainable_state()
        torch._foreach_lerp_(list(self.state.values()), [now[name] for name in self.state], 1 - kept)
        self.updates += 1

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.updates = updates

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the network has the average's weights."""
        own = {name: tensor.clone() for name, tensor in self.network.trainable_state().items()}
        self.network.load_trainable_state(self.state)
        try:
            yield
        finally:
            self.network.load_trainable_state(own)
