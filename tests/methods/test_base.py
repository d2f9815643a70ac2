import dataclasses
import json
import math
import shutil

import pytest
import torch

from hypernoise.adapters import save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.generators.module import ModuleGenerator
from hypernoise.methods.base import Method, Problem, Spent, fresh_noise, metered
from hypernoise.methods.best_of_n import BestOfN, Plain
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.rewards.pixel import redness
from tests.conftest import Recorded, disturb
from tests.families import build_pipeline, size_of

PROMPTS = ["a red circle", "two blue rings", "a cross"]


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def problem(generator):
    return Problem(generator, redness, num_inference_steps=2)


def calls(spent):
    return spent.denoiser_forwards, spent.denoiser_backwards, spent.decodes, spent.reward_calls


def test_plain_is_the_generator_and_its_calls_are_counted(problem, noise):
    generator = problem.generator
    result = Plain().generate(problem, PROMPTS, noise)
    assert torch.equal(result.pixels, generator.sample(noise, generator.encode(PROMPTS), num_inference_steps=2, seed=0))
    assert calls(result.spent) == (6, 0, 3, 0)
    assert result.spent.seconds > 0
    assert result.kl is not None
    assert not result.kl.any()
    assert not result.pixels.requires_grad


def test_backwards_are_counted_where_they_happen(problem, noise):
    noise.requires_grad_()
    with metered(problem) as meter:
        pixels = meter.draw(noise, problem.generator.encode(PROMPTS))
        meter.score(pixels, PROMPTS).sum().backward()
    assert calls(meter.spent()) == (6, 6, 3, 3)
    assert not problem.generator.denoiser._forward_hooks  # none stays behind


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_familys_calls_are_counted(family, tmp_path):
    generator = DiffusionGenerator(build_pipeline(family, tmp_path), size=size_of(family))
    noise = torch.randn(2, *generator.noise_shape, requires_grad=True)
    with metered(Problem(generator, redness)) as meter:
        meter.draw(noise, generator.encode(PROMPTS[:2])).sum().backward()
    assert calls(meter.spent()) == (2, 2, 2, 0)


def test_hooks_go_when_a_method_fails(problem, noise):
    with pytest.raises(ZeroDivisionError), metered(problem):
        raise ZeroDivisionError
    assert not problem.generator.denoiser._forward_hooks


def test_hypernoise_adds_its_residual_and_one_call(problem, noise):
    generator = problem.generator
    network = LoRANoise(generator, rank=2)
    disturb(network)
    result = HyperNoise(network).generate(problem, PROMPTS, noise)
    with torch.no_grad():
        condition = generator.encode(PROMPTS)
        residual = network(noise, condition)
        expected = generator.sample(noise + residual, condition, num_inference_steps=2, seed=0)
    assert torch.equal(result.pixels, expected)
    assert torch.equal(result.noise, noise + residual)
    assert result.kl is not None
    assert result.kl.tolist() == pytest.approx((0.5 * residual.flatten(1).square().sum(1)).tolist())
    assert calls(result.spent) == (9, 0, 3, 0)


def test_a_strength_scales_f_and_its_kl(problem, noise):
    network = LoRANoise(problem.generator, rank=2)
    disturb(network)
    half, whole = (HyperNoise(network, strength=s).generate(problem, PROMPTS, noise) for s in (0.5, 1.0))
    assert torch.allclose(half.noise, noise + 0.5 * (whole.noise - noise))
    assert torch.allclose(half.kl, 0.25 * whole.kl)
    assert HyperNoise(network, strength=0.5).settings() != HyperNoise(network).settings()
    known = spectral_noise(problem.generator, Spectral(2, 16, 2))
    assert HyperNoise(known, strength=0.5).generate(problem, PROMPTS, noise).kl is None  # exact at 1 alone
    assert HyperNoise(known).generate(problem, PROMPTS, noise).kl is not None


