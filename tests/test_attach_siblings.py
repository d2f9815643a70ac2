"""`attach` on pipelines that draw beside a picture or a control: the noise they draw becomes the noise plus f, with f
as in text-to-image."""

import copy
import inspect
import sys

import diffusers
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.utils.torch_utils import randn_tensor

from hypernoise.adapters import save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES, SIBLINGS
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of


def sibling(name, folder):
    """One of the tiny text-to-image pipeline's parts, and that pipeline."""
    whole = build_pipeline(SIBLINGS[name], folder)
    parts = {**whole.config, **whole.components, "requires_safety_checker": False}
    parts["scheduler"] = copy.deepcopy(whole.scheduler)  # which `whole` sets while `pipe` is drawing
    if "ControlNet" in name:
        parts["controlnet"] = ControlNetModel.from_unet(whole.unet, conditioning_embedding_out_channels=(8, 8))
        for part in parts["controlnet"].controlnet_mid_block.parameters():
            part.data.normal_()
    cls = getattr(diffusers, name)
    keys = inspect.signature(cls.__init__).parameters
    pipe = cls(**{key: value for key, value in parts.items() if key in keys})
    pipe.set_progress_bar_config(disable=True)
    return pipe, whole


def call_of(pipe, size):
    """Its arguments: two steps, of which a picture of strength 0.6 keeps the last."""
    name, taken = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3))
    call = dict(prompt=["a ring", "a cross"], num_images_per_prompt=2, image=image, output_type="pt", return_dict=False)
    if "Inpaint" in name:
        call["mask_image"] = torch.zeros(1, 1, *size)
        call["mask_image"][..., : size[1] // 2] = 1
    call |= {"height": size[0], "width": size[1], "strength": 1.0 if "Inpaint" in name else 0.6}
    call["num_inference_steps"] = 2
    return {key: value for key, value in (call | FAMILIES[SIBLINGS[name]].call).items() if key in taken}


def packed(generator, noise):
    """Noise as the pipeline draws it, laid out as its denoiser takes it, by the pipeline's own methods."""
    if generator.family.layout == "grid":
        return noise
    channels, *size = noise.squeeze(1).shape[1:]
    return generator.pipeline._pack_latents(noise, len(noise), channels, *size)


def as_drawn(generator, residual, noise):
    if generator.family.layout == "grid":
        return residual
    pipeline = generator.pipeline
    return pipeline._unpack_latents(residual, *generator.size, pipeline.vae_scale_factor).reshape(noise.shape)


@pytest.mark.parametrize("kind", ["lora", "spectral"])
@pytest.mark.parametrize("name", sorted(SIBLINGS))
def test_the_noise_it_draws_becomes_the_noise_plus_f(name, kind, tmp_path, monkeypatch):
    pipe, whole = sibling(name, tmp_path)
    rows, columns = size_of(SIBLINGS[name])
    size = (rows, columns if kind == "lora" else 2 * columns)
    generator = DiffusionGenerator(whole, size=size)
    network = LoRANoise(generator, rank=2) if kind == "lora" else spectral_noise(generator, Spectral(2, 16, 2))
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "adapter", generator=generator)
    call = call_of(pipe, size)
    drawn = []

    def better(*arguments, **keywords):
        noise = randn_tensor(*arguments, **keywords)
        if drawn:
            return noise
        with torch.no_grad():
            drawn.append(noise)
            residual = network(packed(generator, noise), generator.encode(["a ring", "a ring", "a cross", "a cross"]))
            return noise + as_drawn(generator, residual, noise)

    plain = pipe(generator=torch.Generator().manual_seed(0), **call)[0]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", better)
        expected = pipe(generator=torch.Generator().manual_seed(0), **call)[0]
    assert len(drawn) == 1
    assert (expected - plain).abs().max() > 1e-3
    attach(pipe, tmp_path / "adapter")
    found = pipe(generator=torch.Generator().manual_seed(0), **call)[0]
    assert (found - expected).abs().max() <= 1e-5
    if "latents" in inspect.signature(type(pipe).__call__).parameters:
        if "Img2Img" in name:
            with pytest.raises(InputError, match="omit them"):
                pipe(latents=drawn[0], **call)
        elif name not in ("QwenImageInpaintPipeline", "ZImageInpaintPipeline"):  # which cannot start from noise given
            given = pipe(latents=drawn[0].clone(), generator=torch.Generator().manual_seed(0), **call)[0]
            assert torch.isfinite(given).all()
            if "XL" not in name:  # whose ancestral scheduler draws from the generator too
                assert (given - expected).abs().max() <= 1e-5
    assert torch.equal(detach(pipe)(generator=torch.Generator().manual_seed(0), **call)[0], plain)


def test_a_pipeline_made_from_an_attached_one_is_plain_and_can_be_attached_to(tmp_path):
    pipe, whole = sibling("StableDiffusionControlNetPipeline", tmp_path)
    network = spectral_noise(DiffusionGenerator(whole, size=(16, 16)), Spectral(2, 16, 2))
    disturb(network, scale=0.2)
    call = call_of(pipe, (16, 16))

    def drawn(pipeline):
        return pipeline(generator=torch.Generator().manual_seed(0), **call)[0]

    other = type(pipe).from_pipe(attach(whole, network), controlnet=pipe.controlnet)
    assert torch.equal(drawn(other), drawn(pipe))
    assert torch.equal(drawn(attach(other, network)), drawn(attach(pipe, network)))
    assert (drawn(other) - drawn(detach(pipe))).abs().max() > 1e-3


def test_it_is_no_generator_of_prompts_alone(tmp_path):
    pipe, _ = sibling("StableDiffusionImg2ImgPipeline", tmp_path)
    with pytest.raises(InputError, match="does not draw from prompts alone: use StableDiffusionPipeline"):
        DiffusionGenerator(pipe)
