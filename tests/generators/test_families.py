"""Every family on a tiny pipeline of its real classes: the same numbers as the pipeline's own call, with gradients."""

import pytest
import torch

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator, replaced
from hypernoise.generators.families import FAMILIES
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb
from tests.families import BUILD, build_pipeline, size_of

PROMPTS = ["a red circle", "two blue rings and a cross"]

family = pytest.mark.parametrize("family", sorted(FAMILIES))


def build(family, tmp_path, **settings):
    pipeline = build_pipeline(family, tmp_path, **settings)
    return DiffusionGenerator(pipeline, size=size_of(family))


def noise_for(generator, count=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *generator.noise_shape, generator=draw)


def seen_by(module, run):
    """What `module` was first called with while `run` ran."""
    seen = []

    def note(module, arguments, keywords):
        seen.append((arguments, keywords))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    run()
    hook.remove()
    return seen[0]


def same(a, b):
    """Whether two nested structures of call arguments are equal."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_every_family_has_a_tiny_pipeline():
    assert set(BUILD) == set(FAMILIES)


@family
def test_calls_equal_the_pipelines_own_and_f_is_the_denoisers_first_answer(family, tmp_path):
    generator = build(family, tmp_path)
    pipeline, noise = generator.pipeline, noise_for(generator)
    condition = generator.encode(PROMPTS)
    assert len(condition) == 2
    seeded = dict(generator=torch.Generator().manual_seed(5))
    call = dict(prompt=list(PROMPTS), latents=noise)
    for steps in (1, 2):
        for kind, draw in (("pt", generator.sample), ("latent", generator.latents)):
            seeded["generator"].manual_seed(5)
            expected = pipeline(output_type=kind, return_dict=False, **generator.call(steps), **call, **seeded)[0]
            drawn = draw(noise, condition, num_inference_steps=steps, seed=5)
            assert drawn.shape == expected.shape
            assert (drawn - expected).abs().max() <= 1e-5
    assert drawn.std() > 1e-3
    own = seen_by(generator.denoiser, lambda: pipeline(**{**call, "prompt": list(PROMPTS)}, **generator.call(1)))
    first = seen_by(generator.denoiser, lambda: generator.denoise_first(noise, condition))
    assert same(own, first)
    answer = generator.denoise_first(noise, condition)
    assert answer.shape == noise.shape
    assert answer.std() > 1e-3


# what the denoiser receives at the first step of a picture, whatever the number of steps (first-step conventions)
FIRST_TIMESTEPS = {
    "StableDiffusionPipeline": 999.0,
    "StableDiffusionXLPipeline": 999.0,
    "StableDiffusion3Pipeline": 1000.0,
    "SanaSprintPipeline": 1.0,
    "PixArtAlphaPipeline": 999.0,
    "FluxPipeline": 1.0,
    "Flux2KleinPipeline": 1.0,
    "Krea2Pipeline": 1.0,
    "QwenImagePipeline": 1.0,
    "ZImagePipeline": 0.0,
}


@family
def test_first_timestep(family, tmp_path):
    generator = build(family, tmp_path)
    noise, condition = noise_for(generator, 1), generator.encode(PROMPTS[:1])
    for steps in (1, 2, 4):
        with torch.no_grad():
            positional, named = seen_by(
                generator.denoiser, lambda n=steps: generator.latents(noise, condition, num_inference_steps=n)
            )
        timestep = named["timestep"] if "timestep" in named else positional[1]
        assert float(torch.as_tensor(timestep).flatten()[0]) == pytest.approx(FIRST_TIMESTEPS[family], abs=1e-5)


@family
def test_rows_of_a_condition_stand_for_their_prompts(family, tmp_path):
    generator = build(family, tmp_path)
    noise = noise_for(generator)
    both = generator.sample(noise, generator.encode(PROMPTS))
    alone = generator.sample(noise[1:], generator.encode(PROMPTS)[1:])
    assert (both[1:] - alone).abs().max() < 1e-5
    other = generator.sample(noise[1:], generator.encode(PROMPTS[:1]))
    assert (other - alone).abs().max() > 1e-4


@family
def test_f_is_zero_at_the_start_and_gradients_are_right(family, tmp_path):
    generator = build(family, tmp_path, dtype=torch.float64)
    noise, condition = noise_for(generator, 1).double(), generator.encode(PROMPTS[:1])
    network = LoRANoise(generator, rank=2, alpha=2.0)
    residual = network(noise, condition)
    assert residual.shape == noise.shape
    assert torch.equal(residual, torch.zeros_like(residual))
    disturb(network, scale=0.1)
    parameters = network.trainable_parameters()
    base = generator.latents(noise, condition)
    weights = torch.randn(base.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss():
        f = network(noise, condition)
        return (weights * generator.latents(noise + f, condition)).sum() + f.square().sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    reached = sum(g is not None and bool(g.abs().max() > 0) for g in gradients)
    assert reached > 0.5 * len(parameters)
    draw = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=draw, dtype=p.dtype) / p.numel() ** 0.5 for p in parameters]
    analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    h, values = 1e-3, []  # schedulers work in fp32, so h is no smaller
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=sign * h)
            values.append(float(loss()))
            torch._foreach_add_(parameters, directions, alpha=-sign * h)
    assert abs(analytic) > 0.1
    assert analytic == pytest.approx((values[0] - values[1]) / (2 * h), rel=2e-3)


def test_a_replaced_method_leaves_no_trace():
    class Owner:
        def name(self):
            return "own"

    owner = Owner()
    with replaced(owner, {"name": lambda: "lent"}):
        assert owner.name() == "lent"
    assert owner.name() == "own"
    assert vars(owner) == {}


def test_fixed_timesteps_allow_only_their_number_of_steps(tmp_path, monkeypatch, capsys):
    pipeline = build_pipeline("PixArtAlphaPipeline", tmp_path)
    generator = DiffusionGenerator(pipeline, name="dmd", size=(16, 16), call={"timesteps": [400]})
    noise, condition = noise_for(generator), generator.encode(PROMPTS)
    assert generator.sample(noise, condition).shape == (2, 3, 16, 16)
    message = "dmd only draws at timesteps 400: the number of steps must be 1, not 4"
    with pytest.raises(InputError, match=message):
        generator.sample(noise, condition, num_inference_steps=4)
    monkeypatch.setattr("hypernoise.generators.registry.load_as", lambda *arguments, **keywords: generator)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rewards: redness\nprompts: scenes\nnum_inference_steps: [1, 4]\n")
    assert main(["train", str(recipe), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
