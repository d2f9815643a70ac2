"""Runs that are killed or fail resume to the same numbers as uninterrupted ones."""

import errno
import os
import random
import resource
import shutil
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from hypernoise.errors import InputError
from hypernoise.generators.module import ModuleGenerator
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints, damage, newest_whole
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train
from hypernoise.training.metrics import rows_of
from hypernoise.training.processes import stop_requested
from tests.training.ranks import on_ranks, start_ranks
from tests.training.test_trainer import PROMPTS, build, config, same, state


def small():
    """A generator and a noise network whose steps take a millisecond."""
    draw = torch.Generator().manual_seed(3)
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 48), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 4, 4)))
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw))
    return ModuleGenerator(decoder, noise_shape=(4,)), ResidualNoise((4,), width=8, depth=1)


def quick(output=None, reward=None, resume=True, **changes):
    generator, network = small()
    settings = TrainConfig(
        **{
            "max_train_steps": 6,
            "train_batch_size": 4,
            "learning_rate": 1e-2,
            "kl_weight": 0.1,
            "kl_limit": 0,
            **changes,
        }
    )
    reward = reward or WeightedSum({"redness": 5.0})
    result = train(
        generator, network, reward, PROMPTS, settings, output_dir=output, resume_from_checkpoint=resume, progress=False
    )
    return network, result


def wait_for_rows(folder, count, processes):
    deadline = time.time() + 120
    while len(rows_of(folder)) < count:
        assert time.time() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_step_it_resumes_to_the_same_lora_bit_for_bit(sd_pipeline, tmp_path, processes):
    """Twice in a row, each time at a random moment."""
    chance = random.Random(processes)

    def run(output, pause=0.0):
        generator, network = build(sd_pipeline)
        reward = WeightedSum({"redness": 20.0, "brightness": 1.0})

        def slow(pixels, prompts):
            time.sleep(pause)
            return pixels.flatten(1).mean(1)

        settings = config(max_train_steps=6, checkpointing_steps=1, validation_steps=1, kl_limit=0)
        train(generator, network, reward, PROMPTS, settings, validation_reward=slow, output_dir=output, progress=False)
        return {name: tensor.tolist() for name, tensor in network.trainable_state().items()}

    whole = on_ranks(processes, lambda: run(tmp_path / "whole"))[0]
    for rows in (1, 3):
        ranks = start_ranks(processes, lambda: run(tmp_path / "killed", pause=0.3))
        wait_for_rows(tmp_path / "killed", rows, ranks)
        time.sleep(chance.random() * 0.4)
        for rank in ranks:
            os.kill(rank.pid, signal.SIGKILL)
            rank.join()
    assert 1 <= len(checkpoints(tmp_path / "killed")) <= 2
    assert len(rows_of(tmp_path / "killed")) < 6
    resumed = on_ranks(processes, lambda: run(tmp_path / "killed"))
    assert resumed == [whole] * processes
    assert [row["loss"] for row in rows_of(tmp_path / "killed")] == [row["loss"] for row in rows_of(tmp_path / "whole")]
    last = [checkpoints(tmp_path / name)[-1] / "adapter_model.safetensors" for name in ("whole", "killed")]
    assert same(*map(load_file, last))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training_state.pt", "state.json", "sha256.json"])
