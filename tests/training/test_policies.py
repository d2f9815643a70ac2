"""Which noises a step sees, how many denoiser calls it takes, and which of them its gradient goes through."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.noise import draws as noise_keys
from hypernoise.noise.draws import keyed_noise, training_noise
from hypernoise.training.config import TrainConfig
from hypernoise.training.optimizers import Average, make_optimizer, set_learning_rate
from hypernoise.training.steps import gradient_through_last, steps_of
from tests.conftest import disturb
from tests.training.test_resume import quick, small
from tests.training.test_trainer import same, state


def test_noise_policies():
    def draw(policy, step, samples, seed=0):
        return training_noise(policy, (5,), seed=seed, step=step, samples=samples, count=3)

    assert torch.equal(draw("fresh", 2, range(4)), keyed_noise((5,), seed=0, step=2, samples=range(4)))
    batch = draw("batch", 2, range(4))
    assert torch.equal(batch, batch[:1].expand(4, 5))
    assert not torch.isclose(batch[0], draw("batch", 3, [0])[0]).any()
    fixed = torch.cat([draw("fixed", step, range(8)) for step in range(10)])
    assert len(fixed.unique(dim=0)) == 3
    counts = Counter(map(tuple, fixed.tolist()))
    assert min(counts.values()) > 15  # of 80, all alike
    assert torch.equal(draw("fixed", 1, [6, 7]), draw("fixed", 1, range(8))[6:])
    assert not torch.isclose(fixed[:, None], draw("fixed", 0, range(8), seed=1)).all(-1).any()


def test_each_update_draws_its_number_of_denoiser_calls():
    config = TrainConfig(generator_steps=(1, 2, 4))
    drawn = [steps_of(config, step) for step in range(300)]
    assert drawn == [steps_of(config, step) for step in range(300)]
    assert all(70 < count < 130 for count in Counter(drawn).values())
    assert set(drawn) == {1, 2, 4}
    assert {steps_of(TrainConfig(generator_steps=3), step) for step in range(9)} == {3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generator_steps": 0}, "generator_steps must be at least 1"),
        ({"generator_steps": (2, 0)}, "generator_steps must be at least 1"),
        ({"generator_steps": (2, 4), "gradient_steps": 3}, "to the fewest generator_steps, 2, not 3"),
        ({"ema": 1.0}, "ema must be from 0"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"trackers": ("tensorbord",)}, "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be 0 or more"),
    ],
)
def test_impossible_policies_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


def test_the_gradient_through_the_last_call_is_that_with_the_earlier_answers_held(generator):
    """Checked against differences of the picture with the first call's answer put in as a constant."""
    noise = keyed_noise(generator.noise_shape, seed=0, step=0, samples=[0]).double().requires_grad_()
    condition = generator.encode(["a ring"])
    direction = keyed_noise(generator.noise_shape, seed=0, step=1, samples=[0]).double()

    def picture(z):
        return generator.sample(z, condition, num_inference_steps=2).square().mean()

    with gradient_through_last(generator, 1, 2):
        (last,) = torch.autograd.grad(picture(noise), noise)
    (full,) = torch.autograd.grad(picture(noise), noise)
    with gradient_through_last(generator, 2, 2):
        assert torch.equal(torch.autograd.grad(picture(noise), noise)[0], full)
    assert not torch.allclose(last, full, rtol=1e-2)
    kept = []

    def hold(module, inputs, output):
        kept.append(output[0].detach())
        return (kept[0], *output[1:]) if len(kept) in (1, 3, 5) else None  # the first of each picture's two calls

    hook = generator.denoiser.register_forward_hook(hold)
    with torch.no_grad():
        picture(noise)
        ends = [picture(noise + sign * 1e-3 * direction).item() for sign in (1, -1)]
    hook.remove()
    slope = (last * direction).sum().item()
    assert abs(slope) > 1e-6
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-3)  # the scheduler computes in fp32
    assert torch.is_grad_enabled()


def test_gradient_steps_need_a_denoiser():
    generator, _ = small()
    message = "gradient_steps needs a diffusion generator"
    with pytest.raises(InputError, match=message), gradient_through_last(generator, 1, 2):
        pass


def test_the_average_is_what_the_run_ends_with_and_is_resumed(tmp_path):
    raw, _ = quick(steps=6)
    averaged, _ = quick(steps=6, ema=0.5)
    assert not same(state(raw), state(averaged))
    quick(tmp_path, steps=3, ema=0.5)
    resumed, _ = quick(tmp_path, steps=6, ema=0.5)
    assert same(state(resumed), state(averaged))


def test_the_average_follows_its_formula():
    _, network = small()
    average = Average(network, 0.9)
    expected = state(network)
    for update in range(3):
        disturb(network, 0.1, seed=update)
        average.update()
        kept = min(0.9, (1 + update) / (10 + update))
        expected = {name: kept * old + (1 - kept) * network.trainable_state()[name] for name, old in expected.items()}
    assert all(torch.allclose(average.state[name], expected[name]) for name in expected)
    own = state(network)
    with average.in_place():
        assert same(state(network), average.state)
    assert same(state(network), own)


@pytest.mark.parametrize(("shape", "fall"), [("cosine", [1.0, 0.75, 0.25]), ("linear", [1.0, 2 / 3, 1 / 3])])
def test_learning_rates(shape, fall):
    config = TrainConfig(steps=3, lr=2.0, warmup=1, decay=True, decay_shape=shape)
    _, network = small()
    optimizer = make_optimizer(network.trainable_parameters(), config)
    rates = []
    for step in (0, 1, 2):
        set_learning_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"] / 2)
    assert rates == pytest.approx([0.5 * fall[0], fall[1], fall[2]])


def test_an_optimizer_that_is_not_installed_is_told():
    _, network = small()
    with pytest.raises(InputError, match=r"adamw8bit needs bitsandbytes: pip install 'hypernoise\[8bit\]'"):
        make_optimizer(network.trainable_parameters(), TrainConfig(optimizer="adamw8bit"))


def test_fp16_scales_its_loss_and_leaves_out_what_overflows():
    """With the loss scaled by 1024 the first gradients are beyond fp16, and the scale is halved until they fit."""
    _, result = quick(
        None, lambda pixels, prompts: 4e3 * pixels.mean((1, 2, 3)), steps=12, mixed_precision="fp16", lr=1e-4
    )
    assert result.finished
    assert result.history[-1]["kl"] > 0
    assert result.skipped == 0  # none is the reward's fault


def test_no_two_uses_share_a_noise_key():
    keys = [value for name, value in vars(noise_keys).items() if name.endswith("_STEP")]
    assert len(keys) == len(set(keys)) == 7
    assert min(keys) >= 10**9
    package = Path(noise_keys.__file__).parents[1]
    elsewhere = [file.name for file in package.rglob("*.py") if re.search(r"^\w+_STEP\s*=", file.read_text(), re.M)]
    assert elsewhere == ["noise.py"]  # all in one place
