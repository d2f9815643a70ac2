"""Make the embedded generator from nothing: an autoencoder, then a generator of its latents.

    python -m hypernoise.scenes.make --output runs/scenes            # two cores: two to three hours
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
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits
from transformers import CLIPTextModel

from hypernoise.files import atomic_file, write_json
from hypernoise.generators.registry import load_generator, pick_device
from hypernoise.rewards.pixel import redness
from hypernoise.scenes import networks
from hypernoise.scenes.benchmark import evaluate
from hypernoise.scenes.coupling import CELLS, CHANNELS, FORGETFUL, couple, forgets
from hypernoise.scenes.critic import Critic, adversarial
from hypernoise.scenes.judge import judge, score
from hypernoise.scenes.lessons import taught_request
from hypernoise.scenes.path import LAST, EulerPath
from hypernoise.scenes.prompts import evaluation_requests
from hypernoise.scenes.training import TrainState
from hypernoise.scenes.world import Request, Scene, draw, sample_scene
from hypernoise.training.noise import EVALUATION_STEP, keyed_noise

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
    """A finished pipeline to go on from: its latents are kept, its decoder and its generator trained further."""
    autoencoder_steps: int = 1100
    """With --start-from, of its decoder alone."""
    autoencoder_lr: float = 2e-3
    generator_steps: int = 6300
    generator_lr: float = 1e-3
    batch_size: int = 64
    one_step_share: float = 0.45
    """Share of the generator's batch at t = 999, where one-step drawing happens."""
    own_answer_share: float = 0.4
    """Share that goes on from the generator's own drawings in 2, 4 or 8 steps, wherever they are on their way; the
    rest goes on from true pictures, at all t."""
    reading_weight: float = 0.4
    """Of telling the noises that forget an object from the others, beside drawing them."""
    adversary: float = 0.2
    """Pull of the critic on the generator's answers, in units of the distance's own; 0: none."""
    checkpoint_every: int = 250
    judged: int = 50
    """Evaluation prompts per category that the finished generator is judged on, four noises each."""


def main(config: MakeConfig) -> None:
    config = replace(config, device=str(pick_device(config.device)))
    _begin(config)
    torch.manual_seed(config.seed)
    autoencoder = train_autoencoder(config)
    unet, text_encoder = train_generator(config, autoencoder)
    save_pipeline(config, autoencoder, unet, text_encoder)
    report(config)


def _begin(config: MakeConfig) -> None:
    """Makes the output folder; one begun with another seed, or from another pipeline, is not gone on with."""
    if config.start_from and not (config.start_from / "model_index.json").is_file():
        raise SystemExit(f"--start-from {config.start_from}: no finished pipeline is there (no model_index.json)")
    config.output.mkdir(parents=True, exist_ok=True)
    file, here = config.output / "begun.json", {"seed": config.seed, "start_from": str(config.start_from)}
    if not file.exists():
        write_json(file, here)
    elif (begun := json.loads(file.read_text())) != here:
        raise SystemExit(f"{config.output} was begun with {begun}; give another --output")


# --- stage 1: the autoencoder -------------------------------------------------------------------------------


def random_pictures(seed: int, step: int, count: int) -> Tensor:
    """Pictures [count, 3, H, W] in [-1, 1] of random requests, a function of (seed, step) alone.

    A part leaves out an object, as the generator's pictures do: some are empty.
    """
    rng = np.random.default_rng([seed, 1, step])
    scenes = [sample_scene(taught_request(rng, SHARES), rng) for _ in range(count)]
    return _pictures([replace(s, objects=s.objects[int(rng.random() < FORGETFUL) :]) for s in scenes])