@pytest.mark.parametrize("how", ["cut short", "changed", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, name, how):
    whole, _ = quick(max_train_steps=6)
    quick(tmp_path, max_train_steps=4, checkpointing_steps=2)
    file = tmp_path / "checkpoint-000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content if how == "changed" else content[: len(content) // 2])
    network, result = quick(tmp_path, max_train_steps=6, checkpointing_steps=2)
    assert "checkpoint-000004 is damaged" in capsys.readouterr().err
    assert [row["step"] for row in result.history] == [3, 4, 5, 6]
    assert same(state(network), state(whole))
    assert [damage(folder) for folder in checkpoints(tmp_path)] == ["", ""]


def test_folders_of_other_names_beside_checkpoints_are_passed_over(tmp_path):
    quick(tmp_path, max_train_steps=2)
    for name in ("checkpoint-best", "checkpoint-000003.bak"):
        shutil.copytree(tmp_path / "checkpoint-000002", tmp_path / name)
    assert quick(tmp_path, max_train_steps=3)[1].step == 3
    assert (tmp_path / "checkpoint-best").is_dir()


@pytest.mark.parametrize("sums", ["[]", "{}", "3"])
def test_sums_that_do_not_name_every_file_are_damage(tmp_path, capsys, sums):
    quick(tmp_path, max_train_steps=4, checkpointing_steps=2)
    (tmp_path / "checkpoint-000004" / "sha256.json").write_text(sums)
    (tmp_path / "checkpoint-000004" / "training_state.pt").write_bytes(b"")
    _, result = quick(tmp_path, max_train_steps=5)
    message = capsys.readouterr().err
    assert "checkpoint-000004 is damaged (training_state.pt is not the file that sha256.json records)" in message
    assert f"resuming from {tmp_path / 'checkpoint-000002'} (" in message
    assert f"resuming from {tmp_path / 'checkpoint-000004'}" not in message
    assert result.history[0]["step"] == 3


def test_a_file_in_a_checkpoints_place_is_a_damaged_one(tmp_path, capsys):
    quick(tmp_path, max_train_steps=2)
    (tmp_path / "checkpoint-000004").write_text("a download that was cut off")
    assert quick(tmp_path, max_train_steps=3)[1].history[0]["step"] == 3
    assert "checkpoint-000004 is damaged" in capsys.readouterr().err


def test_metrics_that_are_no_rows_are_passed_over(tmp_path):
    quick(tmp_path, max_train_steps=2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n3\n{"loss": 1}\n{"step": "4"}\n')
    quick(tmp_path, max_train_steps=3)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; name a directory"):
        quick(tmp_path / "file")


def test_what_a_killed_save_left_is_removed(tmp_path):
    quick(tmp_path, max_train_steps=4, checkpointing_steps=2)
    (tmp_path / ".checkpoint-000006-x1y2z3").mkdir()
    for left in (".adapter-abc", "adapter/.adapter-abc"):
        (tmp_path / left).mkdir(parents=True)
    (tmp_path / ".metrics.jsonl.123.tmp").write_text("")
    _, result = quick(tmp_path, max_train_steps=5)
    assert [row["step"] for row in result.history] == [5]
    assert not [file.name for file in tmp_path.rglob("*") if file.name.startswith(".")]


def test_a_kill_in_the_middle_of_a_deletion_leaves_the_newest_checkpoint(tmp_path, monkeypatch):
    own = shutil.rmtree

    def die(folder, **settings):
        if folder.name == "checkpoint-000001" and folder.exists():
            (folder / "state.json").unlink()
            raise KeyboardInterrupt
        own(folder, **settings)

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path, max_train_steps=3, checkpointing_steps=1, checkpoints_total_limit=1)
    monkeypatch.setattr(shutil, "rmtree", own)
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-000002", [])
    quick(tmp_path, max_train_steps=3, checkpoints_total_limit=1)
    assert [folder.name for folder in tmp_path.glob("*checkpoint-*")] == ["checkpoint-000003"]


def test_the_same_run_ends_in_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        quick(tmp_path / name, max_train_steps=3)
    for file in (tmp_path / "a" / "checkpoint-000003").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "checkpoint-000003" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_an_output_a_signal_does_what_it_does_elsewhere(number):
    def reward(pixels, prompts):
        os.kill(os.getpid(), number)
        return pixels.flatten(1).mean(1)

    def own_handler(*_):
        raise ZeroDivisionError

    before = signal.signal(number, own_handler)
    try:
        with pytest.raises(InputError, match="the reward raised ZeroDivisionError"):
            quick(None, reward)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("what", ["sample grid", "metrics.jsonl"])
def test_a_disk_full_for_any_other_file_is_one_line(tmp_path, monkeypatch, what):
    quick(tmp_path, max_train_steps=2)

    def full(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    place = "PIL.Image.Image.save" if what == "sample grid" else "hypernoise.training.metrics.write_text"
    monkeypatch.setattr(place, full)
    with pytest.raises(InputError, match=rf"the {what} cannot be written \(No space left on device\); the checkpoints"):
        quick(tmp_path, max_train_steps=4, validation_steps=1, validation_prompts=("a ring", "a cross"))
    assert tmp_path / "checkpoint-000002" in checkpoints(tmp_path)
    assert not any(damage(folder) for folder in checkpoints(tmp_path))


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over(tmp_path):
    quick(tmp_path, max_train_steps=2, checkpointing_steps=1)
    for folder in checkpoints(tmp_path):
        (folder / "training_state.pt").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"every checkpoint in .* is damaged: checkpoint-000002 is damaged \(training_state.pt"
    ):
        quick(tmp_path, max_train_steps=4)
    assert len(checkpoints(tmp_path)) == 2


def test_sigterm_saves_and_says_which_signal_it_was(tmp_path):
    def reward(pixels, prompts):
        reward.calls += 1
        if reward.calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return pixels.flatten(1).mean(1)

    reward.calls = 0
    before = signal.getsignal(signal.SIGTERM)
    _, result = quick(tmp_path, reward, max_train_steps=50)
    assert (result.step, result.finished, 128 + result.signal) == (3, False, 143)
    assert result.checkpoint == tmp_path / "checkpoint-000003"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path):
    def reward(pixels, prompts):
        reward.calls += 1
        if reward.calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return pixels.flatten(1).mean(1)

    reward.calls = 0
    _, result = quick(tmp_path, reward, max_train_steps=3)
    assert (result.step, result.finished, result.signal) == (3, True, signal.SIGTERM)


