"""A training step against its bare compute, and against the published procedure: images per second and memory.

    python benchmarks/train_step.py --size tiny --rounds 2 --output runs/benchmark-train-step   # seconds
    python benchmarks/train_step.py --size small --rewards redness                              # minutes on a CPU

Random weights, so nothing is downloaded. `ours` is `hypernoise.train` itself. `bare` makes the same network calls in
a minimal loop: noise network forward and backward, generator, decoder, reward, one optimiser step. `published` is the
released procedure written plainly: prompts encoded every step, adapters toggled through PEFT's layers, two passes
for the gradient's norm, a scan of every gradient for what is not finite, metrics read back one by one.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hypernoise.files import write_json
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import noise_objective
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.scenes.networks import build_tokenizer
from hypernoise.training.config import TrainConfig
from hypernoise.training.noise import keyed_noise
from hypernoise.training.prompts import prompts_of_step
from hypernoise.training.trainer import train

PROMPTS = [
    f"{count} {color} {shape}" for count in ("a", "two") for color in ("red", "blue") for shape in ("ring", "cross")
]
WIDTHS = {"tiny": 8, "small": 64}  # of the U-Net's first stage; small has about 7 M parameters


@dataclass(frozen=True)
class Benchmark:
    size: Literal["tiny", "small", "scenes"] = "tiny"
    """tiny and small: Stable Diffusion's classes with random weights; scenes: the embedded generator."""
    rewards: str = "redness"
    batch_size: int = 4
    rank: int = 16
    steps: int = 3
    """Training steps of one timed turn."""
    rounds: int = 5
    """Turns of each way, in turn."""
    output: Path | None = None
    """Where summary.json goes."""


def main(config: Benchmark) -> None:
    ways = {"ours": ours, "bare": bare, "published": published}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ends: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        generator = build(config.size, Path(folder))
        for turn in range(config.rounds + 1):  # the first warms up
            for name, way in ways.items():
                network = LoRANoise(generator, rank=config.rank)
                began = time.process_time()  # the processor's own, so that others on the machine count less
                way(config, generator, network, WeightedSum({config.rewards: 20.0}))
                spent = time.process_time() - began
                if turn:
                    seconds[name].append(spent / config.steps)
                ends[name] = torch.cat([p.detach().flatten() for p in network.trainable_parameters()])
    for name, end in ends.items():
        assert torch.allclose(end, ends["ours"], rtol=1e-3, atol=1e-5), f"{name} trains to other weights"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    parameters = sum(p.numel() for n, p in generator.denoiser.named_parameters() if ".lora_" not in n)
    print(
        f"{config.size}, {parameters / 1e6:.2f} M parameters, {generator.size[0]} px, batch {config.batch_size}, "
        f"rank {config.rank}, {config.rewards}, fp32, {torch.get_num_threads()} thread(s)"
    )
    print(f"{'way':<12}{'s per step':>12}{'images/s':>11}{'ours / it':>11}")
    rows = []
    for name, median in medians.items():
        ratio = medians["ours"] / median
        rows.append({"way": name, "seconds_per_step": median, "images_per_second": config.batch_size / median})
        rows[-1] |= {"ours_over_it": ratio, "all_seconds": seconds[name]}
        print(f"{name:<12}{median:>12.4f}{config.batch_size / median:>11.2f}{ratio:>11.3f}")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in dataclasses.asdict(config).items()}
        write_json(config.output / "summary.json", {**settings, "parameters": parameters, "results": rows})


def settings_of(config: Benchmark) -> TrainConfig:
    return TrainConfig(steps=config.steps, batch_size=config.batch_size, warmup=0, kl_limit=0, saturation_limit=0)


def ours(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    train(generator, network, reward, PROMPTS, settings_of(config), progress=False)


def bare(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    known = {prompt: generator.encode([prompt]) for prompt in PROMPTS}
    for step in range(config.steps):
        texts, noise = batch(config, generator, step)
        condition = joined([known[text] for text in texts])
        residual = network(noise, condition)
        rewards = reward(generator.sample(noise + residual, condition), texts)
        noise_objective(residual, rewards, 1.0).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def published(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for step in range(config.steps):
        texts, noise = batch(config, generator, step)
        condition = generator.encode(texts)
        toggled(network, True)
        network._active = True
        residual = generator.denoise_first(noise, condition)
        network._active = False
        toggled(network, False)
        rewards = reward(generator.sample(noise + residual, condition), texts)
        loss = noise_objective(residual, rewards, 1.0).mean()
        toggled(network, True)
        loss.backward()
        toggled(network, False)
        for parameter in parameters:
            assert parameter.grad is not None
            if not torch.isfinite(parameter.grad).all():
                raise RuntimeError("not finite")
        norms = [p.grad.norm().item() for p in parameters if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        _ = sum(norm**2 for norm in norms) ** 0.5, loss.item(), rewards.mean().item(), residual.square().mean().item()
        optimizer.step()
        optimizer.zero_grad()


def toggled(network: LoRANoise, on: bool) -> None:
    """Adapters through PEFT's own call on every layer, which also sets requires_grad."""
    for layer in network.layers.values():
        layer.enable_adapters(on)
    for parameter in network.trainable_parameters():
        parameter.requires_grad_(True)


def batch(config: Benchmark, generator: DiffusionGenerator, step: int) -> tuple[list[str], torch.Tensor]:
    texts = prompts_of_step(PROMPTS, step, config.batch_size, 0)
    return texts, keyed_noise(generator.noise_shape, seed=0, step=step, samples=range(config.batch_size))


def joined(rows: list[Any]) -> Any:
    return type(rows[0])({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})


def build(size: str, folder: Path) -> DiffusionGenerator:
    """A frozen generator in the layout of SD-Turbo."""
    if size == "scenes":
        return load_generator("scenes", device="cpu")
    width, tokenizer = WIDTHS[size], build_tokenizer(folder)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=2 * width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8 if size == "tiny" else 32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(width, 2 * width),
        layers_per_block=1 if size == "tiny" else 2,
        cross_attention_dim=2 * width,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    stages = 2 if size == "tiny" else 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8,) * stages if size == "tiny" else (32, 32, 64, 64),
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return DiffusionGenerator(pipeline, name=size)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
