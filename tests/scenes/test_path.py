"""The training's noising path is the one that diffusers' scheduler walks."""

import pytest
import torch

from hypernoise.scenes.networks import build_scheduler
from hypernoise.scenes.path import FEW_STEP_TIMES, LAST, EulerPath


def times(steps):
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler, [round(t) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_times_are_those_of_few_step_drawing(steps):
    _, found = times(steps)
    assert found[0] == LAST
    assert set(found[1:]) <= set(FEW_STEP_TIMES)


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
