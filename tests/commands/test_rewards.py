"""`hypernoise evaluate rewards`, and what `hypernoise train` says of a watched reward."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.evaluation.rewards import TOTAL, interval, read_picture, score
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.rewards.pixel import brightness, redness
from tests.conftest import disturb

PROMPTS = ["a red circle", "two blue rings", "a green cross"]


@pytest.fixture
def album(tmp_path):
    """Pictures of two sizes and their prompts, named so that the order of names is theirs."""
    folder = tmp_path / "album"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(12, 8), (12, 8), (9, 9)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    network = LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=2)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["--generator", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]


def lines(file):
    return list(csv.DictReader(file.open()))


def test_a_folder_is_scored_member_by_member(album, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["evaluate", "rewards", "--pictures", str(album), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*call, "--rewards", "redness=2", "brightness", "--device", "cpu", "--output", str(out)]) == 0
    rows = lines(out / "scores.csv")
    assert [(r["method"], r["file"], r["prompt"]) for r in rows] == [
        ("pictures", f"{i}.png", prompt) for i, prompt in enumerate(PROMPTS)
    ]
    for i, found in enumerate(rows):
        pixels = read_picture(album / f"{i}.png")[None]
        red, bright = redness(pixels, []).item(), brightness(pixels, []).item()
        assert float(found["redness"]) == pytest.approx(red, abs=1e-6)
        assert float(found["brightness"]) == pytest.approx(bright, abs=1e-6)
        assert float(found[TOTAL]) == pytest.approx(2 * red + bright, abs=1e-6)
    (row,) = json.loads((out / "summary.json").read_text())["results"]
    assert (row["pictures"], row["prompts"]) == (3, 3)
    assert row["reward"] == pytest.approx(np.mean([float(r[TOTAL]) for r in rows]), abs=1e-6)
    low, high = row["rewards"]["redness"]["ci95"]
    assert low < row["rewards"]["redness"]["mean"] < high
    printed = capsys.readouterr().out
    assert f"{row['reward']:.4f}" in printed
    assert "gain" not in printed


def test_what_generate_has_written_is_scored_with_its_prompts(tiny, tmp_path):
    drawn = tmp_path / "drawn"
    assert main(["generate", *PROMPTS, *tiny[:2], "--images", "2", "--device", "cpu", "--output", str(drawn)]) == 0
    call = ["evaluate", "rewards", "--pictures", str(drawn), "--rewards", "redness", "--device", "cpu"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    rows = lines(tmp_path / "out" / "scores.csv")
    assert [r["prompt"] for r in rows] == [prompt for prompt in PROMPTS for _ in range(2)]
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert (row["pictures"], row["prompts"]) == (6, 3)


def test_plain_and_adapter_are_drawn_from_the_same_noise(tiny, tmp_path):
    out = tmp_path / "out"
    call = ["evaluate", "rewards", *tiny, "--rewards", "redness", "--noises", "2", "--output", str(out)]
    assert main([*call, "--adapter", str(tmp_path / "adapter"), "--batch-size", "4"]) == 0
    plain, ours = json.loads((out / "summary.json").read_text())["results"]
    assert [plain["method"], ours["method"]] == ["plain", "hypernoise"]
    assert [plain["adapter"], ours["adapter"]] == [None, str(tmp_path / "adapter")]
    assert ours["rewards"]["redness"]["gain"] == pytest.approx(ours["reward"] - plain["reward"], abs=1e-6)
    assert ours["rewards"]["redness"]["gain"] != 0
    rows = lines(out / "scores.csv")
    assert len(rows) == 12
    for found in rows:  # as saved, to the 256 levels of a PNG
        saved = redness(read_picture(out / found["file"])[None], []).item()
        assert saved == pytest.approx(float(found["redness"]), abs=2e-3)

    other = tmp_path / "other"
    assert main([*call[:-1], str(other), "--batch-size", "2"]) == 0  # however it is batched
    again = lines(other / "scores.csv")
    assert [float(r["redness"]) for r in again] == pytest.approx([float(r["redness"]) for r in rows[:6]], abs=1e-5)


def test_intervals_resample_prompts_with_all_their_pictures():
    """Against the closed form: pictures of one prompt that say the same do not count twice."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=200)
    prompts = [f"prompt {i}" for i in range(200)]
    once = interval(values, prompts)
    twice = interval(values.repeat(2), [prompt for prompt in prompts for _ in range(2)])
    assert once == pytest.approx(twice)
    half = 1.96 * values.std() / 200**0.5
    assert once == pytest.approx([values.mean() - half, values.mean() + half], abs=0.15 * half)


