"""The training's noising path is the one that diffusers' scheduler walks."""

import pytest
import torch

from dev.scenes.networks import build_scheduler
from dev.scenes.path import FEW_STEP_TIMES, LAST, EulerPath


def times(steps):
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler, [round(t) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_times_are_those_of_few_step_drawing(steps):
    _, found = times(steps)
    assert found[0] == LAST
    assert tuple(found[1:]) == FEW_STEP_TIMES.get(steps, ())


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_noised_is_where_the_scheduler_stands_after_its_first_answer(steps):
    scheduler, found = times(steps)
    path = EulerPath(scheduler, "cpu")
    noise, x0 = torch.randn(2, 3, 16, 8, 8).unbind()
    sample = noise * scheduler.sigmas[0]
    first = scheduler.scale_model_input(sample, scheduler.timesteps[0])
    assert torch.allclose(first, path.noised(x0, noise, torch.tensor([LAST] * 3)), atol=1e-5)
    sigma = path.sigma[LAST]
    v = (first * (1 + sigma**2).rsqrt() - x0) * (1 + sigma**2).sqrt() / sigma  # the output that answers x0
    sample = scheduler.step(v, scheduler.timesteps[0], sample).prev_sample
    second = scheduler.scale_model_input(sample, scheduler.timesteps[1])
    assert torch.allclose(second, path.noised(x0, noise, torch.tensor([found[1]] * 3)), atol=1e-4)


def test_a_rollout_follows_the_scheduler_through_the_networks_own_outputs():
    path = EulerPath(build_scheduler(), "cpu")
    noise, embeds = torch.randn(24, 16, 8, 8), torch.randn(24, 4, 8)

    class Network:
        config = type("Config", (), {"time_cond_proj_dim": 32})

        def __call__(self, sample, t, embeds, timestep_cond):
            v = torch.tanh(sample.roll(1, 1)) * (1 + t.view(-1, 1, 1, 1) / 500) + embeds.mean((1, 2)).view(-1, 1, 1, 1)
            return type("Output", (), {"sample": v})

    network, last = Network(), torch.full((24,), LAST)
    first = path.answer(network, path.scaled(path.sigma[LAST] * noise, last), last, embeds)
    noised, t = path.rollout(network, noise, first, embeds, torch.Generator().manual_seed(0))
    met = set()
    for steps in (2, 4, 8):
        scheduler, found = times(steps)
        sample = noise * scheduler.sigmas[0]
        for number, then in enumerate(scheduler.timesteps):
            here = scheduler.scale_model_input(sample, then)
            for row in (t == found[number]).nonzero().flatten().tolist():
                if torch.allclose(noised[row], here[row], atol=1e-4):
                    met.add(row)
            v = network(here, then.expand(24), embeds, None).sample
            sample = scheduler.step(v, then, sample).prev_sample
    assert met == set(range(24))
    assert len(set(t.tolist())) >= 6  # of the seven times where drawing goes on


def test_answer_inverts_v_prediction():
    path = EulerPath(build_scheduler(), "cpu")
    noise, x0 = torch.randn(2, 2, 16, 8, 8).unbind()
    t = torch.tensor([250, 700])
    alpha = (1 + path.sigma[t] ** 2).rsqrt().view(-1, 1, 1, 1)
    sigma = path.sigma[t].view(-1, 1, 1, 1) * alpha
    noised = alpha * x0 + sigma * noise

    class Oracle:
        config = type("Config", (), {"time_cond_proj_dim": 32})

        def __call__(self, sample, t, embeds, timestep_cond):
            assert sample is noised
            return type("Output", (), {"sample": alpha * noise - sigma * x0})

    assert torch.allclose(path.answer(Oracle(), noised, t, torch.zeros(2, 4, 8)), x0, atol=1e-5)
