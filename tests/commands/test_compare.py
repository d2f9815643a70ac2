import json

import pytest
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_generator
from hypernoise.methods.finetune import LoRATune
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    """A user's own pipeline, prompts, noise network and fine-tuned LoRA, and the flags that name them."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\na green cross\n")
    for kind in (LoRANoise, LoRATune):
        network = kind(DiffusionGenerator(sd_pipeline()), rank=2)
        disturb(network)
        save_adapter(network, tmp_path / kind.kind)
    return [
        "compare", "--generator", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt"),
        "--rewards", "redness=20", "--watched", "blueness", "--noises", "2", "--batch-size", "4", "--device", "cpu",
        "--adapter", str(tmp_path / "lora"), "--finetuned", str(tmp_path / "finetune"),
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip


def test_methods_on_a_users_own_pipeline(tiny, tmp_path, capsys):
    methods = ["--methods", "best-of-2", "hypernoise", "finetune", "hypernoise-reno-2", "reno-2", "plain"]
    assert main([*tiny, *methods, "--report"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = {row["method"]: row for row in summary["results"]}
    assert list(rows) == ["plain", "best-of-2", "hypernoise", "finetune", "hypernoise-reno-2", "reno-2"]
    assert (summary["command"], summary["prompts"]["count"]) == ("compare", 3)
    assert [row["denoiser_forwards"] for row in rows.values()] == [1, 2, 2, 1, 3, 2]
    assert [row["denoiser_backwards"] for row in rows.values()] == [0, 0, 0, 0, 1, 1]
    assert rows["plain"]["kl"] == 0 < rows["hypernoise"]["kl"]
    assert rows["finetune"]["kl"] is None
    assert rows["finetune"]["reward"] != rows["plain"]["reward"]
    assert rows["best-of-2"]["reward"] >= rows["plain"]["reward"]
    assert rows["hypernoise"]["score"] is None
    assert rows["hypernoise"]["watched_reward"] is not None
    assert f"{rows['reno-2']['reward']:.3f}" in printed
    assert (tmp_path / "out" / "pareto.svg").read_text().startswith("<svg")
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 150 + 6 * 134
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 3 * 6
    assert 'id="verdict"' not in page  # nothing is judged
    before = summary["results"]
    assert main([*tiny, *methods]) == 0  # all is found: even the times are those of the first run
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["results"] == before


def test_shards_end_with_the_table(tiny, tmp_path, capsys):
    assert main([*tiny, "--methods", "best-of-2", "--shard", "0/2"]) == 0
    assert "4 batches are left to other shards" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main([*tiny, "--methods", "best-of-2", "--shard", "1/2"]) == 0
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["results"]) == 4


@pytest.mark.slow
def test_on_scenes_the_judge_decides(tmp_path, capsys):
    network = LoRANoise(load_generator("scenes", device="cpu"), rank=2)
    disturb(network, 0.05)
    save_adapter(network, tmp_path / "adapter")
    call = ["compare", "--judged", "2", "--noises", "2", "--device", "cpu", "--adapter", str(tmp_path / "adapter")]
    methods = ["--methods", "hypernoise", "best-of-2", "prompt-search-2"]
    assert main([*call, *methods, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert [row["method"] for row in rows] == ["plain", "hypernoise", "best-of-2", "prompt-search-2"]
    assert len(rows[0]["categories"]) == 6
    assert rows[2]["reward"] > rows[0]["reward"]
    assert rows[2]["gain_ci95"][0] <= rows[2]["gain"] <= rows[2]["gain_ci95"][1]
    evaluated = ["evaluate", "scenes", "--judged", "2", "--noises", "2", "--steps", "1", "--device", "cpu"]
    assert main([*evaluated, "--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "e")]) == 0
    plain, ours = json.loads((tmp_path / "e" / "summary.json").read_text())["results"]
    for one, other in ((rows[0], plain), (rows[1], ours)):  # the two commands agree on the same noises
        assert one["score"] == pytest.approx(other["score"])
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-4)
        assert one["artefacts"] == pytest.approx(other["artefacts"], abs=1e-4)
        assert one["diversity"] == pytest.approx(other["diversity"], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "best"], "unknown method 'best'"),
        (["--methods", "hypernoise"], "needs --adapter DIR"),
        (["--noises", "0"], "--noises must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--steps", "0"], "--steps takes numbers from 1"),
        (["--shard", "2/2"], "--shard takes k/n with k below n"),
        (["--shard", "half"], "--shard takes k/n with k below n"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--rewards", "scene"], "unknown reward 'scene'; did you mean 'scenes'"),
        (["--prompts", "nowhere.txt", "--rewards", "redness"], "prompts 'nowhere.txt' cannot be read"),
        (["--rewriter", "http://localhost:1/v1"], "--rewriter-model names the model"),
        (["--methods", "hypernoise", "--adapter", "nowhere"], "no adapter at nowhere"),
        (["--methods", "plain", "--adapter", "nowhere"], "no adapter at nowhere"),
        (["--prompts", "README.md"], "name what the methods search by"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, arguments, message):
    assert main(["compare", *arguments, "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()
