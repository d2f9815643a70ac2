"""How many denoiser calls a step takes, its learning rate, its precision, and the running average."""

import re
from collections import Counter
from pathlib import Path

import pytest

from hypernoise.errors import InputError
from hypernoise.noise import draws as noise_keys
from hypernoise.training.config import TrainConfig
from hypernoise.training.run import make_optimizer, set_learning_rate
from hypernoise.training.step import inference_steps_of
from tests.training.test_resume import quick, small


def test_each_update_draws_its_number_of_denoiser_calls():
    config = TrainConfig(num_inference_steps=(1, 2, 4))
    drawn = [inference_steps_of(config, step) for step in range(300)]
    assert drawn == [inference_steps_of(config, step) for step in range(300)]
    assert all(70 < count < 130 for count in Counter(drawn).values())
    assert set(drawn) == {1, 2, 4}
    assert {inference_steps_of(TrainConfig(num_inference_steps=3), step) for step in range(9)} == {3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": (2, 0)}, "num_inference_steps must be at least 1"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit must be at least 1"),
        ({"report_to": ("tensorbord",)}, "report_to must be one of tensorboard, trackio, wandb, not 'tensorbord'"),
    ],
)
def test_impossible_policies_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("shape", "fall"),
    [("constant", [1.0, 1.0, 1.0]), ("cosine", [1.0, 0.75, 0.25]), ("linear", [1.0, 2 / 3, 1 / 3])],
)
def test_learning_rates(shape, fall):
    config = TrainConfig(max_train_steps=3, learning_rate=2.0, lr_warmup_steps=1, lr_scheduler=shape)
    _, network = small()
    optimizer = make_optimizer(network.trainable_parameters(), config)
    rates = []
    for step in (0, 1, 2):
        set_learning_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"] / 2)
    assert rates == pytest.approx([0.5 * fall[0], fall[1], fall[2]])


def test_fp16_scales_its_loss_and_leaves_out_what_overflows():
    """With the loss scaled by 1024 the first gradients are beyond fp16, and the scale is halved until they fit."""
    _, result = quick(
        None,
        lambda pixels, prompts: 4e3 * pixels.mean((1, 2, 3)),
        max_train_steps=12,
        mixed_precision="fp16",
        learning_rate=1e-4,
    )
    assert result.finished
    assert result.history[-1]["kl"] > 0
    assert result.skipped == 0  # none is the reward's fault


def test_no_two_uses_share_a_noise_key():
    keys = [value for name, value in vars(noise_keys).items() if name.endswith("_STEP")]
    assert len(keys) == len(set(keys)) == 4
    assert min(keys) >= 10**9
    package = Path(noise_keys.__file__).parents[1]
    elsewhere = [file.name for file in package.rglob("*.py") if re.search(r"^\w+_STEP\s*=", file.read_text(), re.M)]
    assert elsewhere == ["draws.py"]  # all in one place
