"""The shipped generator: a genuine diffusers pipeline that draws its prompts in one step."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

import hypernoise
from dev.scenes.drawing import draw, sample_scene
from hypernoise.adapters import adapter_folder, load_adapter
from hypernoise.evaluation.benchmarks import load_benchmark
from hypernoise.evaluation.engine import compare
from hypernoise.generators.registry import load_generator
from hypernoise.methods.best_of_n import Plain
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl, noise_objective
from hypernoise.rewards.pixel import redness
from hypernoise.scenes.judge import judge
from hypernoise.scenes.prompts import evaluation_requests
from tests.scenes.accuracy import score

FOLDER = Path(str(files("hypernoise").joinpath("scenes/weights/generator")))


@pytest.fixture(scope="module")
def scenes():
    return load_generator("scenes", device="cpu")


def test_it_is_a_small_safe_pipeline_directory():
    weights = [file for file in FOLDER.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in weights) <= 9e6  # generator, reward and adapter together
    assert {file.suffix for file in weights} <= {".json", ".safetensors", ".txt"}
    unet = load_file(FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    assert sum(tensor.numel() for tensor in unet.values()) <= 2e6


def test_the_text_encoder_has_the_names_that_every_transformers_reads():
    names = load_file(FOLDER / "text_encoder" / "model.safetensors").keys()
    assert all(name.startswith("text_model.") for name in names)


def test_diffusers_loads_it_and_the_default_call_makes_one_denoiser_call():
    pipeline = DiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is StableDiffusionPipeline
    batches = []
    pipeline.unet.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    image = pipeline("a red circle", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert batches == [1]
    assert image.size == (64, 64)


def test_guidance_changes_nothing(scenes):
    call = dict(num_inference_steps=1, output_type="pt")
    low, high = (
        scenes.pipeline("a ring", guidance_scale=w, generator=torch.Generator().manual_seed(0), **call).images
        for w in (0.0, 7.5)
    )
    assert torch.equal(low, high)


def judged(generator, methods, count, *, noises=2, steps=1):
    asked = load_benchmark("scenes", count)
    return compare(
        generator,
        methods,
        asked.prompts,
        redness,
        num_inference_steps=steps,
        num_images_per_prompt=noises,
        batch_size=32,
        judge=asked.load_judge("cpu"),
        categories=asked.categories,
    )


def test_on_a_cpu_its_decoder_is_laid_out_by_channels_which_is_faster(scenes):
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in scenes.pipeline.vae.decoder.parameters()
        if weight.ndim == 4
    )
    assert not scenes.pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_it_draws_as_the_benchmark_asks_of_a_generator(scenes):
    """A judge's score in the middle, few artefacts, different pictures of a prompt, and no worse in more steps."""
    rows = judged(scenes, [Plain()], 15, steps=(1, 2, 4)).rows
    assert 0.45 <= rows[0]["score"] <= 0.80, rows
    assert rows[0]["artefacts"] <= 0.35, rows  # 0.15 is the aim (docs/scenes.md)
    assert rows[0]["diversity"] > 0.1
    assert min(row["score"] for row in rows) >= rows[0]["score"] - 0.02, rows


@pytest.mark.slow
def test_its_noise_matters(scenes):
    """The best of eight noises by the judge is right at least 0.15 more often than one."""
    right = judged(scenes, [Plain()], 10, noises=8).records[1, "plain"].values["right"]
    assert right.max(1).mean() >= right.mean() + 0.15


@pytest.mark.slow
def test_the_adapter_that_ships_meets_the_benchmarks_targets(scenes):
    shipped = HyperNoise("scenes")
    plain, ours = judged(scenes, [Plain(), shipped], 25).rows
    assert ours["score"] >= plain["score"] + 0.03, (plain, ours)  # +0.090 on the whole benchmark
    assert ours["artefacts"] <= plain["artefacts"] + 0.01, (plain, ours)
    assert ours["diversity"] >= 0.95 * plain["diversity"], (plain, ours)


@pytest.mark.slow
def test_the_autoencoder_is_no_ceiling(scenes):
    """Drawn scenes are still right after encoding and decoding."""
    requests = evaluation_requests(25)
    rng = np.random.default_rng(0)
    drawn = np.stack([draw(sample_scene(request, rng)) for request in requests])
    vae = scenes.pipeline.vae
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1).latents
        decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    result = score([(request, judge(picture, request)) for request, picture in zip(requests, decoded, strict=True)])
    assert result["score"] >= 0.9, result
    assert latents.mean().abs() < 0.1
    assert abs(latents.std() - 1) < 0.1


def test_the_adapter_that_ships_is_small_and_attaches_by_its_name(scenes):
    folder = adapter_folder("scenes")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    pipeline = DiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    call = dict(num_inference_steps=1, output_type="np")
    plain = pipeline("two squares", generator=torch.Generator().manual_seed(0), **call).images
    hypernoise.attach(pipeline, "scenes")
    improved = pipeline("two squares", generator=torch.Generator().manual_seed(0), **call).images
    assert abs(improved - plain).max() > 0.05
    network = load_adapter(scenes, "scenes")
    noise = keyed_noise(scenes.noise_shape, seed=0, step=0, samples=range(16))
    with torch.no_grad():
        residual = network(noise, scenes.encode(["two squares", "a ring above a cross"] * 8))
    assert 0.05 < l2_kl(residual).mean() < 5


def test_gradient_through_the_shipped_generator_and_its_noise_network(scenes):
    prompts = ["a ring", "a square left of a cross"]
    network = LoRANoise(scenes, rank=4)
    noise, condition = keyed_noise(scenes.noise_shape, seed=0, step=0, samples=range(2)), scenes.encode(prompts)
    residual = network(noise, condition)
    pixels = scenes.sample(noise + residual, condition)
    noise_objective(l2_kl(residual), redness(pixels, prompts), 1.0).sum().backward()
    gradient = network.layers["conv_out"].lora_B.weight.grad
    assert gradient.abs().max() > 1e-6
    assert all(p.grad is None for p in scenes.pipeline.vae.parameters())
