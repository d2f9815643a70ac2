"""Make the embedded generator from nothing: autoencoder, one-step generator, the generator's decoder.

    python -m hypernoise.scenes.make --output runs/scenes            # two cores: about two and a half hours
    python -m hypernoise.scenes.make --output runs/tiny --judged 1 --autoencoder-steps 9 --generator-steps 9

Each stage saves itself under --output and resumes from there: interrupt it and start it again with the
same arguments, and it goes on from the last checkpoint to the same weights. `metrics.jsonl` has the
curves. The finished pipeline is `--output`/pipeline, a directory that
`DiffusionPipeline.from_pretrained` loads; it is judged at 1, 2, 4 and 8 steps (evaluation.json).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from transformers import CLIPTextModel

from hypernoise.files import atomic_file, write_json
from hypernoise.generators.registry import load_generator, pick_device
from hypernoise.rewards.pixel import redness
from hypernoise.scenes import networks
from hypernoise.scenes.benchmark import evaluate
from hypernoise.scenes.coupling import CELLS, CHANNELS, couple, extremes
from hypernoise.scenes.critic import Critic, adversarial
from hypernoise.scenes.path import LAST, EulerPath
from hypernoise.scenes.prompts import evaluation_requests, split
from hypernoise.scenes.settling import Settling
from hypernoise.scenes.training import TrainState
from hypernoise.scenes.world import CATEGORIES, COLORS, Request, Scene, draw, sample_scene

DECODED = 10**7  # the first step, in keys of random numbers, of the decoder's training
SHARES = [1 / 8, 1 / 8, 3 / 8, 1 / 8, 1 / 8, 1 / 8]  # of the categories: three and four objects are hard to place


@dataclass(frozen=True)
class MakeConfig:
    """How the embedded generator is trained."""

    output: Path = Path("runs/scenes")
    """Where checkpoints, curves and the finished pipeline go."""
    seed: int = 0
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""
    start_from: Path | None = None
    """A finished pipeline to go on from: its autoencoder is kept, its generator trained further."""
    autoencoder_steps: int = 1100
    autoencoder_lr: float = 2e-3
    generator_steps: int = 6300
    generator_lr: float = 1e-3
    batch_size: int = 64
    one_step_share: float = 0.4
    """Share of the generator's batch at t = 999, where one-step drawing happens."""
    own_answer_share: float = 0.35
    """Share that goes on from the generator's own drawings in 2, 4 or 8 steps, wherever they are on their way; the
    rest goes on from true pictures, at all t."""
    reading_weight: float = 0.2
    """Of naming the free colours that a noise stands for, beside drawing them."""
    settle_from: int = 4500
    """The step from which an answer to noise is held to the scene in the free colours that it all but draws."""
    hold: float = 0.25
    """How fast the coupling's own free colours are, then (`settling.Settling`)."""
    adversary: float = 0.2
    """Pull of the critic on the generator's answers, in units of the distance's own; 0: none."""
    decoder_steps: int = 400
    decoder_lr: float = 5e-4
    checkpoint_every: int = 250
    judged: int = 50
    """Evaluation prompts per category that the finished generator is judged on, four noises each."""


def main(config: MakeConfig) -> None:
    config = replace(config, device=str(pick_device(config.device)))
    config.output.mkdir(parents=True, exist_ok=True)
    _check_same_run(config)
    torch.manual_seed(config.seed)
    autoencoder = train_autoencoder(config)
    unet, text_encoder = train_generator(config, autoencoder)
    train_decoder(config, autoencoder, unet, text_encoder)
    save_pipeline(config, autoencoder, unet, text_encoder)
    report(config)


def _check_same_run(config: MakeConfig) -> None:
    """A folder begun with one seed, or from one pipeline, is not gone on with from another."""
    file, here = config.output / "begun.json", {"seed": config.seed, "start_from": str(config.start_from)}
    if not file.exists():
        write_json(file, here)
    elif json.loads(file.read_text()) != here:
        raise SystemExit(f"{config.output} was begun with {file.read_text().strip()}; give another --output")


# --- stage 1: the autoencoder -------------------------------------------------------------------------------


def random_pictures(seed: int, step: int, count: int) -> Tensor:
    """Pictures [count, 3, H, W] in [-1, 1] of random requests, a function of (seed, step) alone."""
    rng = np.random.default_rng([seed, 1, step])
    requests = [_random_request(rng) for _ in range(count)]
    return _pictures([sample_scene(request, rng) for request in requests])


