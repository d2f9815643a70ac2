"""Stage 3: a flow model of the latents, noise and picture paired at random (rectified flow, arXiv 2209.03003).

    python -m dev.scenes.flow --output runs/scenes

It draws in 16 or more steps, and is what the few-step generator starts from and learns from.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from dev.scenes import networks
from dev.scenes.latents import read_latents
from dev.scenes.path import LAST, EulerPath
from dev.scenes.training import StageConfig, TrainState, load_stage
from hypernoise.commands.flags import parse

TEXT_ENCODER = Path(str(files("hypernoise"))) / "scenes/weights/generator/text_encoder"  # the predecessor's, kept


@dataclass(frozen=True)
class FlowConfig(StageConfig):
    text_encoder: Path = TEXT_ENCODER
    start_from: Path | None = None
    """A finished flow to go on from."""
    steps: int = 7000
    lr: float = 1.5e-3
    batch_size: int = 128
    early_share: float = 0.3
    """Share of the batch in the noisiest fifth of the times, where the scene is laid out."""


class Captions:
    """Text states of captions, encoded once, in an order of their own: a resumed run has the same numbers."""

    def __init__(self, tokenizer: Any, text_encoder: Any):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def learn(self, captions: list[str]) -> None:
        new = sorted(set(captions) - self.kept.keys())
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            tokens = self.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt")
            self.kept.update(zip(part, self.text_encoder(tokens.input_ids)[0].float(), strict=True))

    def __call__(self, captions: list[str]) -> Tensor:
        return torch.stack([self.kept[caption] for caption in captions])


def build(config: FlowConfig) -> tuple[Any, Captions]:
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(config.text_encoder).float().eval().requires_grad_(False)
    unet: Any = networks.build_unet().to(config.device)
    unet.set_attn_processor(AttnProcessor())  # on CPUs a fifth faster a step than the fused one
    return unet, Captions(tokenizer, text_encoder)


def finished_flow(output: Path, text_encoder: Path) -> tuple[Any, Captions]:
    """The trained flow of `output`, and what encodes its captions; raises InputError if it is missing."""
    unet, encode = build(FlowConfig(output=output, text_encoder=text_encoder))
    unet.load_state_dict(load_stage(output / "flow.safetensors"))
    return unet, encode


def train_flow(config: FlowConfig) -> None:
    torch.manual_seed(config.seed)
    unet, encode = build(config)
    if config.start_from:
        unet.load_state_dict(load_stage(config.start_from))
    path = EulerPath(networks.build_scheduler(), config.device)
    state = TrainState(config, "flow", [unet], config.lr, config.steps)
    latents, captions = read_latents(config.output)
    encode.learn(captions)
    early = round(config.early_share * config.batch_size)
    while state.step < config.steps:
        rng = torch.Generator().manual_seed(config.seed * 10**6 + state.step)
        rows = torch.randint(len(captions), (config.batch_size,), generator=rng)
        t = torch.randint(LAST + 1, (config.batch_size,), generator=rng)
        t[:early] = torch.randint(4 * LAST // 5, LAST + 1, (early,), generator=rng)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=rng)
        embeds = encode([captions[i] for i in rows])
        noised = path.noised(x0, noise, t)
        with state.autocast():
            answer = path.answer(unet, noised, t, embeds)
        error = (answer - x0).square().mean((1, 2, 3))
        sigma = path.sigma[t]
        loss = (error * (sigma.square() + 1) / sigma.square()).clamp(max=100)  # the squared error of v
        x0_early = error[:early].mean()
        state.update(loss.mean(), {"loss": loss.mean(), "early": x0_early, "error": error[early:].mean()})
    state.load_average()
    save_file(unet.state_dict(), config.output / "flow.safetensors")


@torch.no_grad()
def integrate(path: EulerPath, unet: Any, noise: Tensor, embeds: Tensor, steps: int) -> Tensor:
    """Latents that the flow carries `noise` to, in Euler steps."""
    times = torch.linspace(LAST, 0, steps + 1).round().long()[:-1].tolist()
    state, t = path.sigma[LAST] * noise, torch.full((len(noise),), LAST)
    for index, _ in enumerate(times):
        x0 = path.answer(unet, path.scaled(state, t), t, embeds)
        if index + 1 == steps:
            return x0
        then = torch.full_like(t, times[index + 1])
        state, t = path.onward(state, x0, t, then), then
    raise ValueError("steps must be at least 1")


if __name__ == "__main__":
    train_flow(parse(FlowConfig))
