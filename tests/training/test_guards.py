"""Failed steps are skipped, counted and named; failed runs end with advice."""

import json
import os
import re

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints
from hypernoise.training.config import TrainConfig
from hypernoise.training.guards import BlowUp, check_skipped
from hypernoise.training.loop import train
from tests.training.ranks import on_ranks
from tests.training.test_resume import quick, small
from tests.training.test_trainer import PROMPTS, same, state


def test_a_skipped_step_changes_no_weight_and_is_reported(tmp_path, capsys):
    def reward(pixels, prompts):
        scores = pixels.flatten(1).mean(1)
        reward.calls += 1
        return torch.where(torch.arange(len(scores)) == 1, torch.nan, scores) if reward.calls == 3 else scores

    reward.calls = 0
    network, result = quick(tmp_path, reward, max_train_steps=3, optimizer="sgd")
    reward.calls = 10
    before, _ = quick(None, reward, max_train_steps=2, optimizer="sgd")
    assert same(state(network), state(before))
    assert (result.skipped, result.finished) == (1, True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", 0) for row in rows] == [0, 0, 1]
    assert "loss" not in rows[2]
    (fault,) = rows[2]["faults"]
    assert re.fullmatch(r"the reward is nan for '.*'", fault)
    assert f"step 3 skipped: {fault}" in capsys.readouterr().err


def test_the_member_and_the_prompt_at_fault_are_named():
    def root(pixels, prompts):
        """Its gradient is infinite where the score is 0."""
        kept = torch.tensor([0.0 if "ring" in prompt else 1.0 for prompt in prompts])
        return (kept * pixels.mean((1, 2, 3))).sqrt()

    reward = WeightedSum({"redness": 1.0, "root": 1.0}, {"root": root})
    with pytest.raises(InputError) as caught:
        quick(None, reward, max_train_steps=50)
    message = str(caught.value)
    assert "6 of the last " in message
    assert "the gradient of reward 'root' is nan for" in message
    assert "redness" not in message
    assert "ring'" in message
    assert "circle" not in message


def test_skips_count_over_the_last_hundred_steps():
    rows = [{"step": step, "faults": [str(step)]} for step in range(1, 6)]
    rows += [{"step": step} for step in range(6, 101)]
    check_skipped(rows)
    rows.append({"step": 101, "faults": ["b"]})  # the first has left the window
    check_skipped(rows)
    last = {"step": 102, "faults": ["c", "d"]}
    check_skipped([*rows, last])
    with pytest.raises(InputError, match=r"6 of the last 100 steps were skipped, more than 5; at step 102: c; d; low"):
        check_skipped([*rows[:-2], {"step": 100, "faults": ["a"]}, rows[-1], last])


def test_a_reward_that_raises_is_named_with_its_prompt_and_place():
    def fussy(pixels, prompts):
        if "a black square" in prompts:
            raise KeyError("black")
        return pixels.flatten(1).mean(1)

    reward = WeightedSum({"redness": 1.0, "fussy": 1.0}, {"fussy": fussy})
    message = r"reward 'fussy' raised KeyError for 'a black square': 'black' \(test_guards.py, line \d+\)"
    with pytest.raises(InputError, match=message) as caught:
        quick(None, reward)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_reward_that_raises_only_for_a_whole_batch_is_named_too():
    def whole(pixels, prompts):
        if len(pixels) > 1:
            raise ValueError("one at a time")
        return pixels.flatten(1).mean(1)

    with pytest.raises(InputError, match=r"the reward raised ValueError for \['a"):
        quick(None, whole)


def test_a_kl_that_blows_up_stops_the_run_with_advice():
    with pytest.raises(InputError, match=r"blown up at step \d+: ½‖f‖² .* over kl_limit 0.5 x 64 .*raise kl_weight"):
        quick(
            None, WeightedSum({"redness": 500.0}), max_train_steps=200, learning_rate=1.0, kl_weight=0.0, kl_limit=0.5
        )


def test_pictures_that_blow_up_stop_the_run_with_advice(tmp_path):
    generator, network = small()
    generator.to_pixels = lambda pixels: (pixels - 0.5).mul(2).add(0.5).clamp(0, 1)
    settings = TrainConfig(
        max_train_steps=400, train_batch_size=4, learning_rate=0.3, kl_weight=0.0, kl_limit=0, clipping_limit=0.2
    )
    with pytest.raises(InputError, match=r"clipped pixel values has risen by 0\.\d+, over clipping_limit 0.2; raise"):
        train(
            generator,
            network,
            WeightedSum({"brightness": 50.0}),
            PROMPTS,
            settings,
            output_dir=tmp_path,
            progress=False,
        )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[0]["clipped"] < 0.8
    assert [row["clipped"] - rows[0]["clipped"] <= 0.2 for row in rows] == [True] * (len(rows) - 1) + [False]
    assert checkpoints(tmp_path)[-1].name == f"checkpoint-{rows[-2]['step']:06d}"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reward_that_raises_leaves_a_checkpoint_of_the_last_good_step(tmp_path, processes):
    def run(output, fails):
        def reward(pixels, prompts):
            reward.calls += 1
            if 0 < fails <= reward.calls:
                raise ValueError("no more")
            return pixels.flatten(1).mean(1)

        reward.calls = 0
        member = WeightedSum({"own": 1.0}, {"own": reward})
        try:
            return [row["loss"] for row in quick(output, member, max_train_steps=5)[1].history]
        except Exception as error:
            return str(error)

    messages = on_ranks(processes, lambda: run(tmp_path, 4 if os.environ["RANK"] == str(processes - 1) else 0))
    assert "reward 'own' raised ValueError for" in messages[-1]
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-000003"]
    assert json.loads((tmp_path / "process.json").read_text())["ended"] == messages[0].splitlines()[0]
    if processes == 1:
        assert on_ranks(1, lambda: run(tmp_path, 0))[0] == on_ranks(1, lambda: run(None, 0))[0][3:]


@pytest.mark.parametrize(("dimensions", "limit"), [(1, 32.0), (64, 32.0), (1024, 512.0)])
def test_a_noise_of_few_dimensions_may_be_moved_by_several_deviations(dimensions, limit):
    guard = BlowUp(TrainConfig(), dimensions)
    guard.check(1, {"kl": limit, "clipped": 0.0})
    with pytest.raises(InputError, match=rf"over kl_limit 0.5 x {max(dimensions, 64)}"):
        guard.check(2, {"kl": 1.001 * limit, "clipped": 0.0})


def test_limits_of_zero_never_stop():
    first, later = {"kl": 1e9, "clipped": 0.1}, {"kl": 1e9, "clipped": 0.61}
    never, clipping = (BlowUp(TrainConfig(kl_limit=0, clipping_limit=limit), 4) for limit in (0, 0.5))
    for step, row in ((1, first), (2, later)):
        never.check(step, row)
    clipping.check(1, first)
    with pytest.raises(InputError, match="over clipping_limit 0.5"):
        clipping.check(2, later)


def test_a_resumed_run_measures_clipping_against_its_first_step(tmp_path):
    def run(steps, level):
        generator, network = small()
        generator.to_pixels = lambda pixels: (pixels - 0.5).mul(level).add(0.5).clamp(0, 1)
        settings = TrainConfig(max_train_steps=steps, train_batch_size=4, clipping_limit=0.2)
        train(generator, network, WeightedSum({"redness": 1.0}), PROMPTS, settings, output_dir=tmp_path, progress=False)

    run(2, 1.0)
    with pytest.raises(InputError, match=r"blown up at step 3: the share of clipped pixel values has risen by"):
        run(4, 100.0)


def test_a_first_step_without_gradient_is_refused():
    generator, network = small()
    constant = torch.nn.Parameter(torch.ones(()))
    generator.module.register_forward_hook(lambda module, inputs, output: output.detach() + 0 * constant)
    with pytest.raises(InputError, match="no gradient reaches the noise network"):
        train(
            generator, network, WeightedSum({"redness": 1.0}), PROMPTS, TrainConfig(max_train_steps=2), progress=False
        )
