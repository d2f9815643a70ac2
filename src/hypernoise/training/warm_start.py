"""A start in closed form: the output layer's best linear answer to the reward's gradients.

At the start B is 0 everywhere, so the noise network is linear in what reaches its output layer: f = W h, with h the
frozen denoiser's own features. To first order in the reward the objective is then quadratic in W,

    E[α · ½‖W h‖² − ⟨∂r/∂z, W h⟩],    least at    W = E[∂r/∂z hᵀ] (α E[h hᵀ])⁻¹,

a ridge regression of the gradients on the features, Newton's step where Adam averages thousands of noisy ones and
sees the features through a random A. A round measures both expectations at z = x0 + W h, and moves W towards the
minimum there. Where that move is shorter than allowed, the objective itself, on noises of its own, says whether to go
farther along it: a reward whose gradients were cut, or that steepens on the way, has its minimum beyond the straight
line's. Training goes on from W with every layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hypernoise.errors import InputError
from hypernoise.noise.draws import WARM_STEP, key_of, keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import limit_gradient, noise_objective
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.base import RewardFunction
from hypernoise.rewards.check import check_gradients
from hypernoise.training.config import TrainConfig
from hypernoise.training.optimizers import autocast
from hypernoise.training.step import inference_steps_of

RIDGE = 0.1  # of the features' mean square, added to E[h hᵀ]
FACTORS = (1.0, 2**0.5, 2.0, 8**0.5, 4.0)  # by which a round's move is tried
TRIED = 16  # a round's pictures over those that each factor is tried on


def warm_start(
    network: LoRANoise,
    reward: RewardFunction,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    rounds: int,
    samples: int,
    step: float,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Sets the output layer of a noise network that was not trained yet; a row per round of what was seen before it.

    Args:
        rounds, samples: of so many pictures each, drawn `config.train_batch_size` at a time.
        step: how far a round may move f: the greatest root mean square, over samples, of ‖Δf‖. A shorter move is
            tried at up to four times its length too, on a 16th as many pictures each.
        config: of the run; its kl_weight is α.

    Raises:
        InputError: a network that is trained already, a reward without gradient, or a denoiser whose output layer
            does not see one row per sample.
    """
    if any(weight.any() for name, weight in network.trainable_state().items() if ".lora_B." in name):
        raise InputError("a warm start is for a new noise network; this one is trained already")
    layer: Any = network.layers[network.output_layer].get_base_layer()
    weight = torch.zeros_like(layer.weight, dtype=network.trainable_parameters()[0].dtype).flatten(1)
    squares = weight.new_zeros(weight.shape[1], weight.shape[1])  # sum of h hᵀ, over all rounds
    seen, batch, rows = 0, 0, []
    for number in range(rounds):
        products, drawn, total = torch.zeros_like(weight), 0, 0.0
        bar = tqdm(total=samples, desc=f"warm start {number + 1}/{rounds}", unit="picture", disable=not progress)
        with bar:
            while drawn < samples:
                count = min(config.train_batch_size, samples - drawn)
                gradient, features, rewards = _measure(network, reward, prompts, config, batch, count)
                products += gradient.T @ features
                squares += features.T @ features
                drawn, batch, total = drawn + count, batch + 1, total + rewards.sum().item()
                bar.update(count)
        seen += samples
        second = squares.double() / seen
        ridge = RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype, device=second.device)
        best = torch.linalg.solve(second + ridge, products.T.double() / samples).T / config.kl_weight
        move = best - weight
        length = math.sqrt((move @ second * move).sum())
        factors = sorted({min(factor, step / length) for factor in FACTORS}) if length else [0.0]
        trials = range(batch, batch + max(1, samples // (TRIED * config.train_batch_size))) if len(factors) > 1 else ()
        moved = {factor: (weight + factor * move).to(weight) for factor in factors}
        objectives = {}
        for factor in factors:
            network.set_output(moved[factor].view(layer.weight.shape))
            objectives[factor] = sum(_objective(network, reward, prompts, config, trial) for trial in trials)
        batch += len(trials)
        factor = min(factors, key=objectives.__getitem__)
        weight = moved[factor]
        network.set_output(weight.view(layer.weight.shape))
        rows.append({"round": number + 1, "reward": total / samples, "newton_step": length, "factor": factor})
    return rows


@torch.no_grad()
def _objective(
    network: LoRANoise, reward: RewardFunction, prompts: Sequence[str], config: TrainConfig, batch: int
) -> float:
    """The objective's sum over a batch, as things are."""
    generator = network.generator
    texts, noise = _drawn(network, prompts, config, batch, config.train_batch_size)
    condition = generator.encode(texts)
    with autocast(generator.device, config):
        residual = network(noise, condition)
        steps, seed = inference_steps_of(config, batch), key_of(config.seed, batch)
        pixels = generator.sample(noise + residual, condition, num_inference_steps=steps, seed=seed)
    return noise_objective(residual, reward(pixels.to(noise.dtype), texts), config.kl_weight).sum().item()


def _drawn(
    network: LoRANoise, prompts: Sequence[str], config: TrainConfig, batch: int, count: int
) -> tuple[list[str], Tensor]:
    """Prompts and noises [count, *noise_shape] of a batch."""
    generator = network.generator
    texts = prompts_of_step(prompts, batch, config.train_batch_size, config.seed)[:count]
    noise = keyed_noise(generator.noise_shape, seed=config.seed, step=WARM_STEP + batch, samples=range(count))
    return texts, noise.to(generator.device, network.trainable_parameters()[0].dtype)


def _measure(
    network: LoRANoise,
    reward: RewardFunction,
    prompts: Sequence[str],
    config: TrainConfig,
    batch: int,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch: gradients of the rewards' sum [rows, out], features [rows, in], rewards [count]."""
    generator = network.generator
    texts, noise = _drawn(network, prompts, config, batch, count)
    condition = generator.encode(texts)
    with autocast(generator.device, config), _at_output(network) as kept:
        improved = noise + network(noise, condition)
        if config.sample_clip:
            improved = limit_gradient(improved, config.sample_clip, 1.0)
        steps, seed = inference_steps_of(config, batch), key_of(config.seed, batch)
        pixels = generator.sample(improved, condition, num_inference_steps=steps, seed=seed)
    rewards = reward(pixels.to(noise.dtype), texts)
    check_gradients(reward, rewards, pixels)
    answer, features = kept["answer"], kept["features"]
    if len(answer) != count:
        raise InputError(f"no warm start here: {network.output_layer} sees {len(answer)} rows for {count} samples")
    (gradient,) = torch.autograd.grad(rewards.sum(), answer)
    layer: Any = network.layers[network.output_layer].get_base_layer()
    if isinstance(layer, nn.Conv2d):
        gradient = gradient.flatten(2).mT
        sizes: Any = layer.kernel_size, layer.dilation, layer.padding, layer.stride
        features = nn.functional.unfold(features, *sizes).mT
    return gradient.flatten(0, -2), features.flatten(0, -2), rewards.detach()


@contextmanager
def _at_output(network: LoRANoise) -> Iterator[dict[str, Tensor]]:
    """Keeps what reaches and what leaves the output layer while it is f; what leaves is where the graph begins."""
    kept: dict[str, Tensor] = {}
    layer: Any = network.layers[network.output_layer]
    wide = network.trainable_parameters()[0].dtype

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not network.active:
            return None
        kept["features"] = inputs[0].detach().to(wide)
        kept["answer"] = output.detach().to(wide).requires_grad_()
        return kept["answer"].to(output.dtype)

    hook = layer.register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
