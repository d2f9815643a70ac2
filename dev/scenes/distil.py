"""Stage 4: a generator of one, two and four steps, from the flow.

    python -m dev.scenes.distil --output runs/scenes

Noises are paired with what the flow makes of them in many steps, and the generator learns to answer with that from
every point of the straight line between the two (InstaFlow: Liu et al. 2023, arXiv 2309.06380), and from the
points that its own drawings in two and four steps come by (DMD2: Yin et al. 2024, arXiv 2405.14867). A
critic pulls what is drawn towards true pictures (`critic.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dev.scenes import networks
from dev.scenes.critic import NOISIEST, Critic, critic_loss, critic_pull
from dev.scenes.flow import TEXT_ENCODER, finished_flow, integrate
from dev.scenes.latents import read_latents
from dev.scenes.path import LAST, EulerPath
from dev.scenes.training import StageConfig, TrainState, load_stage
from hypernoise.commands.flags import parse


@dataclass(frozen=True)
class DistilConfig(StageConfig):
    text_encoder: Path = TEXT_ENCODER
    start_from: Path | None = None
    """A pipeline directory whose UNet is gone on from, in the place of the flow."""
    chunks: int = 12
    pairs: int = 2048
    """In each chunk: noises, and what the flow makes of them."""
    flow_steps: int = 16
    steps: int = 2600
    lr: float = 7e-4
    batch_size: int = 96
    one_step_share: float = 0.5
    """Share of the batch at pure noise, where one-step drawing happens."""
    own_share: float = 0.25
    """Share on the way of the generator's own drawings; the rest is on straight lines to the flow's."""
    adversary: float = 1.5
    """Pull of the critic on the one-step answers, in units of the distance's own; grows from 0 over the first fifth."""
    checkpoint_every: int = 200


@torch.no_grad()
def make_pairs(config: DistilConfig, unet: Any, encode: Any, path: EulerPath) -> tuple[Tensor, Tensor, list[str]]:
    """Noises, the flow's latents of them, and captions; each chunk is kept in a file."""
    folder = config.output / "pairs"
    folder.mkdir(exist_ok=True)
    captions = read_latents(config.output)[1]
    encode.learn(captions)
    noises, answers, asked = [], [], []
    for chunk in range(config.chunks):
        rng = torch.Generator().manual_seed(config.seed * 10**6 + 500_000 + chunk)
        noise = torch.randn(config.pairs, networks.CHANNELS, networks.CELLS, networks.CELLS, generator=rng)
        named = [captions[i] for i in torch.randint(len(captions), (config.pairs,), generator=rng)]
        file = folder / f"{chunk:03}.safetensors"
        if not file.exists():
            parts = []
            for rows in range(0, config.pairs, 128):
                with torch.autocast("cpu", torch.bfloat16):
                    embeds = encode(named[rows : rows + 128])
                    parts.append(integrate(path, unet, noise[rows : rows + 128], embeds, config.flow_steps).half())
            save_file({"answer": torch.cat(parts).contiguous()}, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
            print("pairs", chunk, flush=True)
        noises.append(noise.half())
        answers.append(load_file(file)["answer"])
        asked += named
    return torch.cat(noises), torch.cat(answers), asked


def distance(answer: Tensor, target: Tensor) -> Tensor:
    """Mean Euclidean distance [B] of 3 x 3 windows of latents [B, C, H, W]: where two answers are likely, it is least
    at one of them, while the least squared error is their blend."""
    squared = (answer - target).square().mean(1, keepdim=True)
    return (avg_pool2d(squared, 3, 1, 1, count_include_pad=False) + 1e-3).sqrt().mean((1, 2, 3))


def train_generator(config: DistilConfig) -> None:
    torch.manual_seed(config.seed)
    unet, encode = finished_flow(config.output, config.text_encoder)
    path = EulerPath(networks.build_scheduler(), config.device)
    noises, targets, captions = make_pairs(config, unet.requires_grad_(False), encode, path)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("cond_proj" not in name)
    critic = Critic(unet)
    if config.start_from:
        unet.load_state_dict(load_stage(config.start_from / "unet" / "diffusion_pytorch_model.safetensors"))
    state = TrainState(config, "generator", [unet, critic], config.lr, config.steps)
    latents, true_captions = read_latents(config.output)
    shelf: dict[str, list[int]] = {}  # rows of the true latents of each caption
    for row, caption in enumerate(true_captions):
        shelf.setdefault(caption, []).append(row)
    pure, own = (round(share * config.batch_size) for share in (config.one_step_share, config.own_share))
    last = torch.full((pure,), LAST)
    while state.step < config.steps:
        rng = torch.Generator().manual_seed(config.seed * 10**6 + state.step)
        rows = torch.randint(len(captions), (config.batch_size - own,), generator=rng)
        noise, target = noises[rows].float(), targets[rows].float()
        embeds = encode([captions[i] for i in rows])
        t = torch.randint(LAST + 1, (len(rows) - pure,), generator=rng)
        with state.autocast():
            first = path.answer(unet, path.scaled(path.sigma[LAST] * noise[:pure], last), last, embeds[:pure])
            way, when = path.rollout(unet, noise[:own], first[:own].detach(), embeds[:own], rng)
            noised = torch.cat([way, path.noised(target[pure:], noise[pure:], t)])
            later_embeds = torch.cat([embeds[:own], embeds[pure:]])
            later = path.answer(unet, noised, torch.cat([when, t]), later_embeds)
        later_targets = torch.cat([target[:own], target[pure:]])
        answers = torch.cat([first, later])
        near = distance(answers, torch.cat([target[:pure], later_targets])).mean()

        # the critic looks at what is drawn in one step and in several, beside true latents of the same captions
        seen_rows = torch.cat([rows[:pure], rows[:own]])
        chance = torch.rand(len(seen_rows), generator=rng).tolist()
        shelves = [shelf[captions[i]] for i in seen_rows]
        true = latents[[rows_of[int(x * len(rows_of))] for rows_of, x in zip(shelves, chance, strict=True)]].float()
        drawn, asked = answers[: pure + own], torch.cat([embeds[:pure], embeds[:own]])
        blur = torch.randint(NOISIEST, (len(drawn),), generator=rng)
        veil = torch.randn(true.shape, generator=rng)
        veiled, seen = path.noised(true, veil, blur), path.noised(drawn, veil, blur)
        with state.autocast():
            pull = critic_pull(critic, veiled, seen, blur, asked)
        (own_slope,) = torch.autograd.grad(near, answers, retain_graph=True)
        (pull_slope,) = torch.autograd.grad(pull, answers)
        strength = config.adversary * min(1.0, 5 * state.step / config.steps)
        scaled = pull_slope * (strength * own_slope[: len(drawn)].norm() / pull_slope.norm().clamp(min=1e-12))
        with state.autocast():
            game = critic_loss(critic, veiled, seen.detach(), blur, asked, asked.roll(1, 0))
        one_step = (first.detach() - target[:pure]).square().mean()
        logged = {"near": near, "one_step": one_step, "pull": pull, "critic": game}
        state.update(near + (answers * scaled).sum() + game, logged)
    state.load_average()
    save_file(unet.state_dict(), config.output / "generator.safetensors")


if __name__ == "__main__":
    train_generator(parse(DistilConfig))
