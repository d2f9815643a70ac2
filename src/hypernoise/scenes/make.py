"""Make the embedded generator from nothing: autoencoder, coupled pairs, one-step generator.

    python -m hypernoise.scenes.make --output runs/scenes            # two cores: about two and a half hours
    python -m hypernoise.scenes.make --output runs/tiny --pairs 512 --judged 1 \
        --autoencoder-steps 9 --generator-steps 9

Each stage saves itself under --output and resumes from there: interrupt it and start it again with the
same arguments, and it goes on from the last checkpoint to the same weights. `metrics.jsonl` has the
curves. The finished pipeline is `--output`/pipeline, a directory that
`DiffusionPipeline.from_pretrained` loads; it is judged at 1, 2, 4 and 8 steps (evaluation.json).
"""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ProcessPoolExecutor
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
from hypernoise.scenes.path import FEW_STEP_TIMES, LAST, EulerPath
from hypernoise.scenes.prompts import evaluation_requests, split
from hypernoise.scenes.training import TrainState
from hypernoise.scenes.world import CATEGORIES, COLORS, Request, draw, sample_scene

CHUNK = 2048  # pairs per file
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
    pairs: int = 98304
    """Noise-picture pairs to draw and encode."""
    generator_steps: int = 6300
    generator_lr: float = 1e-3
    batch_size: int = 64
    one_step_share: float = 0.4
    """Share of the generator's batch at t = 999, where one-step drawing happens."""
    own_answer_share: float = 0.35
    """Share that goes on from the generator's own one-step answers, as drawing in several steps does; the rest
    goes on from true pictures, at all t."""
    reading_weight: float = 0.2
    """Of naming the free colours that a noise stands for, beside drawing them."""
    adversary: float = 0.2
    """Pull of the critic on the generator's answers, in units of the distance's own; 0: none."""
    checkpoint_every: int = 250
    judged: int = 50
    """Evaluation prompts per category that the finished generator is judged on, four noises each."""


def main(config: MakeConfig) -> None:
    config = replace(config, device=str(pick_device(config.device)))
    config.output.mkdir(parents=True, exist_ok=True)
    _check_same_run(config)
    torch.manual_seed(config.seed)
    autoencoder = train_autoencoder(config)
    pairs = make_pairs(config, autoencoder)
    unet, text_encoder = train_generator(config, pairs)
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
    pictures = np.stack([draw(sample_scene(request, rng)) for request in requests])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1


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


# --- stage 2: noises with their pictures, encoded once ------------------------------------------------------


Pairs = tuple[Tensor, Tensor, Tensor]  # latents and noises [N, 16, 8, 8], tokens [N, T]


def make_pairs(config: MakeConfig, autoencoder: Any) -> Pairs:
    """Latents and noises [N, 16, 8, 8] fp16 and caption tokens [N, T]; written in chunks, resumable."""
    folder = config.output / "pairs"
    folder.mkdir(exist_ok=True)
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    files = [folder / f"{i:04d}.safetensors" for i in range(math.ceil(config.pairs / CHUNK))]
    missing = [(i, file) for i, file in enumerate(files) if not file.exists()]
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(_draw_chunk, [(config.seed, i) for i, _ in missing])
        for (_, file), (captions, noises, pictures) in zip(missing, drawn, strict=True):
            batches = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(256)
            with torch.no_grad(), torch.autocast(torch.device(config.device).type, torch.bfloat16):
                encoded = [autoencoder.encode(b.to(config.device) / 127.5 - 1).latent_dist.mean for b in batches]
            tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            chunk = {"latents": torch.cat(encoded).half().cpu(), "noises": torch.from_numpy(noises), "tokens": tokens}
            _save(file, chunk)
            print(f"pairs: {file.name}", flush=True)
    chunks = [load_file(file) for file in files]
    latents, noises, tokens = (
        torch.cat([c[k] for c in chunks])[: config.pairs] for k in ("latents", "noises", "tokens")
    )
    return latents, noises, tokens


def _draw_chunk(key: tuple[int, int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng([key[0], 2, key[1]])
    noises = rng.standard_normal((CHUNK, CHANNELS, CELLS, CELLS)).astype(np.float16)
    requests = [_random_request(rng) for _ in range(CHUNK)]
    scenes = [couple(r, z.astype(np.float32)) for r, z in zip(requests, noises, strict=True)]
    pictures = np.stack([np.round(draw(scene) * 255).astype(np.uint8) for scene in scenes])
    prefixes = ["a picture of " if rng.random() < 0.1 else "" for _ in requests]
    return [p + r.caption for p, r in zip(prefixes, requests, strict=True)], noises, pictures


# --- stage 3: the generator ---------------------------------------------------------------------------------


def train_generator(config: MakeConfig, pairs: Pairs) -> tuple[Any, Any]:
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
    modules = [unet, text_encoder, reader, critic]
    state = TrainState(config, "generator", modules, config.generator_lr, config.generator_steps)
    path = EulerPath(networks.build_scheduler(), config.device)
    pure, own = (round(share * config.batch_size) for share in (config.one_step_share, config.own_answer_share))
    owned = torch.arange(own) % pure  # an answer may be gone on from at several times
    again = torch.cat([owned, torch.arange(pure, config.batch_size - own)])
    while state.step < config.generator_steps:
        # `pure` rows are answered from noise alone; then `own` of them again, further down the path to their
        # own answers, beside rows on the path to the true picture
        draw_from = torch.Generator().manual_seed(config.seed * 10**6 + state.step)
        rows = torch.randint(len(pairs[0]), (config.batch_size - own,), generator=draw_from)
        target, noise, token = (part[rows].to(config.device) for part in pairs)
        target, noise = target.float(), noise.float()
        anywhere = torch.randint(LAST + 1, (len(rows) - pure,), generator=draw_from)
        few = torch.tensor(FEW_STEP_TIMES)[torch.randint(len(FEW_STEP_TIMES), (own,), generator=draw_from)]
        t = torch.cat([few, anywhere]).to(config.device)
        last = torch.full((pure,), LAST, device=config.device)
        with state.autocast():
            embeds = text_encoder(token)[0]
            first = path.answer(unet, path.noised(target[:pure], noise[:pure], last), last, embeds[:pure])
            reading = reader.error(noise[:pure])
            towards = torch.cat([first[owned].detach(), target[pure:]])
            later = path.answer(unet, path.noised(towards, noise[again], t), t, embeds[again])
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
