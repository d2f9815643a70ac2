"""The training steps that `hypernoise.train` is compared with: its bare compute, and the published procedure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from benchmarks.networks import PROMPTS
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl, noise_objective
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.ensemble import WeightedSum


def bare(steps: int, batch_size: int, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    """The same network calls in a minimal loop."""
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    known = {prompt: generator.encode([prompt]) for prompt in PROMPTS}
    for step in range(steps):
        texts, noise = batch(batch_size, generator, step)
        condition = joined([known[text] for text in texts])
        residual = network(noise, condition)
        rewards = reward(generator.sample(noise + residual, condition), texts)
        noise_objective(l2_kl(residual), rewards, 1.0).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def published(
    steps: int, batch_size: int, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum
) -> None:
    """The released procedure: prompts encoded every step, for the generator and for the reward, adapters toggled
    through PEFT's layers, two passes for the gradient norm, a scan of every gradient for non-finite values, metrics
    read back one by one."""
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    with in_peft(network) as toggle:
        for step in range(steps):
            texts, noise = batch(batch_size, generator, step)
            forget(reward)
            condition = generator.encode(texts)
            toggle(True)
            residual = generator.denoise_first(noise, condition)
            toggle(False)
            rewards = reward(generator.sample(noise + residual, condition), texts)
            loss = noise_objective(l2_kl(residual), rewards, 1.0).mean()
            toggle(True)
            loss.backward()
            toggle(False)
            scan(parameters)
            _ = norms(parameters), loss.item(), rewards.mean().item(), residual.square().mean().item()
            optimizer.step()
            optimizer.zero_grad()


@contextmanager
def in_peft(network: LoRANoise) -> Iterator[Callable[[bool], None]]:
    """The same weights in PEFT's layers, and the function that toggles them: PEFT's call on each, which also sets
    requires_grad."""
    denoiser: Any = network.generator.denoiser
    bare: dict[str, Any] = {name: denoiser.get_submodule(name) for name in network.layers}
    grouped = [(layer, layer.groups) for layer in bare.values() if getattr(layer, "groups", 1) > 1]
    for layer, _ in grouped:
        layer.groups = 1  # PEFT refuses a rank not divisible by the groups
    rank, alpha = network.settings["rank"], network.settings["alpha"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(bare)), denoiser, "f")
    for layer, groups in grouped:
        layer.groups = groups
    layers: list[Any] = [denoiser.get_submodule(name) for name in bare]
    for layer, update in zip(layers, network.layers.values(), strict=True):
        layer.lora_A["f"].weight, layer.lora_B["f"].weight = update.lora_A.weight, update.lora_B.weight
    on = [True]
    hook = bare[network.output_layer].register_forward_hook(
        lambda module, inputs, output: torch.zeros_like(output) if on[0] else output
    )

    def toggle(active: bool) -> None:
        on[0] = active
        for layer in layers:
            layer.enable_adapters(active)
        for parameter in network.trainable_parameters():
            parameter.requires_grad_(True)

    yield toggle
    hook.remove()
    for name, layer in bare.items():
        parent, _, attribute = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), attribute, layer)
    del denoiser.peft_config


def scan(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        if not torch.isfinite(parameter.grad).all():
            raise RuntimeError("not finite")


def norms(parameters: list[torch.nn.Parameter]) -> float:
    """The norm of all gradients, once to report and once to clip."""
    norm = sum(p.grad.norm().item() ** 2 for p in parameters if p.grad is not None) ** 0.5
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    return norm


def forget(reward: WeightedSum) -> None:
    """Empties the reward's cache of prompts."""
    for member in reward.members.values():
        if isinstance(member, ClipReward):
            member.texts.clear()


def batch(batch_size: int, generator: DiffusionGenerator, step: int) -> tuple[list[str], torch.Tensor]:
    texts = prompts_of_step(PROMPTS, step, batch_size, 0)
    return texts, keyed_noise(generator.noise_shape, seed=0, step=step, samples=range(batch_size))


def joined(rows: list[Any]) -> Any:
    return type(rows[0])({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})
