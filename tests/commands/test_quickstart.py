import json

import pytest
from PIL import Image

from hypernoise.cli import main
from hypernoise.training.loop import TrainResult


@pytest.mark.slow
def test_quickstart_trains_judges_and_shows(tmp_path, capsys):
    few = ["--max-train-steps", "3", "--train-batch-size", "2", "--judged", "1"]
    call = ["quickstart", *few, "--device", "cpu"]
    assert main([*call, "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["method"] for row in summary["results"]] == ["plain", "hypernoise"]
    base, ours = summary["results"]
    assert (base["kl"], base["denoiser_forwards"], ours["denoiser_forwards"]) == (0.0, 1, 2)
    assert ours["kl"] > 0
    assert set(base["categories"]) == {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert f"{ours['reward']:.3f}" in printed
    assert Image.open(tmp_path / "before_after.png").width > 500
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    first = (tmp_path / "metrics.jsonl").read_text()
    assert main([*call, "--output-dir", str(tmp_path)]) == 0  # trained already: only judges again
    assert (tmp_path / "metrics.jsonl").read_text() == first
    again = json.loads((tmp_path / "summary.json").read_text())["results"][1]
    assert again["reward"] == ours["reward"]


def test_a_signal_in_the_last_step_leaves_nothing_to_judge(tmp_path, monkeypatch):
    stopped = TrainResult(3, True, [], None, signal=15)
    monkeypatch.setattr("hypernoise.commands.train.train_recipe", lambda *_: stopped)
    assert main(["quickstart", "--device", "cpu", "--output-dir", str(tmp_path)]) == 143
    assert not (tmp_path / "summary.json").exists()
