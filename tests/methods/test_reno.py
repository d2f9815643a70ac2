import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.methods.base import Problem
from hypernoise.methods.best_of_n import BestOfN, Plain
from hypernoise.methods.reno import ReNO, norm_penalty
from hypernoise.methods.search import Search
from hypernoise.rewards.pixel import redness
from tests.conftest import Recorded

PROMPTS = ["a red circle", "two blue rings", "a cross"]


def reward(pixels, prompts):
    return 50 * redness(pixels, prompts)


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def problem(generator):
    return Problem(generator, reward)


def published(problem, prompt, noise, iterations):
    """The loop as its authors run it: one sample, torch's optimiser and clipping, best by the reward."""
    latents = noise.clone().requires_grad_()
    optimizer = torch.optim.SGD([latents], lr=5.0, nesterov=True, momentum=0.9)
    best, image, scores = float("inf"), None, []
    for iteration in range(iterations):
        optimizer.zero_grad()
        condition, steps = problem.generator.encode([prompt]), problem.num_inference_steps
        pixels = problem.generator.sample(latents, condition, num_inference_steps=steps, seed=0)
        loss = -problem.reward(pixels, [prompt]).sum()
        scores.append(-loss.item())
        if loss.item() < best:
            best, image = loss.item(), pixels.detach()
        norm = torch.linalg.vector_norm(latents)
        loss = loss + 0.01 * (0.5 * norm**2 - (latents.numel() - 1) * torch.log(norm))
        if iteration != iterations - 1:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(latents, 0.1)
            optimizer.step()
    return image, scores


@pytest.mark.parametrize("weight", [1.0, 1e-3], ids=["clipped", "within the clip"])
def test_it_is_the_published_search_sample_by_sample(generator, noise, weight):
    problem = Problem(generator, lambda pixels, prompts: weight * reward(pixels, prompts))
    recorded = Recorded(problem.reward)
    ours = ReNO(6).generate(Problem(generator, recorded), PROMPTS, noise)
    for i, prompt in enumerate(PROMPTS):
        image, scores = published(problem, prompt, noise[i : i + 1], 6)
        assert recorded.scores[i].tolist() == pytest.approx(scores, rel=1e-9)
        assert torch.allclose(ours.pixels[i], image[0], atol=1e-10)


def test_calls_and_the_best_picture(problem, noise):
    recorded = Recorded(reward)
    result = ReNO(5).generate(Problem(problem.generator, recorded), PROMPTS, noise)
    spent = result.spent
    assert (spent.denoiser_forwards, spent.denoiser_backwards) == (15, 12)  # nothing moves after the last picture
    assert (spent.decodes, spent.reward_calls) == (15, 15)
    assert reward(result.pixels, PROMPTS).tolist() == pytest.approx(recorded.scores.amax(1).tolist())
    again = problem.generator.sample(result.noise, problem.generator.encode(PROMPTS))
    assert torch.allclose(again, result.pixels, atol=1e-10)
    assert (recorded.scores.amax(1) > recorded.scores[:, 0]).all()
    assert result.kl is not None
    assert result.kl.tolist() == pytest.approx((0.5 * (result.noise - noise).flatten(1).square().sum(1)).tolist())


def test_one_iteration_is_plain(problem, noise):
    one, plain = ReNO(1).generate(problem, PROMPTS, noise), Plain().generate(problem, PROMPTS, noise)
    assert torch.equal(one.pixels, plain.pixels)
    assert one.spent.denoiser_backwards == 0


def test_the_gradient_goes_through_every_step(generator, noise):
    recorded = Recorded(reward)
    two = ReNO(2).generate(Problem(generator, recorded, num_inference_steps=2), PROMPTS, noise)
    assert (two.spent.denoiser_forwards, two.spent.denoiser_backwards) == (12, 6)
    found = recorded.scores[0].tolist()
    _, scores = published(Problem(generator, reward, num_inference_steps=2), PROMPTS[0], noise[:1], 2)
    assert found == pytest.approx(scores, rel=1e-9)


def test_the_penalty_is_minus_the_log_density_of_the_norm():
    """Of the chi law with d degrees of freedom, up to a constant; and its gradient, by finite differences."""
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = x.flatten(1).norm(dim=1)
    chi = 14 * norm.log() - 0.5 * norm.square()
    ours = norm_penalty(x, 1.0)
    assert torch.allclose(ours - ours[0], chi[0] - chi)
    assert torch.autograd.gradcheck(lambda y: norm_penalty(y, 0.3), x.requires_grad_())
    half = norm_penalty(torch.full((1, 40000), 100.0, dtype=torch.float16), 0.01)  # ‖x‖² overflows fp16
    assert half.dtype == torch.float32
    assert torch.isfinite(half).all()


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_reward_that_is_not_finite_is_named(problem, noise, iterations):
    broken = Problem(problem.generator, lambda pixels, prompts: reward(pixels, prompts) * float("nan"))
    for method in (ReNO(iterations), BestOfN(2), Search(1, 1)):
        with pytest.raises(InputError, match=f"the reward is nan for '{PROMPTS[0]}'"):
            method.generate(broken, PROMPTS, noise)


def test_a_reward_without_a_gradient_is_refused(problem, noise):
    flat = Problem(problem.generator, lambda pixels, prompts: (pixels.mean((1, 2, 3)) > 0.5).float())
    with pytest.raises(InputError, match="needs a reward with a gradient in the pixels"):
        ReNO(2).generate(flat, PROMPTS, noise)
    assert ReNO(1).generate(flat, PROMPTS, noise).spent.denoiser_backwards == 0  # one picture asks for none


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="iterations must be at least 1"):
        ReNO(0)
