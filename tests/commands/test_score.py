"""`hypernoise score`: rewards, diversity and GenEval of existing pictures."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.cli import main
from hypernoise.evaluation.geneval import detection
from hypernoise.evaluation.geneval.benchmark import read_folder
from hypernoise.evaluation.geneval.rules import parse
from hypernoise.evaluation.measures import TOTAL
from hypernoise.evaluation.pictures import read_picture
from hypernoise.rewards.pixel import brightness, redness
from tests.evaluation.geneval.conftest import LINES, tiny_models  # noqa: F401

PROMPTS = ["a red circle", "two blue rings", "a green cross"]


def score(tmp_path, *arguments):
    """Exit code, and the summary."""
    code = main(["score", *map(str, arguments), "--device", "cpu", "--output-dir", str(tmp_path / "out")])
    return code, json.loads((tmp_path / "out" / "summary.json").read_text()) if code == 0 else None


@pytest.fixture
def flat(tmp_path):
    """Pictures of two sizes and a file of their prompts, named so that the order of names is theirs."""
    folder = tmp_path / "flat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(12, 8), (12, 8), (9, 9)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def lines(file):
    return list(csv.DictReader(file.open()))


def test_a_folder_is_scored_member_by_member(flat, tmp_path, capsys):
    prompts = ["--prompts", tmp_path / "prompts.txt"]
    code, summary = score(tmp_path, flat, *prompts, "--rewards", "redness=2", "brightness", "--batch-size", "2")
    assert code == 0
    rows = lines(tmp_path / "out" / "scores.csv")
    assert list(rows[0]) == ["folder", "file", "prompt", "redness", "brightness", TOTAL]  # nothing was judged
    assert [(row["file"], row["prompt"]) for row in rows] == [(f"{i}.png", text) for i, text in enumerate(PROMPTS)]
    for i, found in enumerate(rows):
        pixels = read_picture(flat / f"{i}.png")[None]
        red, bright = redness(pixels, []).item(), brightness(pixels, []).item()
        assert float(found["redness"]) == pytest.approx(red, abs=1e-6)
        assert float(found["brightness"]) == pytest.approx(bright, abs=1e-6)
        assert float(found[TOTAL]) == pytest.approx(2 * red + bright, abs=1e-6)
    (row,) = summary["results"]
    assert (row["images"], row["prompts"]) == (3, 3)
    assert row["reward"] == pytest.approx(np.mean([float(r[TOTAL]) for r in rows]), abs=1e-6)
    low, high = row["rewards"]["redness_ci95"]
    assert low < row["rewards"]["redness"] < high
    assert f"{row['reward']:.4f}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    for name in ("redness", "brightness", TOTAL):
        assert f"<th>{name}" in page
        assert f"<td>{row['rewards'][name]:.4f}" in page
    assert row["diversity"] is None  # no prompt has two pictures


def test_one_prompt_has_no_interval(flat, tmp_path):
    (tmp_path / "prompts.txt").write_text("the same\n" * 3)
    _, summary = score(tmp_path, flat, "--prompts", tmp_path / "prompts.txt", "--rewards", "redness")
    (row,) = summary["results"]
    assert row["rewards"]["redness_ci95"] is None
    assert row["prompts"] == 1
    assert row["diversity"] > 0.2  # though their sizes differ


def test_what_generate_and_evaluate_have_written_is_scored_with_its_prompts(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    tiny = ["--generator", str(tmp_path / "tiny"), "--num-images-per-prompt", "2", "--device", "cpu"]
    assert main(["generate", *PROMPTS, *tiny, "--output-dir", str(tmp_path / "drawn")]) == 0
    _, summary = score(tmp_path, tmp_path / "drawn", "--rewards", "redness")
    rows = lines(tmp_path / "out" / "scores.csv")
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert (summary["results"][0]["images"], summary["results"][0]["prompts"]) == (6, 3)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    call = ["evaluate", *tiny, "--prompts", str(tmp_path / "prompts.txt"), "--rewards", "redness"]
    assert main([*call, "--output-dir", str(tmp_path / "evaluated")]) == 0
    (drawn,) = (tmp_path / "evaluated" / "methods").iterdir()
    _, summary = score(tmp_path, drawn, "--rewards", "redness")
    (evaluated,) = json.loads((tmp_path / "evaluated" / "summary.json").read_text())["results"]
    assert summary["results"][0]["reward"] == pytest.approx(evaluated["reward"], abs=2e-3)  # to the 256 levels of a PNG
    assert summary["results"][0]["prompts"] == 3


@pytest.fixture
def picture_folders(tmp_path):
    """In the first, two different pictures for each of three prompts; in the second, the same one twice."""
    rng = np.random.default_rng(0)
    for name in ("base", "other"):
        for number in range(3):
            folder = tmp_path / name / f"{number:05d}" / "samples"
            folder.mkdir(parents=True)
            source = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": f"dog {number}"}
            (folder.parent / "metadata.jsonl").write_text(json.dumps(source))
            drawn = rng.integers(0, 200, (2, 32, 32, 3)).astype(np.uint8)
            for index in range(2):
                picture = drawn[index if name == "base" else 0]
                Image.fromarray(picture).save(folder / f"{index:05d}.png")
    return tmp_path / "base", tmp_path / "other"


def test_several_folders_have_a_row_each(picture_folders, tmp_path, capsys):
    _, summary = score(tmp_path, *picture_folders, "--rewards", "redness")
    base, other = summary["results"]
    assert (base["images"], base["prompts"]) == (6, 3)
    pairs = [sorted((picture_folders[0] / f"{number:05d}" / "samples").iterdir()) for number in range(3)]
    pixels = [[np.asarray(Image.open(file), float) / 255 for file in pair] for pair in pairs]
    expected = np.mean([np.sqrt(np.square(one - two).mean()) for one, two in pixels])
    assert base["diversity"] == pytest.approx(expected)
    assert other["diversity"] == 0
    assert f"{base['diversity']:.3f}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<th>score" not in page  # nothing was judged


def test_a_broken_picture_is_left_out(picture_folders, tmp_path, capsys):
    (picture_folders[1] / "00001" / "samples" / "00001.png").write_bytes(b"no picture")
    _, summary = score(tmp_path, *picture_folders)
    ((broken),) = summary["broken"]
    assert broken["name"].endswith("other/00001/samples/00001.png")
    assert "cannot be read as a picture" in broken["why"]
    base, other = summary["results"]
    assert (other["images"], other["prompts"]) == (5, 3)
    assert other["diversity"] == 0 < base["diversity"]  # of the two prompts that have two pictures
    assert "1 could not be used; the results cover the rest" in capsys.readouterr().err


def refused(capsys, tmp_path, *arguments):
    capsys.readouterr()
    assert score(tmp_path, *arguments)[0] == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not (tmp_path / "out").exists()
    return line


def test_only_numbered_png_files_count_and_others_are_named(picture_folders, tmp_path, capsys):
    for file in picture_folders[1].rglob("*.png"):
        file.rename(file.with_suffix(".jpg"))
    message = refused(capsys, tmp_path, *picture_folders)
    assert message.endswith("other has no usable picture; the first: 00000: 0 of 1 samples such as 00000.png exist")


def test_mistakes_are_one_line_and_leave_nothing(flat, tmp_path, capsys):
    red, prompts = ["--rewards", "redness"], ["--prompts", tmp_path / "prompts.txt"]

    def said(*arguments):
        return refused(capsys, tmp_path, *arguments)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "name one or more folders of pictures" in said()
    assert "there is no folder" in said(tmp_path / "none")
    assert "empty has no prompts" in said(empty)
    assert "empty has 0 pictures (.png," in said(empty, *prompts)
    assert "flat has no prompts: it is neither a folder of hypernoise generate" in said(flat)
    assert f"{PROMPTS[0]!r} is not a GenEval prompt" in said(flat, *prompts, "--geneval")
    assert "'redness' is named twice" in said(flat, *prompts, *red, "redness=2")
    assert "unknown reward 'rednes'; did you mean 'redness'" in said(flat, "--rewards", "rednes", *prompts)
    assert "none.txt' cannot be read: No such file" in said(flat, "--prompts", tmp_path / "none.txt")
    assert "--batch-size must be at least 1" in said(flat, *prompts, "--batch-size", "0")
    assert "--judge and --colors need --geneval" in said(flat, *prompts, "--judge", "x")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert "has 3 pictures (.png, .jpg, .jpeg, .webp) but" in said(flat, *prompts)
    for name, why in (("../prompts.txt", "lists '../prompts.txt', which is not"), ("gone.png", "lists 'gone.png'")):
        (flat / "summary.json").write_text(json.dumps({"results": [{"file": name, "prompt": "x"}]}))
        assert why in said(flat)


@pytest.fixture
def picture_folder(tmp_path):
    """Three prompts with two pictures each."""
    for number, line in enumerate(LINES):
        folder = tmp_path / "picture_folder" / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(line))
        for index in range(2):
            Image.new("RGB", (16, 16), ("red", "blue")[index]).save(folder / f"{index:05d}.png")
    return tmp_path / "picture_folder"


@pytest.fixture
def detected(picture_folder, tiny_models, monkeypatch):  # noqa: F811
    monkeypatch.setattr(detection, "SHORT", 64)
    return [picture_folder, "--geneval", "--judge", tiny_models[0], "--colors", tiny_models[1]]


def test_half_finished_folders_are_named(picture_folder, detected):
    (picture_folder / "00000" / "metadata.jsonl").unlink()
    (picture_folder / "00002" / "samples" / "00001.png").unlink()
    (picture_folder / "00003" / "samples").mkdir(parents=True)
    (picture_folder / "00003" / "metadata.jsonl").write_text(json.dumps(LINES[0]))
    (picture_folder / "00004" / "samples").mkdir(parents=True)
    (picture_folder / "00004" / "metadata.jsonl").write_text("{")
    code, summary = score(picture_folder.parent, *detected)
    assert code == 0
    why = {broken["name"].rpartition("/")[2]: broken["why"] for broken in summary["broken"]}
    assert "metadata.jsonl cannot be read: No such file" in why["00000"]
    assert why["00002"] == "1 of 2 samples such as 00000.png exist"
    assert why["00003"] == "0 of 2 samples such as 00000.png exist"
    assert "metadata.jsonl is not JSON" in why["00004"]
    assert list(summary["results"][0]["categories"]) == ["counting", "colors"]
    assert summary["results"][0]["images"] == 3


def test_what_generate_has_written_is_judged_by_the_prompts_of_its_summary(flat, tmp_path):
    asked = parse(LINES[0], "here")
    rows = [{"file": f"{i}.png", "prompt": asked.prompt if i < 2 else "another"} for i in range(3)]
    (flat / "summary.json").write_text(json.dumps({"results": rows}))
    samples, others = read_folder(flat, "", {asked.prompt: asked})
    assert [(one.name, one.request) for one in samples] == [("0.png", asked), ("1.png", asked)]
    assert others == {"2.png": "'another' is not a GenEval prompt"}


def test_a_broken_picture_costs_itself(picture_folder, detected):
    (picture_folder / "00000" / "samples" / "00000.png").write_bytes(b"\x89PNG but no more")
    code, summary = score(picture_folder.parent, *detected)
    assert code == 0
    ((broken),) = summary["broken"]
    assert broken["name"] == f"{picture_folder}/00000/samples/00000.png"
    assert "cannot be read as a picture" in broken["why"]
    assert summary["results"][0]["images"] == 5


def test_a_detector_that_does_not_know_the_classes(picture_folder, detected, capsys):
    line = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}
    (picture_folder / "00000" / "metadata.jsonl").write_text(json.dumps(line))
    assert "does not know dog" in refused(capsys, picture_folder.parent, *detected)


def test_scores_do_not_depend_on_the_batch(flat, tmp_path):
    call = [flat, "--prompts", tmp_path / "prompts.txt", "--rewards", "redness"]
    _, one = score(tmp_path, *call, "--batch-size", "1")
    _, three = score(tmp_path, *call, "--batch-size", "3")
    assert torch.tensor(one["results"][0]["reward"]) == pytest.approx(three["results"][0]["reward"], abs=1e-6)
