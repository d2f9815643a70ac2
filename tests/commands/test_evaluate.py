import json

import pytest
import torch
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise

CATEGORIES = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
CALL = ["evaluate", "scenes", "--judged", "1", "--noises", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters that change the noise, each its own way."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        network = LoRANoise(load_generator("scenes", device="cpu"), rank=2, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.trainable_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        save_adapter(network, folder)
        folders.append(str(folder))
    return folders


@pytest.mark.slow
def test_base_and_runs_are_judged_on_the_same_noise(tmp_path, capsys, adapters):
    assert main([*CALL, "--adapter", *adapters, "--steps", "1", "2", "--report", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = summary["results"]
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("plain", 1), ("hypernoise", 1), ("plain", 2), ("hypernoise", 2)
    ]  # fmt: skip
    assert [row["denoiser_forwards"] for row in rows] == [1, 2, 2, 3]
    base, ours = rows[:2]
    assert set(base["categories"]) == CATEGORIES
    assert len(ours["runs"]) == 2
    assert ours["reward"] == pytest.approx(sum(run["reward"] for run in ours["runs"]) / 2)
    assert ours["gain"] == pytest.approx(ours["score"] - base["score"])
    assert ours["gain_ci95"] is None  # one prompt a category: its spread is not known
    assert ours["kl"] > 0 == base["kl"]
    assert summary["prompts"]["count"] == 6
    assert len(summary["prompts"]["sha256"]) == 64
    assert f"{ours['reward']:.3f}" in printed
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 6 * 4
    assert "score over steps" in page
    grid = Image.open(tmp_path / "grid.png")
    assert {(30, 140, 60), (200, 50, 40)} & {color for _, color in grid.getcolors(1 << 20)}


@pytest.mark.slow
def test_without_an_adapter_the_generator_is_judged_alone(tmp_path):
    assert main([*CALL, "--steps", "1", "--output", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert (row["method"], row["kl"]) == ("plain", 0.0)


@pytest.mark.slow
def test_shards_end_with_the_table_of_one_process(tmp_path, capsys, adapters):
    call = ["evaluate", "scenes", "--judged", "3", "--noises", "2", "--device", "cpu", "--steps", "1"]
    call += ["--adapter", adapters[0]]
    assert main([*call, "--output", str(tmp_path / "one")]) == 0
    shared = [*call, "--output", str(tmp_path / "two")]
    assert main([*shared, "--shard", "1/2"]) == 0
    assert "2 batches are left to other shards" in capsys.readouterr().err  # the first of plain, and of hypernoise
    assert not (tmp_path / "two" / "summary.json").exists()
    assert main([*shared, "--shard", "0/2"]) == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text())["results"] for name in ("one", "two"))
    assert len(one) == 2
    for row in (*one, *two, *one[1].pop("runs"), *two[1].pop("runs")):
        assert row.pop("seconds_per_image") > 0
    assert one == two
    assert one[1]["gain_ci95"][0] <= one[1]["gain"] <= one[1]["gain_ci95"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to evaluate: scenes, rewards"),
        (["scene"], "unknown evaluation 'scene'; did you mean 'scenes'"),
        (["scenes", "--steps", "0"], "--steps takes numbers from 1"),
        (["scenes", "--steps", "1", "2", "1"], "--steps takes each once, not 1 2 1"),
        (["scenes", "--adapter", "scenes", "scenes"], "--adapter takes each once, not scenes scenes"),
        (["scenes", "--steps", "1001"], "scenes knows 1000 timesteps, so it draws in at most as many steps, not 1001"),
        (["scenes", "--judged", "0"], "--judged must be at least 1"),
        (["scenes", "--shard", "2/2"], "--shard takes k/n with k below n"),
        (["scenes", "--rewards", "scene"], "unknown reward 'scene'; did you mean 'scenes'"),
        (["scenes", "--adapter", "nowhere"], "no adapter at nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, message):
    assert main(["evaluate", *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
