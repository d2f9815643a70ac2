"""`hypernoise evaluate` on a user's tiny pipeline, with tiny detectors and a VQA model with random weights."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.evaluation.geneval import detection
from hypernoise.evaluation.geneval.benchmark import GenEvalJudge
from hypernoise.evaluation.picture_sheet import HEAD, LABEL, PAD, RIGHT, TILE, WRONG
from hypernoise.evaluation.questions import QuestionJudge
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_generator
from hypernoise.methods.finetune import LoRATune
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards import vqa
from tests.conftest import disturb
from tests.evaluation.geneval.conftest import LINES, tiny_models  # noqa: F401
from tests.rewards.test_vqa import small, tokenizer  # noqa: F401


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    """A pipeline, a noise network and a fine-tuned LoRA, and the command that draws two pictures a prompt with it."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    for kind in (LoRANoise, LoRATune):
        network = kind(DiffusionGenerator(sd_pipeline()), rank=2)
        disturb(network)
        save_adapter(network, tmp_path / kind.kind)
    return [
        "evaluate", "--generator", str(tmp_path / "tiny"), "--num-images-per-prompt", "2", "--batch-size", "4",
        "--device", "cpu", "--output-dir", str(tmp_path / "out"),
    ]  # fmt: skip


@pytest.fixture
def own(tiny, tmp_path):
    """The same on a user's prompts."""
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\na green cross\n")
    rewards = ["--rewards", "redness=20", "--validation-rewards", "blueness"]
    trained = ["--adapter", str(tmp_path / "lora"), "--finetuned", str(tmp_path / "finetune")]
    return [*tiny, "--prompts", str(tmp_path / "prompts.txt"), *rewards, *trained]


