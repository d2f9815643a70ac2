"""The watched reward: read without touching the training, and what counts as the rewards parting."""

import re

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.guards import fallen_since, readings
from hypernoise.training.loop import train
from tests.training.test_trainer import PROMPTS, build, config, same, state

NOISE = [0.0, 1.0, -1.0, 0.5, -0.5]


def series(watched, trained):
    """Readings every ten steps with the same small spread in each stretch of five."""
    return [
        {"step": 10 * i, "reward": t, "validation_reward": w + 0.1 * NOISE[i % 5]}
        for i, (w, t) in enumerate(zip(watched, trained, strict=True))
    ]


def test_they_have_parted_when_the_watched_falls_and_the_trained_does_not():
    up = [float(i) for i in range(20)]
    fallen = series([0.1 * i for i in range(10)] + [1.0 - 0.1 * i for i in range(10)], up)
    assert fallen_since(fallen, 5)
    assert not fallen_since(fallen, 0)
    assert not fallen_since(fallen[:12], 5)  # still at its best
    assert not fallen_since(series([0.1 * i for i in range(20)], up), 5)  # both rise
    assert not fallen_since(series([1.0] * 20, up), 5)  # within chance
    assert not fallen_since(
        series([1.0 - 0.1 * i for i in range(20)], up[::-1]), 5
    )  # both fall: a failing run, not a hacked
    assert not fallen_since(fallen[-9:], 5)  # two stretches are needed


def test_the_best_stretch_is_named_by_its_middle():
    seen = series([0.1 * i for i in range(10)] + [1.0 - 0.1 * i for i in range(10)], [0.0] * 20)
    assert 80 <= fallen_since(seen, 5) <= 120


def test_readings_come_from_the_rows_that_have_one():
    rows = [{"step": 1, "reward": 2.0}, {"step": 2, "reward": 3.0, "validation_reward": 4.0}]
    rows += [{"step": 4, "reward": 5.0, "validation_reward": 6.0}]
    rows += [{"step": 3, "validation_reward": 5.0, "kl": 1.0}]
    assert readings(rows) == [dict(rows[1]), dict(rows[2])]


def green(pixels, prompts):
    torch.rand(1)  # chance in the validation reward must not reach the trained one
    return pixels[:, 1].mean((1, 2))


def chancy(pixels, prompts):
    return 20 * (pixels * torch.rand(pixels.shape)).flatten(1).mean(1)


def run(sd_pipeline, settings, reward=None, **more):
    generator, network = build(sd_pipeline)
    reward = reward or WeightedSum({"redness": 20.0})
    return network, train(generator, network, reward, PROMPTS, settings, progress=False, **more)


def test_watching_changes_nothing_and_reads_the_same_pictures(sd_pipeline):
    pictures = []

    def watched(pixels, prompts):
        pictures.append(pixels)
        assert not pixels.requires_grad
        return green(pixels, prompts)

    network, result = run(
        sd_pipeline, config(validation_steps=2, gradient_accumulation_steps=2), chancy, validation_reward=watched
    )
    again, other = run(sd_pipeline, config(gradient_accumulation_steps=2), chancy)
    assert same(state(network), state(again))
    assert [row["step"] for row in result.history if "validation_reward" in row] == [2, 4, 6]
    drawn = torch.cat(pictures[2:4])  # the two parts of step 2; at the first step the reward is only checked
    expected = drawn[:, 1].mean().item()
    assert result.history[1]["validation_reward"] == pytest.approx(expected, rel=1e-5)
    assert not any("validation_reward" in row for row in other.history)


def test_training_ends_when_they_part_and_does_not_resume(sd_pipeline, tmp_path, capsys):
    def falling(pixels, prompts):
        falling.level -= 1.0
        return falling.level + 1e-3 * pixels.flatten(1).mean(1)

    falling.level = 0.0
    settings = config(max_train_steps=60, learning_rate=2e-2, validation_steps=1, patience=3, kl_weight=0.01)
    _, result = run(sd_pipeline, settings, validation_reward=falling, output_dir=tmp_path)
    assert (result.stopped_early, result.finished) == (True, True)
    assert 6 <= result.step < 60
    assert re.search(rf"stopped early at step {result.step}: .* since about step \d+ while", capsys.readouterr().err)
    assert result.checkpoint is not None
    assert result.checkpoint.name == f"checkpoint-{result.step:06d}"
    _, again = run(sd_pipeline, settings, validation_reward=falling, output_dir=tmp_path)
    assert (again.step, again.history, again.stopped_early) == (result.step, [], True)


def test_patience_without_anything_watched_is_refused(sd_pipeline):
    with pytest.raises(InputError, match="patience needs a validation reward"):
        run(sd_pipeline, config(patience=3))