def _random_request(rng: np.random.Generator) -> Request:
    options = _REQUESTS[rng.choice(CATEGORIES, p=SHARES)]
    return options[rng.integers(len(options))]


_REQUESTS = {category: split(category)[0] for category in CATEGORIES}  # an evaluation caption trains nothing


def train_autoencoder(config: MakeConfig) -> Any:
    done = config.output / "autoencoder.safetensors"
    autoencoder: Any = networks.build_autoencoder()
    autoencoder.to(config.device)
    if config.start_from and not done.exists():
        _save(done, _floats(config.start_from / "vae" / "diffusion_pytorch_model.safetensors"))
    if done.exists():
        autoencoder.load_state_dict(load_file(done))
        return autoencoder.requires_grad_(False)
    state = TrainState(config, "autoencoder", [autoencoder], config.autoencoder_lr, config.autoencoder_steps)
    while state.step < config.autoencoder_steps:
        pictures = random_pictures(config.seed, state.step, config.batch_size).to(config.device)
        with state.autocast():
            posterior = autoencoder.encode(pictures).latent_dist
            decoded = autoencoder.decode(posterior.sample()).sample
        error = decoded.float() - pictures
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        reconstruction = error.square().mean() + 0.2 * error.abs().mean()
        state.update(reconstruction + 1e-4 * kl, {"mse": error.square().mean(), "kl": kl})
    state.load_average()
    _normalise_latents(autoencoder, config)
    _save(done, autoencoder.state_dict())
    return autoencoder.requires_grad_(False)


@torch.no_grad()
def _normalise_latents(autoencoder: Any, config: MakeConfig) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latent.

    The pipeline knows one scaling factor only; so the latents come out of `encode` at mean 0, deviation 1.
    """
    pictures = random_pictures(config.seed, 10**6, 512).to(config.device)
    mean = autoencoder.encode(pictures).latent_dist.mean
    center, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    post.bias += post.weight[..., 0, 0] @ center
    post.weight *= scale[None, :, None, None]
    quant.weight[:CHANNELS] /= scale[:, None, None, None]
    quant.bias[:CHANNELS] = (quant.bias[:CHANNELS] - center) / scale
    quant.bias[CHANNELS:] -= 2 * scale.log()


# --- stage 2: the generator ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Captions, noises [B, 16, 8, 8], and the scene of its caption that each noise stands for."""

    requests: list[Request]
    captions: list[str]
    noises: Tensor
    scenes: list[Scene]


def draw_pairs(seed: int, step: int, count: int) -> Pairs:
    """Random pairs, a function of (seed, step) alone."""
    rng = np.random.default_rng([seed, 2, step])
    noises = rng.standard_normal((count, CHANNELS, CELLS, CELLS), np.float32)
    requests = [_random_request(rng) for _ in range(count)]
    scenes = [couple(request, noise) for request, noise in zip(requests, noises, strict=True)]
    captions = [("a picture of " if rng.random() < 0.1 else "") + request.caption for request in requests]
    return Pairs(requests, captions, torch.from_numpy(noises), scenes)


