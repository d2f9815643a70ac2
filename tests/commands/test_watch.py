import json
import os
import re
import signal
import threading
import time

import pytest
from PIL import Image

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.report import POINTS, curves, page, state_line, svg
from hypernoise.training.tracking import check_trackers
from tests.training.ranks import start_ranks
from tests.training.test_resume import quick


def rows(count, **more):
    return [{"step": i + 1, "loss": 1.0 - i, "reward": float(i), "kl": 0.5, **more} for i in range(count)]


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_told_in_a_line_and_its_curves_drawn(tmp_path, capsys):
    quick(tmp_path, steps=4, samples_every=4)
    assert main(["watch", str(tmp_path)]) == 0
    line, file = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 4, reward -?\d\.\d{4}, kl \d\.\d{3}, images per second .*, memory gib .*, done", line)
    assert file == str(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    for title in ("loss", "reward", "reward/redness", "KL as ½‖f‖², nats", "gradient norm before clipping"):
        assert f"<figcaption>{title}</figcaption>" in report
    assert "step-000004: plain above" in report
    assert "http-equiv" not in report
    assert Image.open(tmp_path / "samples" / "step-000004.png").size == (8 * 8 - 4, 2 * 8 - 4)


def test_a_curve_goes_where_its_values_are():
    drawn = svg("a < b", [(1.0, 0.0), (2.0, 10.0), (3.0, 5.0)])
    (path,) = re.findall(r'points="([^"]+)"', drawn)
    places = [tuple(map(float, pair.split(","))) for pair in path.split()]
    assert places == [(58.0, 176.0), (234.0, 10.0), (410.0, 93.0)]
    assert "a &lt; b" in drawn
    assert svg("flat", [(1.0, 2.0)]).count("176.0") == 4  # a single value divides by nothing


def test_a_level_is_drawn_at_its_height_and_within_the_axes(tmp_path):
    drawn = svg("stretch", [(1.0, 0.0), (2.0, 0.5)], level=1.0)
    (height,) = re.findall(r'y1="([\d.]+)"[^>]+stroke-dasharray', drawn)
    (path,) = re.findall(r'points="([^"]+)"', drawn)
    assert float(height) == 10.0  # the top
    assert path == "58.0,176.0 410.0,93.0"
    write(tmp_path, rows(2, lipschitz=0.5, gap_bound=198.0, kl_gap=0.1))
    report = page(tmp_path)
    assert report.count("stroke-dasharray") == 1
    for title in ("Lipschitz constant seen, against 1", "most that the L2 term can leave out, nats"):
        assert f"<figcaption>{title}</figcaption>" in report


def test_long_runs_are_averaged_and_the_whole_kl_is_a_sum():
    found = curves(rows(2 * POINTS, kl_gap=0.25))
    assert found["reward"][:2] == [(1.5, 0.5), (3.5, 2.5)]
    assert len(found["reward"]) == POINTS
    assert found["kl_whole"][0] == (1.0, 0.75)
    assert "watched_reward" not in found


def test_skipped_steps_and_the_time_left_are_told(tmp_path):
    some = [*rows(2), {"step": 3, "skipped": 1, "faults": ["the reward is nan for '<ring>'"], "eta_seconds": 3700.0}]
    write(tmp_path, some)
    assert state_line(some) == "step 3, 1 steps skipped, 1 h 1 min left"
    assert "step 3: the reward is nan for &#x27;&lt;ring&gt;&#x27;" in page(tmp_path)
    assert '<meta http-equiv="refresh" content="9">' in page(tmp_path, 9)


def test_it_waits_until_the_run_is_done(tmp_path, capsys):
    write(tmp_path, [{"step": 1, "eta_seconds": 5.0}])

    def finish():
        time.sleep(0.3)
        write(tmp_path, [{"step": 1, "eta_seconds": 5.0}, {"step": 2, "eta_seconds": 0.0}])

    thread = threading.Thread(target=finish)
    thread.start()
    assert main(["watch", str(tmp_path), "--every", "0.1"]) == 0
    thread.join()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "step 1, 0 h 0 min left"
    assert told[-2] == "step 2, done"


@pytest.mark.parametrize("how", ["stopped", "blown up", "killed"])
def test_it_ends_with_a_run_that_ended_before_its_last_step(tmp_path, capsys, how):
    def reward(pixels, prompts):
        reward.calls += 1
        if reward.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)
        return pixels.flatten(1).mean(1)

    reward.calls = 0
    if how == "blown up":
        with pytest.raises(InputError, match="blown up"):
            quick(tmp_path, WeightedSum({"redness": 500.0}), steps=200, lr=1.0, kl_weight=0.0, kl_limit=0.5)
    elif how == "stopped":
        quick(tmp_path, reward, steps=50)
    else:
        (rank,) = start_ranks(1, lambda: quick(tmp_path, reward, steps=50))
        rank.join()
    assert main(["watch", str(tmp_path), "--every", "0.1"]) == 0
    told = capsys.readouterr().out.splitlines()[-2]
    expected = {"stopped": "stopped by signal 15", "blown up": "blown up at step", "killed": "killed"}
    assert expected[how] in told


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "has no metrics.jsonl: name the --output of a training run" in capsys.readouterr().err
    write(tmp_path, [])
    assert main(["watch", str(tmp_path)]) == 2
    assert "has no row yet" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--every", "-1"]) == 2


def test_trackers_that_are_not_installed_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracker wandb is not installed: pip install 'hypernoise\[wandb\]'"):
        check_trackers(("wandb",), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(InputError, match="tracker wandb needs an output folder"):
        check_trackers(("wandb",), None)


def test_rows_reach_the_trackers_through_accelerate(tmp_path, monkeypatch):
    """A tracker of accelerate's own kind under a known name: which packages are installed plays no part."""
    from accelerate import accelerator
    from accelerate.tracking import GeneralTracker

    kept = []

    class Kept(GeneralTracker):
        name, requires_logging_directory = "kept", False

        def __init__(self, run_name, **settings):
            super().__init__()

        tracker = None

        def store_init_configuration(self, values):
            kept.append(values)

        def log(self, values, step=None, **more):
            kept.append((step, values))

        def finish(self):
            kept.append("finished")

    monkeypatch.setattr("hypernoise.training.trainer.check_trackers", lambda names, folder: None)
    monkeypatch.setattr(accelerator, "filter_trackers", lambda log_with, logging_dir: [Kept("run")])
    _, result = quick(tmp_path, steps=2, trackers=("tensorboard",))
    settings, first, second, last = kept
    assert settings["lr"] == 0.01
    assert (first[0], second[0], last) == (1, 2, "finished")
    assert first[1]["reward"] == result.history[0]["reward"]
    assert "step" not in first[1]
