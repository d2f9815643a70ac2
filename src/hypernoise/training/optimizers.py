"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from hypernoise.training.config import TrainConfig


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