def test_a_signal_to_one_process_stops_both_at_one_step(tmp_path):
    def run():
        def reward(pixels, prompts):
            reward.calls += 1
            if reward.calls == 3 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            return pixels.flatten(1).mean(1)

        reward.calls = 0
        result = quick(tmp_path, reward, max_train_steps=50)[1]
        return result.step, result.signal, str(result.checkpoint)

    assert on_ranks(2, run) == [(3, signal.SIGTERM, str(tmp_path / "checkpoint-000003"))] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_sigterm_while_saving_changes_nothing(tmp_path, monkeypatch, processes):
    """A cluster signals every process, and torchrun passes it on again."""
    from hypernoise.training import run as running

    own = running.write_adapter

    def slow(*args, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        return own(*args, **settings)

    monkeypatch.setattr(running, "write_adapter", slow)

    def run():
        def reward(pixels, prompts):
            reward.calls += 1
            if reward.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                if os.environ["RANK"] == "1":  # again, while it waits for the first process to save
                    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return pixels.flatten(1).mean(1)

        reward.calls = 0
        result = quick(tmp_path, reward, max_train_steps=50, checkpointing_steps=100)[1]
        return result.step, result.signal

    assert on_ranks(processes, run) == [(3, signal.SIGTERM)] * processes
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-000003", [])


@pytest.fixture
def ctrl_c():
    """Restores Python's handler of Ctrl-C, which a background process does not inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_at_once_unless_a_launcher_passed_on_the_first(monkeypatch):
    clock = iter([10.0, 10.1, 12.0])
    monkeypatch.setattr("hypernoise.training.processes.time.monotonic", lambda: next(clock))
    with stop_requested() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert stop() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path):
    quick(tmp_path, max_train_steps=2)

    def run():
        limit = (tmp_path / "checkpoint-000002" / "training_state.pt").stat().st_size - 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow beyond: writing fails half-way
        with pytest.raises(InputError) as caught:
            quick(tmp_path, max_train_steps=4)
        return str(caught.value)

    (message,) = on_ranks(1, run)
    assert "the checkpoint at step 4 cannot be written (File too large); the earlier checkpoints" in message
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-000002", [])
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    network, _ = quick(tmp_path, max_train_steps=4)
    assert same(state(network), state(quick(max_train_steps=4)[0]))


def test_the_last_few_are_kept(tmp_path):
    quick(tmp_path, max_train_steps=6, checkpointing_steps=1, checkpoints_total_limit=3)
    assert [folder.name for folder in checkpoints(tmp_path)] == [f"checkpoint-00000{step}" for step in (4, 5, 6)]


def test_a_generator_loaded_otherwise_does_not_continue_a_run(tmp_path):
    def run(steps, **loading):
        generator = load_generator("scenes", device="cpu", **loading)
        settings = TrainConfig(max_train_steps=steps, train_batch_size=1, mixed_precision="no")
        network = LoRANoise(generator, rank=1)
        train(generator, network, WeightedSum({"redness": 1.0}), PROMPTS, settings, output_dir=tmp_path, progress=False)

    run(1)
    with pytest.raises(InputError, match="was trained with .*noise_shape.*; resume with the same settings"):
        run(2, size=(32, 32))
    run(2)
