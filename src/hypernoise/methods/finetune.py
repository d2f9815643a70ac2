"""The baseline that changes the generator: a LoRA on its denoiser, trained only by the reward.

Direct reward fine-tuning (DRaFT, Clark et al. 2023, arXiv 2309.17400): the reward's gradient goes through all
few-step sampling into an ordinary LoRA. There is no KL term, as the pictures' distribution has no computable
one. It shares the noise network's code and rank, so the two differ only in what the LoRA
is: f, or a change to g.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hypernoise.adapters import read_network
from hypernoise.errors import check_is
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.methods.base import Problem, Result, metered
from hypernoise.methods.hypernoise import Adapter
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.base import RewardFunction
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import TrainResult, train


class LoRATune(LoRANoise):
    """An ordinary LoRA on every Linear and Conv layer of the denoiser, off except inside `adapted()`.

    Arguments and errors are those of `LoRANoise`. As a noise network its residual is 0.
    """

    kind: ClassVar[str] = "finetune"
    drops_base_path: ClassVar[bool] = False  # the LoRA adds to g

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(noise)


def finetune(
    generator: DiffusionGenerator,
    network: LoRATune,
    reward: RewardFunction,
    prompts: list[str],
    config: TrainConfig,
    **settings: Any,
) -> TrainResult:
    """Trains `network` in place to maximise E[reward(g_LoRA(x))]; arguments and errors are those of `train`.

    It is `train` with the LoRA active in the generator: noises, prompts, optimiser and checkpoints equal those of a
    noise network with the same configuration. `kl_weight` has no effect, as the residual is 0.
    """
    check_is(network, LoRATune, "the network", "a LoRATune; `train` trains noise networks")
    with network.adapted():
        return train(generator, network, reward, prompts, config, **settings)


def load_finetuned(generator: Any, folder: str | Path) -> LoRATune:
    """The LoRA that `save_adapter` saved in `folder`. Raises InputError if there is none, or it is of another base."""
    return read_network(generator, Path(folder), {LoRATune.kind: LoRATune})


class FineTune:
    """Draws one picture of the given noise with the fine-tuned generator.

    Args:
        network: a trained `LoRATune`, or the directory it was saved in.
    """

    def __init__(self, network: LoRATune | str | Path, *, name: str = "finetune"):
        self.adapter, self.name = Adapter(network, load_finetuned), name

    def settings(self) -> dict[str, Any]:
        return {"method": "finetune", "weights": self.adapter.digest()}

    @torch.no_grad()
    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        network = self.adapter.on(problem.generator)
        assert isinstance(network, LoRATune)
        with metered(problem) as meter, network.adapted():
            pixels = meter.draw(noise, problem.generator.encode(prompts))
        return Result(pixels, noise, prompts, None, meter.spent())