def train_generator(config: MakeConfig, autoencoder: Any) -> tuple[Any, Any]:
    """The UNet and the text encoder."""
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    text_encoder: Any = networks.build_text_encoder(tokenizer)
    unet: Any = networks.build_unet()
    if config.start_from:
        text_encoder = CLIPTextModel.from_pretrained(config.start_from / "text_encoder").float()
        unet.load_state_dict(_floats(config.start_from / "unet" / "diffusion_pytorch_model.safetensors"))
    text_encoder.to(config.device)
    unet.to(config.device)
    reader = Reader(unet).to(config.device)
    critic = Critic(networks.WIDTH).to(config.device)
    settling = Settling(config.hold).to(config.device)
    modules = [unet, text_encoder, reader, critic, settling]
    state = TrainState(config, "generator", modules, config.generator_lr, config.generator_steps)
    path = EulerPath(networks.build_scheduler(), config.device)
    pure, own = (round(share * config.batch_size) for share in (config.one_step_share, config.own_answer_share))
    owned = torch.arange(own) % pure  # a drawing may be gone on with at several times
    again = torch.cat([owned, torch.arange(pure, config.batch_size - own)])
    last = torch.full((pure,), LAST, device=config.device)
    while state.step < config.generator_steps:
        # `pure` rows are answered from noise alone; `own` of these drawings are gone on with, somewhere down their
        # way in 2, 4 or 8 steps, beside rows on the way to the true picture
        pairs = draw_pairs(config.seed, state.step, config.batch_size - own)
        draw_from = torch.Generator().manual_seed(config.seed * 10**6 + state.step)
        anywhere = torch.randint(LAST + 1, (len(again) - own,), generator=draw_from).to(config.device)
        tokens = tokenizer(pairs.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = pairs.noises.to(config.device)
        scenes = pairs.scenes
        with state.autocast():
            embeds = text_encoder(tokens.to(config.device))[0]
            first = path.answer(unet, path.scaled(path.sigma[LAST] * noise[:pure], last), last, embeds[:pure])
            reading = reader.error(noise[:pure])
            if state.step >= config.settle_from:
                with torch.no_grad():
                    shown = autoencoder.decode(first.detach()).sample
                scenes = _chosen(settling, pairs, shown)
            target = _latents(autoencoder, scenes, config)
            way, t = path.rollout(unet, noise[owned], first[owned].detach(), embeds[owned], draw_from)
            noised = torch.cat([way, path.noised(target[pure:], noise[pure:], anywhere)])
            later = path.answer(unet, noised, torch.cat([t, anywhere]), embeds[again])
        answers, truths = torch.cat([first, later]), torch.cat([target[:pure], target[again]])
        loss = distance(answers, truths).mean()
        with torch.no_grad():
            one_step = (first - target[:pure]).square().mean()
            other = (later - target[again]).square().mean((1, 2, 3))
        logged = {
            "loss": loss,
            "reading": reading,
            "one_step": one_step,
            "own_answer": other[:own].mean(),
            "other": other[own:].mean(),
        }
        if config.adversary:
            looked = slice(pure + own)  # what is drawn, not what true pictures are noised to
            (pull,) = torch.autograd.grad(loss, answers, retain_graph=True)
            states = torch.cat([embeds[:pure], embeds[again]])
            with state.autocast():
                adversary, logged["critic"] = adversarial(
                    critic, answers[looked], truths[looked], states[looked], pull[looked], config.adversary
                )
            loss = loss + adversary
        state.update(loss + config.reading_weight * reading, logged)
    state.load_average()
    return unet.requires_grad_(False), text_encoder.requires_grad_(False)


def _chosen(settling: Settling, pairs: Pairs, shown: Tensor) -> list[Scene]:
    """The pairs' scenes, the first of them in the free colours that pictures [n, 3, H, W] in [-1, 1] all but show."""
    pictures = (shown.detach().float() / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
    seen = zip(pairs.requests, pairs.noises.numpy(), pairs.scenes, pictures, strict=False)
    chosen = [settling.choose(*each) for each in seen]
    return chosen + pairs.scenes[len(chosen) :]


def _pictures(scenes: list[Scene]) -> Tensor:
    """Drawn scenes [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def _latents(autoencoder: Any, scenes: list[Scene], config: MakeConfig) -> Tensor:
    """Latents [B, 16, 8, 8] of the drawn scenes."""
    return autoencoder.encode(_pictures(scenes).to(config.device)).latent_dist.mean.float()


class Reader(nn.Module):
    """Reads off the UNet's middle which free colours the noise stands for, which teaches it to tell them apart.

    A squared error says so too, but through the average of two colours, which pays at once and holds the training
    there. It is thrown away afterwards.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.colors = nn.Linear(networks.WIDTH, 2 * len(COLORS))
        unet.mid_block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.seen = output

    def error(self, noise: Tensor) -> Tensor:
        """Cross-entropy of the two free colours of noise [B, 16, 8, 8], read off the UNet's last call, on it."""
        read = self.colors(self.seen.mean((2, 3))).float()
        first, second = extremes(noise.mean((2, 3)))
        return cross_entropy(read[:, : len(COLORS)], first) + cross_entropy(read[:, len(COLORS) :], second)


def distance(answer: Tensor, target: Tensor) -> Tensor:
    """Mean Euclidean distance [B] of 3 x 3 windows of latents [B, C, H, W], about an object each.

    Where a noise says one colour or another, the least squared error is their blend; the least distance is
    the likelier of the two.
    """
    squared = (answer - target).square().mean(1, keepdim=True)
    return (avg_pool2d(squared, 3, 1, 1, count_include_pad=False) + 1e-3).sqrt().mean((1, 2, 3))


# --- stage 3: its decoder -----------------------------------------------------------------------------------


def train_decoder(config: MakeConfig, autoencoder: Any, unet: Any, text_encoder: Any) -> None:
    """Trains the autoencoder's decoder, in place, to draw the generator's answers as the scenes they all but are.

    Half of a batch are answers to noise, a quarter answers further down drawings in several steps, and a quarter true
    latents, which it draws as before.
    """
    decoder = nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder]).requires_grad_(True)
    state = TrainState(config, "decoder", [decoder], config.decoder_lr, config.decoder_steps)
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    path, settling = EulerPath(networks.build_scheduler(), config.device), Settling(0, step=0)
    drawn, further = 3 * config.batch_size // 4, config.batch_size // 4
    last = torch.full((drawn,), LAST, device=config.device)
    while state.step < config.decoder_steps:
        pairs = draw_pairs(config.seed, DECODED + state.step, config.batch_size)
        draw_from = torch.Generator().manual_seed(config.seed * 10**6 + DECODED + state.step)
        tokens = tokenizer(pairs.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = pairs.noises.to(config.device)
        with state.autocast():
            with torch.no_grad():
                embeds = text_encoder(tokens.to(config.device))[0]
                first = path.answer(unet, path.scaled(path.sigma[LAST] * noise[:drawn], last), last, embeds[:drawn])
                way, t = path.rollout(unet, noise[:further], first[:further], embeds[:further], draw_from)
                first[:further] = path.answer(unet, way, t, embeds[:further])
                latents = torch.cat([first, _latents(autoencoder, pairs.scenes[drawn:], config)])
            decoded = autoencoder.decode(latents).sample.float()
        scenes = _chosen(settling, pairs, decoded[:drawn])
        error = decoded - _pictures(scenes).to(config.device)
        rows = {"answers": error[:drawn].abs().mean(), "true": error[drawn:].abs().mean()}
        state.update(error.abs().mean() + error.square().mean(), rows)
    state.load_average()
    decoder.requires_grad_(False)


def save_pipeline(config: MakeConfig, autoencoder: Any, unet: Any, text_encoder: Any) -> None:
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    for module in (autoencoder, unet, text_encoder):
        module.cpu().half()
    pipeline = networks.build_pipeline(autoencoder, text_encoder, tokenizer, unet)
    pipeline.save_pretrained(config.output / "pipeline", safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # what transformers before 5 reads a CLIP tokenizer from
        shutil.copy(config.output / "tokenizer" / name, config.output / "pipeline" / "tokenizer")
    _name_as_published(config.output / "pipeline" / "text_encoder" / "model.safetensors")
    settings = config.output / "pipeline" / "text_encoder" / "config.json"
    # transformers loads at the dtype named here, diffusers its own models in fp32: without this they would not match
    write_json(settings, {**json.loads(settings.read_text()), "dtype": "float32"})
    print(f"done: {config.output / 'pipeline'}", flush=True)


# --- what came of it ---------------------------------------------------------------------------------------


def report(config: MakeConfig) -> None:
    """Judges the finished pipeline on the evaluation requests and writes evaluation.json."""
    generator = load_generator(config.output / "pipeline", device=config.device)
    requests = evaluation_requests(config.judged)
    rows = [evaluate(generator, None, requests, redness, steps=steps).row for steps in (1, 2, 4, 8)]
    write_json(config.output / "evaluation.json", rows)
    for row in rows:
        categories = "  ".join(f"{name} {value:.2f}" for name, value in row["categories"].items())
        low, high = row["score_ci95"]
        print(
            f"{row['steps']} steps: score {row['score']:.3f} [{low:.3f}, {high:.3f}]  "
            f"artefacts {row['artefacts']:.3f}  diversity {row['diversity']:.3f}  {categories}",
            flush=True,
        )


def _floats(file: Path) -> dict[str, Tensor]:
    """Shipped fp16 weights as the fp32 ones that training goes on with."""
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def _name_as_published(file: Path) -> None:
    """Gives a CLIP text encoder's weights the prefix of every published checkpoint.

    transformers 5 saves without it and reads both; transformers 4 reads only this one, and would silently
    start from random weights.
    """
    _save(file, {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()})


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_file(file) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"format": "pt"})


if __name__ == "__main__":
    main(tyro.cli(MakeConfig, description=__doc__))
