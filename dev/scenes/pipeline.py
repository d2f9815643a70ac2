"""Stage 6: the finished parts as a StableDiffusionPipeline directory, judged on training captions.

python -m dev.scenes.pipeline --output runs/scenes
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from dev.scenes import lessons, networks
from dev.scenes.autoencoder import build_autoencoder
from dev.scenes.decoder import BLOCKS
from dev.scenes.flow import TEXT_ENCODER
from dev.scenes.training import load_stage
from hypernoise.commands.flags import parse
from hypernoise.evaluation.engine import compare
from hypernoise.files import atomic_file, write_json
from hypernoise.generators.registry import load_generator
from hypernoise.methods.best_of_n import Plain
from hypernoise.rewards.ensemble import load_reward
from hypernoise.scenes.judge import benchmark_of


@dataclass(frozen=True)
class PipelineConfig:
    output: Path = Path("runs/scenes")
    text_encoder: Path = TEXT_ENCODER
    weights: str = "generator"
    """generator, or the checkpoint of it: generator.checkpoint.pt."""
    captions: int = 40
    """Training captions of each category that it is judged on, two noises each."""
    steps: tuple[int, ...] = (1, 2, 4)


def save_pipeline(config: PipelineConfig) -> Path:
    tokenizer = networks.build_tokenizer(config.output / "tokenizer")
    text_encoder: Any = CLIPTextModel.from_pretrained(config.text_encoder)
    unet: Any = networks.build_unet()
    if config.weights.endswith(".pt"):
        saved = torch.load(config.output / config.weights, weights_only=True)
        trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter, average in zip(trained, saved["average"], strict=False):  # the critic comes after
            parameter.data.copy_(average)
    else:
        unet.load_state_dict(load_stage(config.output / f"{config.weights}.safetensors"))
    autoencoder = build_autoencoder(BLOCKS)
    autoencoder.load_state_dict(load_stage(config.output / "autoencoder-final.safetensors"))
    folder = config.output / "pipeline"
    parts = [module.half() for module in (autoencoder, text_encoder, unet)]
    networks.build_pipeline(parts[0], parts[1], tokenizer, parts[2]).save_pretrained(folder, safe_serialization=True)
    vae = folder / "vae" / "config.json"  # AutoencoderTiny writes a field that it does not read, and warns of it
    write_json(
        vae, {name: value for name, value in json.loads(vae.read_text()).items() if name != "block_out_channels"}
    )
    for name in ("vocab.json", "merges.txt"):  # what transformers before 5 reads a CLIP tokenizer from
        shutil.copy(config.output / "tokenizer" / name, folder / "tokenizer")
    _name_as_published(folder / "text_encoder" / "model.safetensors")
    settings = folder / "text_encoder" / "config.json"
    # transformers loads at the dtype named here, diffusers its own models in fp32: without this they would not match
    write_json(settings, {**json.loads(settings.read_text()), "dtype": "float32"})
    return folder


def report(config: PipelineConfig, folder: Path) -> None:
    generator = load_generator(folder, device="cpu")
    rng = np.random.default_rng(7)
    requests = [group[i] for group in lessons.TRAINED.values() for i in rng.integers(len(group), size=config.captions)]
    benchmark = benchmark_of(requests, {})
    assert benchmark.load_judge is not None
    found = compare(
        generator,
        [Plain()],
        benchmark.prompts,
        load_reward("scenes"),
        num_inference_steps=config.steps,
        num_images_per_prompt=2,
        batch_size=32,
        judge=benchmark.load_judge("cpu"),
        categories=benchmark.categories,
    )
    for row in found.rows:
        categories = "  ".join(f"{name} {value:.2f}" for name, value in row["categories"].items())
        print(
            f"{row['inference_steps']} steps: score {row['score']:.3f}  artefacts {row['artefacts']:.3f}  "
            f"reward {row['reward']:.2f}  diversity {row['diversity']:.3f}  "
            f"{1e3 * row['seconds_per_image']:.2f} ms  {categories}",
            flush=True,
        )


def _name_as_published(file: Path) -> None:
    """Gives a CLIP text encoder's weights the prefix of every published checkpoint.

    transformers 5 saves without it and reads both; transformers 4 reads only this one, and would silently
    start from random weights.
    """
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    with atomic_file(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, temporary, metadata={"format": "pt"})


if __name__ == "__main__":
    settings = parse(PipelineConfig)
    report(settings, save_pipeline(settings))