def train_autoencoder(config: MakeConfig) -> Any:
    done = config.output / "autoencoder.safetensors"
    autoencoder: Any = networks.build_autoencoder()
    autoencoder.to(config.device)
    if done.exists():
        autoencoder.load_state_dict(load_file(done))
        return autoencoder.requires_grad_(False)
    trained = [autoencoder]
    if config.start_from:
        autoencoder.load_state_dict(_floats(config.start_from / "vae" / "diffusion_pytorch_model.safetensors"))
        autoencoder.requires_grad_(False)
        trained = [module.requires_grad_(True) for module in (autoencoder.post_quant_conv, autoencoder.decoder)]
    state = TrainState(config, "autoencoder", trained, config.autoencoder_lr, config.autoencoder_steps)
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
    if not config.start_from:
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
    """Captions, noises [B, 16, 8, 8], the scene that each noise stands for, and whether it forgets an object."""

    captions: list[str]
    noises: Tensor
    scenes: list[Scene]
    forgets: Tensor  # [B], 0 or 1


def draw_pairs(seed: int, step: int, count: int) -> Pairs:
    """Random pairs, a function of (seed, step) alone."""
    rng = np.random.default_rng([seed, 2, step])
    noises = rng.standard_normal((count, CHANNELS, CELLS, CELLS), np.float32)
    requests = [taught_request(rng, SHARES) for _ in range(count)]
    scenes = [couple(request, noise) for request, noise in zip(requests, noises, strict=True)]
    captions = [("a picture of " if rng.random() < 0.1 else "") + request.caption for request in requests]
    forgetful = [float(forgets(request, noise)) for request, noise in zip(requests, noises, strict=True)]
    return Pairs(captions, torch.from_numpy(noises), scenes, torch.tensor(forgetful))


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
    unet.set_attn_processor(AttnProcessor())  # on CPUs a fifth faster a step than the fused one
    reader = Reader(unet).to(config.device)
    critic = Critic(networks.WIDTH).to(config.device)
    modules = [unet, text_encoder, reader, critic]
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
        with state.autocast():
            target = _latents(autoencoder, pairs.scenes, config)
            embeds = text_encoder(tokens.to(config.device))[0]
            first = path.answer(unet, path.scaled(path.sigma[LAST] * noise[:pure], last), last, embeds[:pure])
            reading = reader.error(pairs.forgets[:pure].to(config.device))
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


def _pictures(scenes: list[Scene]) -> Tensor:
    """Drawn scenes [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def _latents(autoencoder: Any, scenes: list[Scene], config: MakeConfig) -> Tensor:
    """Latents [B, 16, 8, 8] of the drawn scenes."""
    return autoencoder.encode(_pictures(scenes).to(config.device)).latent_dist.mean.float()


class Reader(nn.Module):
    """Reads off the UNet's middle whether the noise forgets an object, which teaches it to tell.

    A distance says so too, but through the average of two pictures, which pays at once and holds the training
    there. It is thrown away afterwards.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.forgets = nn.Linear(networks.WIDTH, 1)
        unet.mid_block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.seen = output

    def error(self, forgets: Tensor) -> Tensor:
        """Cross-entropy of `forgets` [B], 0 or 1, read off the UNet's last call."""
        return binary_cross_entropy_with_logits(self.forgets(self.seen.mean((2, 3)))[:, 0].float(), forgets)


def distance(answer: Tensor, target: Tensor) -> Tensor:
    """Mean Euclidean distance [B] of 3 x 3 windows of latents [B, C, H, W], about an object each.

    Where a noise may be one scene or another, the least squared error is their blend; the least distance is
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
    """Judges the coupling and the finished pipeline on the evaluation requests and writes evaluation.json."""
    generator = load_generator(config.output / "pipeline", device=config.device)
    requests = evaluation_requests(config.judged)
    print(f"the coupling's own scenes, on the same noises: score {coupling_score(requests):.3f}", flush=True)
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


def coupling_score(requests: list[Request], seeds: int = 4) -> float:
    """The judge's score of the scenes that the benchmark's noises stand for: 1 but for those that forget an object."""
    asked = [request for request in requests for _ in range(seeds)]
    noises = keyed_noise((CHANNELS, CELLS, CELLS), seed=0, step=EVALUATION_STEP, samples=range(len(asked))).numpy()
    drawn = [draw(couple(request, noise)) for request, noise in zip(asked, noises, strict=True)]
    return score([(request, judge(picture, request)) for request, picture in zip(asked, drawn, strict=True)])["score"]


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
