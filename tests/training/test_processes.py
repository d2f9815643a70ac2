"""The same numbers whatever number of processes shares the batch."""

import json
import os
import subprocess
import sys

import pytest

from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train
from tests.training.ranks import free_port, on_ranks
from tests.training.test_resume import quick
from tests.training.test_trainer import PROMPTS, build, config

PARENT = os.getpid()


def rows(sd_pipeline, settings, output=None):
    """The rows of a run with all that processes must share: running scales, a validation reward, chance in a reward."""
    generator, network = build(sd_pipeline)
    reward = WeightedSum({"redness": 20.0, "brightness": 5.0})
    watched = WeightedSum({"greenness": 1.0})
    return train(
        generator, network, reward, PROMPTS, settings, validation_reward=watched, output_dir=output, progress=False
    ).history


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        names = ("loss", "reward", "kl", "reward/redness", "reward/brightness", "gradient_norm", "validation_reward")
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (a["step"], name)


def test_one_two_and_four_processes_give_the_same_losses(sd_pipeline):
    settings = config(max_train_steps=4, validation_steps=1)
    one = rows(sd_pipeline, settings)
    assert len({round(row["loss"], 6) for row in one}) == 4
    for count in (2, 4):
        found = on_ranks(count, lambda: rows(sd_pipeline, settings))
        for rank in range(count):
            close(found[rank], one)


def test_accumulation_over_two_processes_gives_the_same_losses(sd_pipeline):
    def plain(**changes):
        generator, network = build(sd_pipeline)
        reward = WeightedSum({"redness": 20.0})
        return train(generator, network, reward, PROMPTS, config(max_train_steps=3, **changes), progress=False).history

    found, _ = on_ranks(2, lambda: plain(gradient_accumulation_steps=2))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in plain()], rel=1e-5)


def test_a_bad_number_on_one_process_is_skipped_by_all_and_named(sd_pipeline, tmp_path):
    bad = "a green cross"

    def reward(pixels, prompts):
        scores = 20 * pixels.flatten(1).mean(1)
        return scores * float("nan") if prompts == [bad] else scores

    def run():
        generator, network = build(sd_pipeline)
        settings = config(max_train_steps=5, train_batch_size=2)
        result = train(generator, network, reward, PROMPTS, settings, output_dir=tmp_path, progress=False)
        return result.skipped, result.history

    (skipped, history), (other, same) = on_ranks(2, run)
    assert skipped == other == 2  # ten samples of five prompts
    assert [row.get("skipped", 0) for row in history] == [row.get("skipped", 0) for row in same]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [line["faults"] for line in lines if "faults" in line]
    assert [faults[0] for faults in rows] == ["the reward is nan for 'a green cross'"] * 2


@pytest.mark.parametrize(("processes", "accumulation", "fits"), [(3, 1, 12), (2, 4, 16), (1, 1, 10)])
def test_a_batch_that_does_not_divide_names_the_multiple(processes, accumulation, fits):
    settings = TrainConfig(train_batch_size=fits, gradient_accumulation_steps=accumulation)
    assert settings.samples_per_round(processes) == fits // processes // accumulation
    if fits != 10:
        settings = TrainConfig(train_batch_size=fits - accumulation, gradient_accumulation_steps=accumulation)
        message = f"must be a multiple of {processes * accumulation} .* the next that fits is {fits}"
        with pytest.raises(InputError, match=message):
            settings.samples_per_round(processes)


def test_the_environment_of_accelerate_launch_changes_no_number():
    """The recipe decides precision, accumulation and compilation, not accelerate's environment."""

    def norms(**env):
        def run():
            os.environ.update(env)
            return [row["gradient_norm"] for row in quick(max_train_steps=2)[1].history]

        return on_ranks(1, run)[0]

    environment = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    }
    assert norms(**environment) == norms()


def test_what_accelerate_cannot_start_with_is_one_line(sd_pipeline, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(InputError, match="accelerate cannot start .*: ImportError: Megatron"):
        rows(sd_pipeline, config(max_train_steps=1))


@pytest.mark.slow
def test_two_launchers_with_two_ranks_each_meet_and_give_the_same_losses(sd_pipeline, tmp_path):
    """As two nodes would, over loopback, through the command line."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\nrewards: {{redness: 20}}\n"
        "max_train_steps: 3\ntrain_batch_size: 4\nlearning_rate: 1e-2\nkl_weight: 0.1\nlr_warmup_steps: 2\n"
        "lora: {rank: 4}\nmixed_precision: no\n"
    )

    def command(output):
        return ["hypernoise.cli", "train", str(recipe), "--output-dir", str(tmp_path / output), "--device", "cpu"]

    port, env = str(free_port()), {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *flags, "-m", *command("four")],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [node.communicate(timeout=500)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    subprocess.run([sys.executable, "-m", *command("one")], env=env, check=True, capture_output=True)
    four, one = (
        [json.loads(line) for line in (tmp_path / output / "metrics.jsonl").read_text().splitlines()]
        for output in ("four", "one")
    )
    assert len(four) == 3
    for a, b in zip(four, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
    assert (tmp_path / "four" / "adapter" / "hypernoise.json").exists()