def test_networks_on_one_generator_keep_out_of_each_others_way(problem, noise, tmp_path):
    generator = problem.generator
    for seed in (1, 2):
        network = LoRANoise(generator, rank=2)
        disturb(network, seed=seed)
        save_adapter(network, tmp_path / str(seed))
    first, second = HyperNoise(tmp_path / "1"), HyperNoise(str(tmp_path / "2"))
    assert first.settings() != second.settings()
    assert second.settings() == HyperNoise(network).settings()  # saved or held, the same weights
    drawn = [m.generate(problem, PROMPTS, noise).pixels for m in (first, second, first)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], drawn[1])
    scaled = json.loads((tmp_path / "1" / "hypernoise.json").read_text())
    scaled["settings"]["alpha"] *= 2
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    (tmp_path / "3" / "hypernoise.json").write_text(json.dumps(scaled))
    assert HyperNoise(tmp_path / "3").settings() != first.settings()  # the same matrices, twice as strong
    assert torch.equal(HyperNoise(network).generate(problem, PROMPTS, noise).pixels, drawn[1])
    with pytest.raises(InputError, match="no adapter at"):
        HyperNoise(tmp_path / "none").settings()


def test_best_of_n_keeps_each_samples_winner(problem, noise):
    reward = Recorded(redness)
    result = BestOfN(4).generate(dataclasses.replace(problem, reward=reward), PROMPTS, noise)
    assert result.kl is not None
    assert reward.scores.shape == (3, 4)
    assert redness(result.pixels, PROMPTS).tolist() == pytest.approx(reward.scores.amax(1).tolist())
    again = problem.generator.sample(result.noise, problem.generator.encode(PROMPTS), num_inference_steps=2, seed=0)
    assert torch.allclose(again, result.pixels, atol=1e-12)
    plain = Plain().generate(problem, PROMPTS, noise)
    assert reward.scores[:, 0].tolist() == pytest.approx(redness(plain.pixels, PROMPTS).tolist())
    assert (reward.scores.amax(1) > reward.scores[:, 0]).any()
    assert result.kl.tolist() == pytest.approx([math.log(4) - 0.75] * 3)
    assert calls(result.spent) == (24, 0, 12, 12)


def test_a_sample_does_not_depend_on_its_batch(problem, noise):
    whole = BestOfN(4).generate(problem, PROMPTS, noise)
    alone = BestOfN(4).generate(problem, PROMPTS[1:2], noise[1:2])
    assert torch.allclose(alone.pixels, whole.pixels[1:2], atol=1e-10)


def test_best_of_one_is_plain(problem, noise):
    one, plain = (method.generate(problem, PROMPTS, noise) for method in (BestOfN(1), Plain()))
    assert torch.equal(one.pixels, plain.pixels)
    assert one.kl is not None
    assert not one.kl.any()


def test_fresh_noise_is_normal_repeatable_and_new(noise):
    a, b = fresh_noise(noise, 1), fresh_noise(noise, 2)
    assert torch.equal(a, fresh_noise(noise, 1))
    assert a.shape == noise.shape
    assert a.dtype == noise.dtype
    assert torch.equal(a[1:2], fresh_noise(noise[1:2], 1))
    assert abs((a[0] * a[1]).mean()) < 0.25  # each sample has its own; 0.0625 is one deviation of 256 products
    many = torch.stack([fresh_noise(noise[:1], i) for i in range(100)]).flatten()
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    for other in (b, noise):
        assert abs((a * other).mean()) < 0.15  # uncorrelated; 0.036 is one deviation of 768 products


def test_a_module_is_counted_too_and_decodes_nothing():
    module = torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 2, 2)))
    generator = ModuleGenerator(module, noise_shape=(4,))
    network = ResidualNoise((4,), depth=0)
    result = HyperNoise(network).generate(Problem(generator, redness), ["a", "b"], torch.randn(2, 4))
    assert calls(result.spent) == (2, 0, 0, 0)  # a stand-alone network is no call of the denoiser
    assert result.pixels.shape == (2, 3, 2, 2)


def test_a_generator_whose_calls_cannot_be_counted_is_refused():
    class Bare:
        name, noise_shape, device = "bare", (4,), torch.device("cpu")

    with (
        pytest.raises(InputError, match="'bare' needs an attribute `denoiser` or `module`"),
        metered(Problem(Bare(), redness)),
    ):
        pass


def test_what_is_spent_adds_up():
    assert Spent(1, 2, 3, 4, 0.5) + Spent(10, 20, 30, 40, 1.0) == Spent(11, 22, 33, 44, 1.5)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="n must be at least 1, not 0"):
        BestOfN(0)


@pytest.mark.parametrize("method", [Plain(), BestOfN(2), HyperNoise(ResidualNoise((4,)))], ids=lambda m: m.name)
def test_every_method_keeps_the_contract(method):
    assert isinstance(method, Method)
    assert method.settings()["method"]
