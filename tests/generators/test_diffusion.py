import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import family_of


def noise_for(generator, count=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *generator.noise_shape, generator=draw, dtype=torch.float64).to(generator.dtype)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sample_equals_the_pipelines_own_call(sd_pipeline, steps):
    pipeline = sd_pipeline()
    generator = DiffusionGenerator(pipeline)
    noise, prompts = noise_for(generator), ["a red circle", "two blue rings"]
    expected = pipeline(
        prompts, latents=noise, num_inference_steps=steps, guidance_scale=0.0, output_type="pt", height=16, width=16
    ).images
    drawn = generator.sample(noise, generator.encode(prompts), num_inference_steps=steps)
    assert drawn.shape == (2, 3, 16, 16)
    assert (drawn - expected).abs().max() <= 1e-5
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_gradient_in_the_noise_matches_finite_differences(generator, steps):
    noise = noise_for(generator, 1).requires_grad_()
    condition = generator.encode(["a red circle"])
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    score = generator.sample(noise, condition, num_inference_steps=steps).square().mean()
    (gradient,) = torch.autograd.grad(score, noise)
    h = 1e-3  # the scheduler computes its step in fp32, whatever the networks' dtype
    ahead, behind = (
        generator.sample(noise.detach() + sign * h * direction, condition, num_inference_steps=steps).square().mean()
        for sign in (1, -1)
    )
    numeric = ((ahead - behind) / (2 * h)).item()
    assert abs(numeric) > 1e-8
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-3)


def test_denoise_first_is_the_denoiser_at_t_999_on_the_scaled_noise(generator):
    noise, condition = noise_for(generator), generator.encode(["a ring", "a cross"])
    sigma = generator.pipeline.scheduler.init_noise_sigma
    scaled = noise * sigma / (sigma**2 + 1) ** 0.5
    with torch.no_grad():
        expected = generator.denoiser(scaled, 999, encoder_hidden_states=condition.tensors["prompt_embeds"]).sample
    first = generator.denoise_first(noise, condition)
    assert sigma == pytest.approx(14.6146, abs=1e-3)
    assert (first - expected).abs().max() < 1e-6
    assert len(generator.denoiser._forward_hooks) == 0


def test_everything_is_frozen_and_no_gradient_is_filled(generator):
    noise = noise_for(generator).requires_grad_()
    generator.sample(noise, generator.encode(["a ring", "a cross"])).sum().backward()
    assert noise.grad is not None
    assert noise.grad.abs().max() > 0
    for module in (generator.pipeline.unet, generator.pipeline.vae, generator.pipeline.text_encoder):
        assert not any(p.requires_grad for p in module.parameters())
        assert all(p.grad is None for p in module.parameters())


def test_conditions_index_as_one_value(generator):
    both = generator.encode(["a ring", "a red cross"])
    assert len(both) == 2
    one = generator.encode(["a red cross"]).tensors["prompt_embeds"]
    assert torch.allclose(both[1:].tensors["prompt_embeds"], one, atol=1e-12)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "no prompt"), (["a ring", "  "], "prompt 2 of 2 is empty"), (["a red ring " * 20], "would be cut")],
)
def test_prompts_that_cannot_be_encoded_whole_are_refused(generator, prompts, message):
    with pytest.raises(InputError, match=message):
        generator.encode(prompts)


def test_a_cut_prompt_names_what_would_be_lost(generator):
    with pytest.raises(InputError, match="'zebra' would be cut") as caught:
        generator.encode(["a ring " * 11 + "zebra"])
    assert "the text encoder takes 24" in str(caught.value)


def test_the_pipelines_progress_bar_setting_is_left_alone(sd_pipeline):
    pipeline = sd_pipeline()
    pipeline.set_progress_bar_config(disable=True, desc="mine")
    generator = DiffusionGenerator(pipeline)
    generator.sample(noise_for(generator), generator.encode(["a ring", "a cross"]))
    assert pipeline._progress_bar_config == {"disable": True, "desc": "mine"}


def test_an_unknown_pipeline_class_says_what_to_add():
    with pytest.raises(InputError, match="this is a int, which is not supported; known: Stable"):
        family_of(3)