def test_scoring_groups_pictures_of_one_size_and_keeps_their_order():
    seen = []

    def watched(pixels, prompts):
        seen.append(list(pixels.shape))
        return pixels[:, 0, 0, 0]

    sizes = [4, 4, 4, 6, 4]
    pictures = [(f"{i}", "x", torch.full((3, size, size), i / 10)) for i, size in enumerate(sizes)]
    found = score(WeightedSum({"mine": 2.0}, {"mine": watched}), pictures, batch_size=2)
    assert seen == [[2, 3, 4, 4], [1, 3, 4, 4], [1, 3, 6, 6], [1, 3, 4, 4]]
    assert found.scores["mine"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert found.scores[TOTAL] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_a_picture_that_a_reward_refuses_is_named(album, tmp_path, capsys):
    call = ["evaluate", "rewards", "--pictures", str(album), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*call, "--rewards", "scenes", "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    assert "hypernoise: 0.png to 1.png: reward 'scenes-match' reads 64x64 pictures" in capsys.readouterr().err


def test_one_prompt_has_no_interval(album, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("the same\n" * 3)
    call = ["evaluate", "rewards", "--pictures", str(album), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*call, "--rewards", "redness", "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert row["rewards"]["redness"]["ci95"] is None
    assert "(a single prompt)" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line_and_leave_nothing(album, tmp_path, capsys):
    out = tmp_path / "out"
    prompts, red = ["--prompts", str(tmp_path / "prompts.txt")], ["--rewards", "redness"]
    pictures = ["--pictures", str(album)]

    def said(*flags):
        capsys.readouterr()
        assert main(["evaluate", "rewards", *flags, "--device", "cpu", "--output", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert not out.exists()
        return line

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty holds no picture (.png," in said(*red, "--pictures", str(empty))
    assert "with --pictures name a file, a line per picture" in said(*red, *pictures, "--prompts", "scenes")
    assert "'redness' is named twice" in said(*pictures, *prompts, *red, "redness=2")
    assert "a weight is given as redness=0.5" in said(*pictures, *prompts, "--rewards", "redness:0.5")
    assert "prompts '" in (line := said(*red, *pictures, "--prompts", str(tmp_path / "none.txt")))
    assert "none.txt' cannot be read: No such file" in line
    assert "say what to score by" in said(*pictures)
    assert "give --pictures FOLDER" in said(*red)
    assert "leave out --adapter" in said(*red, *pictures, "--adapter", "a")
    assert "there is no folder" in said(*red, "--pictures", str(tmp_path / "none"))
    assert "has no summary.json of hypernoise generate" in said(*red, *pictures)
    assert "unknown reward 'rednes'; did you mean 'redness'" in said("--rewards", "rednes", *pictures, *prompts)
    assert "--seed must be from 0" in said(*red, *pictures, *prompts, "--seed", "-1")
    assert "--batch-size must be at least 1" in said(*red, *pictures, *prompts, "--batch-size", "0")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert "has 3 pictures and" in said(*red, *pictures, *prompts)
    (album / "summary.json").write_text(json.dumps({"results": [{"file": "../prompts.txt", "prompt": "x"}]}))
    assert "names '../prompts.txt', which is not a picture in that folder" in said(*red, *pictures)
    (album / "summary.json").write_text(json.dumps({"results": [{"file": "0.png", "prompt": "x"}]}))
    (album / "0.png").write_text("no picture")
    assert "cannot be read as a picture" in said(*red, *pictures)
    assert "no adapter at nowhere" in said(*red, "--prompts", "scenes", "--count", "2", "--adapter", "nowhere")


def test_the_report_has_a_table_per_reward(album, tmp_path):
    out = tmp_path / "out"
    call = ["evaluate", "rewards", "--pictures", str(album), "--prompts", str(tmp_path / "prompts.txt"), "--report"]
    assert main([*call, "--rewards", "redness=2", "brightness", "--device", "cpu", "--output", str(out)]) == 0
    page = (out / "report.html").read_text()
    (row,) = json.loads((out / "summary.json").read_text())["results"]
    for name in ("redness", "brightness", TOTAL):
        assert f"<h2>Reward {name}</h2>" in page
        assert f"<td>{row['rewards'][name]['mean']:.4f}" in page
    assert f"none: {album} was given" in page
