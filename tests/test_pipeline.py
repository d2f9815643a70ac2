import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hypernoise.adapters import save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb

SIZE = {"height": 16, "width": 16, "output_type": "np"}


@pytest.fixture
def adapter(sd_pipeline, tmp_path):
    network = LoRANoise(DiffusionGenerator(sd_pipeline()), rank=4)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def zero_adapter(sd_pipeline, tmp_path):
    save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline()), rank=4), tmp_path / "zero")
    return tmp_path / "zero"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


CALLS = {
    "one prompt": dict(prompt="a red circle", num_inference_steps=1, guidance_scale=0.0),
    "positional prompt list, 2 steps": dict(
        prompt=["a ring", "two blue rings"], num_inference_steps=2, guidance_scale=0.0
    ),
    "images per prompt": dict(
        prompt=["a ring", "a cross"], num_images_per_prompt=2, num_inference_steps=1, guidance_scale=0.0
    ),
    "guidance": dict(prompt="a ring", negative_prompt="a cross", num_inference_steps=2, guidance_scale=4.0),
    "non-square": dict(prompt="a ring", num_inference_steps=1, guidance_scale=0.0, width=32),
    "4 steps": dict(prompt="a ring", num_inference_steps=4, guidance_scale=0.0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_zero_adapter_changes_nothing(sd_pipeline, zero_adapter, call):
    call = {**SIZE, **call}
    expected = sd_pipeline()(generator=seeded(), **call).images
    drawn = attach(sd_pipeline(), zero_adapter)(generator=seeded(), **call).images
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_trained_adapter_draws_from_the_noise_plus_f(sd_pipeline, adapter, call):
    """The attached call equals: draw the noise by hand, add f by hand, and call the bare pipeline on it."""
    call = {**SIZE, **call}
    pipe = attach(sd_pipeline(), adapter)
    drawn = pipe(generator=seeded(), **call).images
    network = pipe._hypernoise.network
    prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
    prompts = [p for p in prompts for _ in range(call.get("num_images_per_prompt", 1))]
    noise = torch.randn(len(prompts), 4, call["height"] // 2, call["width"] // 2, generator=seeded())
    network.generator.size = (call["height"], call["width"])
    with torch.no_grad():
        better = noise + network(noise, network.generator.encode(prompts))
    bare = sd_pipeline()
    expected = bare(latents=better, **call).images
    plain = bare(latents=noise, **call).images
    assert np.abs(drawn - expected).max() < 1e-5
    assert np.abs(drawn - plain).max() > 1e-2


def test_the_pictures_do_not_depend_on_the_company(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    call = dict(SIZE, num_inference_steps=1, guidance_scale=0.0)
    both = pipe(["a ring", "a cross"], generator=[seeded(1), seeded(2)], **call).images
    alone = pipe("a cross", generator=seeded(2), **call).images
    assert np.abs(both[1] - alone[0]).max() < 1e-5


def test_given_latents_are_taken_as_the_noise(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    kept = noise.clone()
    assert np.abs(pipe(latents=noise, **call).images - pipe(generator=seeded(), **call).images).max() < 1e-6
    assert torch.equal(noise, kept)


def test_random_state_ends_where_it_would_without_an_adapter(sd_pipeline, adapter):
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    bare, attached = seeded(), seeded()
    sd_pipeline()(generator=bare, **call)
    pipe = attach(sd_pipeline(), adapter)
    pipe(generator=attached, **call)
    assert torch.equal(bare.get_state(), attached.get_state())
    states = []
    for pipeline in (sd_pipeline(), pipe):
        torch.manual_seed(3)
        pipeline(**call)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_prompts_are_encoded_once_and_the_denoiser_runs_once_more(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    calls = {"text": 0, "denoiser": 0}
    pipe.text_encoder.register_forward_hook(lambda *_: calls.update(text=calls["text"] + 1))
    pipe.unet.register_forward_pre_hook(lambda *_: calls.update(denoiser=calls["denoiser"] + 1))
    pipe("a ring", num_inference_steps=2, guidance_scale=0.0, **SIZE)
    assert calls == {"text": 1, "denoiser": 3}


def test_callbacks_output_types_and_tuples_work_as_before(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    call = dict(SIZE, prompt="a ring", num_inference_steps=3, guidance_scale=0.0)
    seen = []

    def note(pipeline, step, timestep, values):
        seen.append((pipeline is pipe, step, tuple(values["latents"].shape)))
        return values

    pipe(callback_on_step_end=note, **call)
    assert seen == [(True, step, (1, 4, 8, 8)) for step in range(3)]
    assert pipe(**{**call, "output_type": "pil"}).images[0].size == (16, 16)
    assert pipe(**{**call, "output_type": "latent"}).images.shape == (1, 4, 8, 8)
    assert pipe(**{**call, "output_type": "pt"}).images.shape == (1, 3, 16, 16)
    assert len(pipe(return_dict=False, **call)) == 2


def test_detach_restores_the_pipeline_bit_for_bit(sd_pipeline, adapter):
    pipe = sd_pipeline()
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    trainable = [p.requires_grad for p in pipe.unet.parameters()]
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    expected = pipe(generator=seeded(), **call).images
    attributes = set(vars(pipe))
    attach(pipe, adapter)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    pipe(generator=seeded(), **call)
    assert detach(pipe) is pipe
    assert type(pipe) is StableDiffusionPipeline
    assert set(vars(pipe)) == attributes
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.requires_grad for p in pipe.unet.parameters()] == trainable
    assert np.array_equal(pipe(generator=seeded(), **call).images, expected)


def test_attach_again_after_detach(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    first = pipe(generator=seeded(), **call).images
    attach(detach(pipe), adapter)
    assert np.array_equal(pipe(generator=seeded(), **call).images, first)


def test_a_network_that_is_handed_in_survives_detach(sd_pipeline, adapter):
    generator = DiffusionGenerator(sd_pipeline())
    network = LoRANoise(generator, rank=4)
    disturb(network)
    noise, condition = torch.randn(1, 4, 8, 8, generator=seeded()), generator.encode(["a ring"])
    residual = network(noise, condition)
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    pipe = attach(generator.pipeline, network)
    assert np.array_equal(
        pipe(generator=seeded(), **call).images, attach(sd_pipeline(), adapter)(generator=seeded(), **call).images
    )
    detach(pipe)
    assert np.array_equal(pipe(generator=seeded(), **call).images, sd_pipeline()(generator=seeded(), **call).images)
    assert torch.equal(network(noise, condition), residual)


def test_the_users_own_attributes_stay(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    encode, calls = pipe.encode_prompt, []

    def counted(*args, **kwargs):
        calls.append(1)
        return encode(*args, **kwargs)

    pipe.encode_prompt = counted
    for n in (1, 2):
        pipe("a ring", num_inference_steps=1, guidance_scale=0.0, **SIZE)
        assert len(calls) == n
    assert pipe.encode_prompt is counted


def test_an_error_in_the_call_leaves_the_pipeline_usable(sd_pipeline, adapter):
    pipe = attach(sd_pipeline(), adapter)
    call = dict(SIZE, prompt="a ring", num_inference_steps=1, guidance_scale=0.0)
    expected = pipe(generator=seeded(), **call).images
    with pytest.raises(ValueError, match="divisible by 8"):
        pipe(**{**call, "height": 17})
    with pytest.raises(RuntimeError):
        pipe(latents=torch.randn(1, 5, 8, 8), **call)
    assert np.array_equal(pipe(generator=seeded(), **call).images, expected)


def test_mistakes_get_one_clear_line(sd_pipeline, adapter, tmp_path):
    pipe = sd_pipeline()
    with pytest.raises(InputError, match="pipeline is a int; pass a diffusers pipeline"):
        attach(3, adapter)
    with pytest.raises(InputError, match="no adapter attached"):
        detach(pipe)
    with pytest.raises(InputError, match="no adapter at"):
        attach(pipe, tmp_path / "nowhere")
    attach(pipe, adapter)
    with pytest.raises(InputError, match="already has an adapter attached"):
        attach(pipe, adapter)
    with pytest.raises(InputError, match="before saving"):
        pipe.save_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match="detach"):
        DiffusionGenerator(pipe)
    with pytest.raises(InputError, match="belongs to another pipeline"):
        attach(sd_pipeline(), pipe._hypernoise.network)