@pytest.fixture
def geneval(tiny, tiny_models, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    monkeypatch.setattr(detection, "SHORT", 64)
    judged = ["--judge", tiny_models[0], "--colors", tiny_models[1], "--adapter", str(tmp_path / "lora")]
    return [*tiny, "--prompts", f"geneval:{tmp_path / 'metadata.jsonl'}", *judged]


@pytest.fixture
def questions(tiny, tmp_path, small, tokenizer, monkeypatch):  # noqa: F811
    def load(name, settings):
        return vqa.VqaReward(name, small(name), tokenizer, vqa.VLMS[name], settings)

    monkeypatch.setattr(vqa, "load", load)
    ask(tmp_path, {"a red circle and a blue ring": ["a red circle?", "a blue ring?"], "a ring": ["a ring?"]})
    return [*tiny, "--prompts", f"questions:{tmp_path / 'soft.jsonl'}"]


def ask(folder, questions):
    lines = [
        {"prompt": prompt, "vqa_list": [[one, "Yes"] for one in own], "skills": ["color"] * len(own)}
        for prompt, own in questions.items()
    ]
    (folder / "soft.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_methods_on_a_users_own_pipeline(own, tmp_path, capsys):
    methods = ["--methods", "best-of-2", "hypernoise", "finetune", "reno-2", "plain"]
    assert main([*own, *methods]) == 0
    printed = capsys.readouterr().out
    written = summary(tmp_path / "out")
    rows = {row["method"]: row for row in written["results"]}
    assert list(rows) == ["plain", "best-of-2", "hypernoise", "finetune", "reno-2"]
    assert (written["command"], written["prompts"]["count"]) == ("evaluate", 3)
    assert [row["denoiser_forwards"] for row in rows.values()] == [1, 2, 2, 1, 2]
    assert [row["denoiser_backwards"] for row in rows.values()] == [0, 0, 0, 0, 1]
    assert rows["plain"]["kl"] == 0 < rows["hypernoise"]["kl"]
    assert rows["finetune"]["kl"] is None
    assert rows["finetune"]["reward"] != rows["plain"]["reward"]
    assert rows["best-of-2"]["reward"] >= rows["plain"]["reward"]
    assert rows["hypernoise"]["score"] is None
    assert rows["hypernoise"]["validation_reward"] is not None
    assert f"{rows['reno-2']['reward']:.3f}" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 3 * 5
    assert 'id="verdict"' not in page  # nothing is judged
    with Image.open(tmp_path / "out" / "before_after.png") as sheet:
        assert sheet.size == (LABEL + 3 * (TILE + PAD), HEAD + 5 * (TILE + PAD) + 26)
        assert not {RIGHT, WRONG} & {color for _, color in sheet.getcolors(1 << 20)}
    assert main([*own, *methods]) == 0  # all is found: even the times are those of the first run
    assert summary(tmp_path / "out")["results"] == written["results"]
    assert {Image.open(file).size for file in (tmp_path / "out").rglob("????-?.png")} == {(16, 16)}


def test_several_adapters_are_one_row(own, tmp_path, sd_pipeline):
    network = LoRANoise(DiffusionGenerator(sd_pipeline()), rank=2, seed=1)
    disturb(network, 0.1)
    save_adapter(network, tmp_path / "second")
    adapters = ["--adapter", str(tmp_path / "lora"), str(tmp_path / "second")]
    assert main([*own, "--methods", "hypernoise", *adapters, "--num-inference-steps", "1", "2"]) == 0
    rows = summary(tmp_path / "out")["results"]
    assert [(row["method"], row["inference_steps"]) for row in rows] == [
        ("plain", 1), ("hypernoise", 1), ("finetune", 1), ("plain", 2), ("hypernoise", 2), ("finetune", 2)
    ]  # fmt: skip
    ours = rows[1]
    assert len(ours["runs"]) == 2
    assert ours["reward"] == pytest.approx(sum(run["reward"] for run in ours["runs"]) / 2)
    assert ours["reward_gain"] == pytest.approx(ours["reward"] - rows[0]["reward"])
    assert ours["reward_gain_ci95"][0] <= ours["reward_gain"] <= ours["reward_gain_ci95"][1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 3 * 6
    assert page.count('alt="chart"') == 2


def test_shards_end_with_the_table_of_one_process(own, tmp_path, capsys):
    call = [*own[: own.index("--validation-rewards")], "--methods", "best-of-2"]
    assert main([*call, "--shard", "0/2"]) == 0
    assert "batches left to other shards: 2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main([*call, "--shard", "1/2"]) == 0
    shared = summary(tmp_path / "out")["results"]
    assert main([*call, "--output-dir", str(tmp_path / "alone")]) == 0
    alone = summary(tmp_path / "alone")["results"]
    for row in (*shared, *alone):
        assert row.pop("seconds_per_image") > 0
    assert shared == alone
    assert len(alone) == 2


def test_drawn_judged_by_geneval_and_laid_out(geneval, tmp_path, capsys, monkeypatch):
    assert main(geneval) == 0
    printed = capsys.readouterr().out
    plain, ours = summary(tmp_path / "out")["results"]
    assert ours["kl"] > 0 == plain["kl"]
    assert plain["reward"] is None
    assert list(plain["categories"]) == ["single_object", "counting", "colors"]
    assert plain["score"] == pytest.approx(np.mean(list(plain["categories"].values())))
    assert ours["gain"] == pytest.approx(ours["score"] - plain["score"])
    assert "single_object" in printed
    for row in (plain, ours):  # the official layout
        (folder,) = (tmp_path / "out" / "pictures").glob(f"{row['method']}-*")
        names = sorted(str(file.relative_to(folder)) for file in folder.glob("*/**/*") if file.is_file())
        assert names == sorted(
            name
            for i in range(3)
            for name in (f"{i:05d}/metadata.jsonl", f"{i:05d}/samples/00000.png", f"{i:05d}/samples/00001.png")
        )
        assert [json.loads((folder / f"{i:05d}" / "metadata.jsonl").read_text()) for i in range(3)] == LINES
        # the same numbers from the pictures alone
        models = geneval[geneval.index("--judge") : geneval.index("--adapter")]
        call = ["score", str(folder), "--geneval", *models, "--device", "cpu", "--output-dir", str(tmp_path / "again")]
        assert main(call) == 0
        again = summary(tmp_path / "again")["results"][0]
        for name in ("score", "score_ci95", "categories", "images"):
            assert again[name] == row[name]
        right = {line["tag"]: [] for line in LINES}
        for line in csv.DictReader((tmp_path / "again" / "scores.csv").open()):
            assert float(line["right"]) == (line["note"] == "")
            right[LINES[int(line["file"][:5])]["tag"]].append(float(line["right"]))
        assert row["categories"] == {tag: np.mean(seen) for tag, seen in right.items()}

    def never(*arguments):
        raise AssertionError("was kept, and is made again")

    monkeypatch.setattr(GenEvalJudge, "__call__", never)
    assert main(geneval) == 0
    assert summary(tmp_path / "out")["results"] == [plain, ours]


def test_without_a_judge_pictures_are_laid_out(geneval, tmp_path):
    assert main([*geneval, "--judge", "none"]) == 0
    assert [row["score"] for row in summary(tmp_path / "out")["results"]] == [None, None]
    laid, drawn = (sorted((tmp_path / "out").rglob(kind)) for kind in ("samples/*.png", "????-?.png"))
    assert [file.read_bytes() for file in laid] == [file.read_bytes() for file in drawn]


def test_a_detector_that_does_not_know_the_prompts_classes(geneval, tmp_path, capsys):
    line = {"tag": "single_object", "include": [{"class": "cross", "count": 1}], "prompt": "a cross"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    assert main(geneval) == 2
    assert "does not know cross (1 of the classes in the prompts)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_questions_are_answered_one_by_one_and_kept(questions, tmp_path, capsys, monkeypatch):
    call = [*questions, "--methods", "best-of-2", "--rewards", "redness"]
    assert main(call) == 0
    written = summary(tmp_path / "out")
    plain, best = written["results"]
    batches = sorted((tmp_path / "out" / "methods").glob("plain-*/batch-*.json"))
    pictures = [one for batch in batches for one in json.loads(batch.read_text())["pictures"]]
    assert [len(one["details"]) for one in pictures] == [2, 2, 1, 1]
    for one in pictures:
        assert one["right"] == pytest.approx(
            np.exp(np.mean([np.log(asked["probability"]) for asked in one["details"]]))
        )
    assert plain["score"] == pytest.approx(np.mean([one["right"] for one in pictures]))
    every = [asked["probability"] for one in pictures for asked in one["details"]]
    assert plain["categories"] == {"color": pytest.approx(np.mean(every))}
    assert best["gain"] == pytest.approx(best["score"] - plain["score"])
    assert f"{plain['score']:.3f}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 4  # two prompts, two methods
    unsure = [asked["question"] for asked in pictures[0]["details"] if asked["probability"] <= 0.5]
    assert f"<small>{'; '.join([format(pictures[0]['right'], '.3f'), *unsure])}</small>" in page
    monkeypatch.setattr(QuestionJudge, "__call__", None)  # answers are kept
    assert main(call) == 0
    assert summary(tmp_path / "out")["results"] == written["results"]


def test_a_prompt_that_is_too_long_is_refused(questions, tmp_path, capsys):
    ask(tmp_path, {"a ring": ["a ring?"], "a red circle and a blue ring and " * 9 + "a ring": ["a ring?"] * 3})
    assert main(questions) == 2
    line = capsys.readouterr().err.strip()
    assert "prompt 2 of 2 has" in line
    assert line.endswith("would be cut; shorten it")
    assert "\n" not in line


@pytest.mark.slow
def test_on_scenes_the_judge_decides(tmp_path):
    network = LoRANoise(load_generator("scenes", device="cpu"), rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_adapter(network, tmp_path / "adapter")
    call = ["evaluate", "--count", "2", "--num-images-per-prompt", "2", "--device", "cpu"]
    call += ["--adapter", str(tmp_path / "adapter"), "--methods", "hypernoise", "best-of-2", "prompt-search-2"]
    assert main([*call, "--output-dir", str(tmp_path / "out")]) == 0
    written = summary(tmp_path / "out")
    rows = written["results"]
    assert [row["method"] for row in rows] == ["plain", "hypernoise", "best-of-2", "prompt-search-2"]
    assert set(rows[0]["categories"]) == {
        "single_object", "two_object", "counting", "colors", "position", "color_attr"
    }  # fmt: skip
    assert rows[2]["reward"] > rows[0]["reward"]
    assert rows[2]["gain_ci95"][0] <= rows[2]["gain"] <= rows[2]["gain_ci95"][1]
    assert (written["prompts"]["count"], len(written["prompts"]["sha256"])) == (12, 64)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 12 * 4
    assert 'id="verdict"' in page
    with Image.open(tmp_path / "out" / "before_after.png") as sheet:
        assert sheet.size == (LABEL + 12 * (TILE + PAD), HEAD + 4 * (TILE + PAD) + 26)
        assert WRONG in {color for _, color in sheet.getcolors(1 << 20)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "best"], "unknown method 'best'"),
        (["--methods", "hypernoise"], "needs --adapter DIR"),
        (["--num-images-per-prompt", "0"], "--num-images-per-prompt must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--count", "-1"], "--count must be 0 or more"),
        (["--num-inference-steps", "0"], "--num-inference-steps must be at least 1, not 0"),
        (["--num-inference-steps", "1", "2", "1"], "--num-inference-steps takes each once, not 1 2 1"),
        (["--num-inference-steps", "1001"], "scenes has 1000 timesteps, so it cannot draw in"),
        (["--adapter", "scenes", "scenes"], "--adapter takes each once, not scenes scenes"),
        (["--shard", "2/2"], "--shard takes k/n with k below n"),
        (["--shard", "half"], "--shard takes k/n with k below n"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--rewards", "scene"], "unknown reward 'scene'; did you mean 'scenes'"),
        (["--prompts", "nowhere.txt"], "prompts 'nowhere.txt' cannot be read"),
        (["--prompts", "geneval:nowhere.jsonl"], "metadata nowhere.jsonl cannot be read"),
        (["--prompts", "questions:nowhere.csv"], "questions nowhere.csv cannot be read"),
        (["--prompts", "questions"], "--prompts questions:FILE takes dpg_bench.csv"),
        (["--prompts", "scenes:a.txt"], "--prompts scenes takes no file"),
        (
            ["--prompts", "geneval", "--count", "1", "--judge", "nowhere/at-all"],
            "detector nowhere/at-all cannot be",
        ),
        (["--adapter", "nowhere"], "no adapter at nowhere"),
        (["--prompts", "README.md", "--methods", "best-of-2"], "best-of-2 searches by a reward: name one"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, arguments, message):
    assert main(["evaluate", *arguments, "--device", "cpu", "--output-dir", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()
