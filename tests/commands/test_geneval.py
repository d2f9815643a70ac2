"""`hypernoise evaluate geneval` end to end: a tiny pipeline, detector and CLIP, all with random weights."""

import json

import numpy as np
import pytest
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.evaluation.geneval import detectors
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb
from tests.evaluation.geneval.conftest import tiny_models  # noqa: F401

LINES = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "counting", "include": [{"class": "ring", "count": 2}], "exclude": [{"class": "ring", "count": 3}],
     "prompt": "two rings"},
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle"},
]  # fmt: skip


@pytest.fixture
def tiny(sd_pipeline, tiny_models, tmp_path, monkeypatch):  # noqa: F811
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    network = LoRANoise(DiffusionGenerator(sd_pipeline()), rank=2)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    monkeypatch.setattr(detectors.mask2former, "SHORT", 64)
    monkeypatch.setattr(detectors.mask2former.Mask2Former.__init__, "__kwdefaults__", {"short": 64, "long": 1333})
    return [
        "evaluate", "geneval", "--generator", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "metadata.jsonl"),
        "--detector", tiny_models[0], "--colors", tiny_models[1], "--adapter", str(tmp_path / "adapter"),
        "--noises", "2", "--batch-size", "4", "--device", "cpu", "--output", str(tmp_path / "out"),
    ]  # fmt: skip


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def results(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_drawn_laid_out_detected_and_judged(tiny, tmp_path, capsys, monkeypatch):
    assert main([*tiny, "--report"]) == 0
    printed, told = capsys.readouterr().out, summary(tmp_path / "out")
    assert (told["command"], told["label"], told["broken"]) == ("evaluate geneval", "geneval-hf", [])
    plain, ours = told["results"]
    assert [(row["method"], row["benchmark"]) for row in (plain, ours)] == [
        ("plain", "geneval-hf"), ("hypernoise", "geneval-hf")
    ]  # fmt: skip
    assert ours["kl"] > 0 == plain["kl"]
    assert plain["reward"] is None
    assert ours["denoiser_forwards"] == 2
    assert list(plain["categories"]) == ["single_object", "counting", "colors"]
    assert plain["score"] == pytest.approx(np.mean(list(plain["categories"].values())))
    assert ours["gain"] == pytest.approx(ours["score"] - plain["score"])
    assert "geneval-hf, by" in printed
    assert "single_object" in printed

    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/jpeg') == 6  # each prompt's first picture, plain and ours
    assert "geneval-hf" in page
    assert f"{ours['score']:.3f}" in page

    for row in (plain, ours):  # the official layout, and the official results beside it
        album = tmp_path / "out" / "pictures" / f"{row['method']}-1"
        assert row["pictures"] == str(album)
        assert (album / "source.txt").read_text().startswith(f"{row['method']}-")
        names = sorted(str(file.relative_to(album)) for file in album.glob("*/**/*") if file.is_file())
        assert names == sorted(
            name
            for i in range(3)
            for name in (f"{i:05d}/metadata.jsonl", f"{i:05d}/samples/00000.png", f"{i:05d}/samples/00001.png")
        )
        assert [json.loads((album / f"{i:05d}" / "metadata.jsonl").read_text()) for i in range(3)] == LINES
        lines = results(tmp_path / "out" / f"results-{row['method']}-1.jsonl")
        assert [line["filename"] for line in lines] == sorted(name for name in names if name.endswith(".png"))
        right = {line["tag"]: [] for line in LINES}
        for line in lines:
            assert line["correct"] == (line["reason"] == "")
            right[line["tag"]].append(line["correct"])
        assert row["categories"] == {tag: np.mean(seen) for tag, seen in right.items()}
        # the same numbers from the pictures alone, and from the detections alone
        given = ["--pictures", str(album), *tiny[6:10], "--device", "cpu", "--output", str(tmp_path / "again")]
        assert main(["evaluate", "geneval", *given]) == 0
        again = summary(tmp_path / "again")["results"][0]
        found = str(tmp_path / "out" / f"detections-{row['method']}-1.jsonl")
        rules = ["--pictures", str(album), "--detections", found, "--output", str(tmp_path / "rules")]
        assert main(["evaluate", "geneval", *rules]) == 0
        told = summary(tmp_path / "rules")
        assert told["label"] == "geneval-file"
        for name in ("score", "score_ci95", "categories", "images"):
            assert again[name] == told["results"][0][name] == row[name]
        assert results(tmp_path / "rules" / "results-pictures.jsonl") == lines

    def never(*arguments):
        raise AssertionError("was kept, and is made again")

    monkeypatch.setattr(detectors.HfDetector, "__call__", never)
    before = summary(tmp_path / "out")["results"]
    assert main(tiny) == 0
    assert summary(tmp_path / "out")["results"] == before


def test_shards_share_drawing_and_judging(tiny, tmp_path, capsys):
    assert main([*tiny, "--shard", "0/2"]) == 0
    assert "batches of pictures are left to other shards" in capsys.readouterr().err
    assert main([*tiny, "--shard", "1/2"]) == 0  # draws the rest, and judges its half
    assert "pictures to judge are left to other shards" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main([*tiny, "--shard", "0/2"]) == 0
    shared = summary(tmp_path / "out")["results"]
    assert main([*tiny, "--output", str(tmp_path / "alone")]) == 0
    for one, other in zip(shared, summary(tmp_path / "alone")["results"], strict=True):
        assert (one["score"], one["categories"], one["kl"]) == (other["score"], other["categories"], other["kl"])


@pytest.fixture
def album(tmp_path):
    """Three prompts with two pictures each, and detections that are right for all but one."""
    lines = []
    for number, line in enumerate(LINES):
        folder = tmp_path / "album" / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(line))
        for index in range(2):
            Image.new("RGB", (16, 16), "red").save(folder / f"{index:05d}.png")
            clause = line["include"][0]
            objects = [
                {"class": clause["class"], "box": [4 * i, 0, 4 * i + 3, 9], "score": 0.95, "color": "red"}
                for i in range(clause["count"] + (number == 1 and index))
            ]
            lines.append({"file": f"{number:05d}/samples/{index:05d}.png", "objects": objects})
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "album"


def judge(album, *more):
    place = album.parent
    call = ["--pictures", str(album), "--detections", str(place / "found.jsonl"), "--output", str(place / "out")]
    code = main(["evaluate", "geneval", *call, "--device", "cpu", *more])
    return code, summary(place / "out") if code == 0 else None


def test_detections_from_a_file_need_no_model(album, capsys):
    code, told = judge(album, "--report")
    assert code == 0
    page = (album.parent / "out" / "report.html").read_text()
    assert f"none: {album} was given" in page
    assert page.count("<figure") == 3
    (row,) = told["results"]
    assert row["categories"] == {"single_object": 1.0, "counting": 0.5, "colors": 1.0}
    assert row["score"] == pytest.approx(2.5 / 3)
    assert (row["images"], row["prompts"], row["broken"]) == (6, 3, 0)
    (wrong,) = [line for line in results(album.parent / "out" / "results-pictures.jsonl") if not line["correct"]]
    assert (wrong["filename"], wrong["reason"]) == ("00001/samples/00001.png", "expected ring < 3, found 3")
    assert json.loads(wrong["details"])["ring"][0] == [0.0, 0.0, 3.0, 9.0, 0.95]
    assert "0.833" in capsys.readouterr().out


def change(album, name, edit):
    lines = results(album.parent / "found.jsonl")
    edit(next(line for line in lines if line["file"] == name))
    (album.parent / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("00002/samples/00000.png", lambda line: line["objects"][0].pop("color"), "the color of the circle decides"),
        ("00000/samples/00001.png", lambda line: line.update(file="elsewhere"), "has no detections of it"),
        ("00000/samples/00001.png", lambda line: line.pop("objects"), "must be a list of detections"),
        ("00000/samples/00001.png", lambda line: line["objects"][0].update(box=[1, 2]), "'box' must be [left, top"),
        ("00000/samples/00001.png", lambda line: line["objects"][0].update(score="high"), "'score' must be a number"),
        ("00000/samples/00001.png", lambda line: line["objects"][0].pop("class"), "object 0 has no 'class'"),
        (
            "00002/samples/00000.png",
            lambda line: line["objects"][0].update(color="Red"),
            "'color' must be one of red, ",
        ),
    ],
)
def test_a_picture_without_usable_detections_costs_itself(album, capsys, name, edit, why):
    change(album, name, edit)
    code, told = judge(album)
    assert code == 0
    ((broken),) = told["broken"]
    assert broken["name"] == name
    assert why in broken["why"]
    row = told["results"][0]
    assert (row["images"], row["prompts"], row["broken"]) == (5, 3, 1)
    assert row["score"] == pytest.approx(2.5 / 3)
    told = capsys.readouterr().err
    assert f"{name}: {broken['why']}" in told
    assert "1 could not be judged; the score is of the others" in told


def asks_for(album, name):
    line = {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a {name}"}
    (album / "00000" / "metadata.jsonl").write_text(json.dumps(line))


@pytest.mark.parametrize(("asked", "found"), [("computer mouse", "mouse"), ("mouse", "mouse"), ("couch", "sofa")])
def test_a_files_classes_may_have_cocos_words(album, capsys, asked, found):
    asks_for(album, asked)
    for index in range(2):
        change(album, f"00000/samples/0000{index}.png", lambda line: line["objects"][0].update({"class": found}))
    code, told = judge(album)
    assert code == 0
    assert told["results"][0]["categories"]["single_object"] == 1
    assert told["absent_classes"] == []
    assert "never occur" not in capsys.readouterr().err


def test_classes_that_a_file_never_names_are_told(album, capsys):
    asks_for(album, "dog")
    code, told = judge(album)
    assert code == 0
    assert told["absent_classes"] == ["dog"]
    line = f"1 of the classes that the prompts ask for never occur in {album.parent / 'found.jsonl'}"
    assert capsys.readouterr().err.count(f"{line}, and count as not found: dog") == 1


def test_pictures_of_other_prompts_than_the_scenes_need_another_detector(album, capsys):
    asks_for(album, "dog")
    assert main(["evaluate", "geneval", "--pictures", str(album), "--output", str(album.parent / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert "scenes judge knows no dog" in told
    assert told.endswith("pass --prompts geneval for the benchmark's own detector, or name one with --detector")
    assert "\n" not in told


def test_half_finished_folders_are_named(album):
    (album / "00000" / "metadata.jsonl").unlink()
    (album / "00002" / "samples" / "00001.png").unlink()
    (album / "00003" / "samples").mkdir(parents=True)
    (album / "00003" / "metadata.jsonl").write_text(json.dumps(LINES[0]))
    (album / "00004" / "samples").mkdir(parents=True)
    (album / "00004" / "metadata.jsonl").write_text("{")
    code, told = judge(album)
    assert code == 0
    why = {broken["name"]: broken["why"] for broken in told["broken"]}
    assert "metadata.jsonl is missing" in why["00000"]
    assert why["00002"] == "1 of 2 pictures are there"
    assert why["00003"] == "0 of 2 pictures are there"
    assert "line 1: not JSON" in why["00004"]
    assert told["results"][0]["categories"] == {"counting": 0.5, "colors": 1.0}


def test_a_broken_picture_costs_itself(album, tiny_models, tiny, capsys):  # noqa: F811
    (album / "00000" / "samples" / "00000.png").write_bytes(b"\x89PNG but no more")
    call = ["evaluate", "geneval", "--pictures", str(album), *tiny[6:10], "--device", "cpu"]
    for _ in range(2):  # made, and kept
        assert main([*call, "--output", str(album.parent / "out")]) == 0
        told = summary(album.parent / "out")
        ((broken),) = told["broken"]
        assert broken["name"] == "00000/samples/00000.png"
        assert "cannot be read as a picture" in broken["why"]
        assert told["results"][0]["images"] == 5


@pytest.mark.parametrize("text", ["", "[{", "7", '[{"class": "circle"}]', "\xff"])
def test_kept_detections_that_are_damaged_are_made_again(album, tiny_models, tiny, text):  # noqa: F811
    call = ["evaluate", "geneval", "--pictures", str(album), *tiny[6:10], "--device", "cpu"]
    call += ["--output", str(album.parent / "out")]
    assert main(call) == 0
    before = summary(album.parent / "out")["results"]
    kept = min((album.parent / "out" / "detections").iterdir())
    whole = kept.read_text()
    kept.write_text(text, encoding="latin-1")
    assert main(call) == 0
    assert summary(album.parent / "out")["results"] == before
    assert kept.read_text() == whole


def test_a_picture_that_may_not_be_read_costs_itself(album, tiny_models, tiny, monkeypatch):  # noqa: F811
    closed = album / "00000" / "samples" / "00000.png"
    read = type(closed).read_bytes

    def read_bytes(file):
        if file == closed:
            raise PermissionError(13, "Permission denied")
        return read(file)

    monkeypatch.setattr(type(closed), "read_bytes", read_bytes)
    call = ["evaluate", "geneval", "--pictures", str(album), *tiny[6:10], "--device", "cpu"]
    assert main([*call, "--output", str(album.parent / "out")]) == 0
    ((broken),) = summary(album.parent / "out")["broken"]
    assert broken == {"name": "00000/samples/00000.png", "why": f"{closed} cannot be read: Permission denied"}


def test_if_nothing_can_be_judged_it_is_said(album, capsys):
    (album.parent / "found.jsonl").write_text("")
    assert judge(album)[0] == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no picture could be judged; the first: 00000/samples/00000.png:" in told


def test_no_score_lays_out_only(tiny, tmp_path, capsys):
    assert main([*tiny, "--no-score", "--detector", "nowhere"]) == 0
    printed = capsys.readouterr().out
    assert "plain, 1 steps:" in printed
    assert len(list((tmp_path / "out").rglob("samples/*.png"))) == 12
    assert not (tmp_path / "out" / "summary.json").exists()


def test_methods_that_search_do_so_by_a_reward(tiny, tmp_path):
    assert main([*tiny, "--methods", "best-of-2", "--rewards", "redness=20"]) == 0
    rows = {row["method"]: row for row in summary(tmp_path / "out")["results"]}
    assert rows["best-of-2"]["reward"] >= rows["plain"]["reward"]
    assert rows["best-of-2"]["denoiser_forwards"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps takes numbers from 1"),
        (["--noises", "0"], "--noises must be at least 1"),
        (["--count", "-1"], "--count must be 0 (all) or more"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--shard", "2/2"], "--shard takes k/n with k below n"),
        (["--prompts", "nowhere.jsonl"], "metadata nowhere.jsonl cannot be read"),
        (["--methods", "best"], "unknown method 'best'"),
        (["--methods", "best-of-2"], "best-of-2 searches by a reward: name one"),
        (["--detector", "nowhere/at-all"], "detector nowhere/at-all cannot be loaded"),
        (["--pictures", "nowhere"], "there is no folder nowhere"),
        (["--pictures", "."], "is not in GenEval's layout"),
        (["--detections", "found.jsonl"], "name their folder with --pictures"),
        (["--pictures", ".", "--no-score"], "leave out --no-score"),
        (["--pictures", ".", "--count", "2", "--adapter", "a"], "nothing is drawn: leave out --count, --adapter"),
        (["--pictures", ".", "--noises", "2", "--methods", "reno-2"], "leave out --methods, --noises"),
        (["--adapter", "nowhere"], "no adapter at nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "geneval", *arguments, "--device", "cpu", "--output", "out"]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


def test_a_detector_that_does_not_know_the_prompts_classes(tiny, tmp_path, capsys):
    line = {"tag": "single_object", "include": [{"class": "cross", "count": 1}], "prompt": "a cross"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    assert main(tiny) == 2
    assert "knows no cross (1 of the classes that the prompts ask for)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"objects": []}'])
def test_a_detections_file_that_is_none(album, capsys, text):
    (album.parent / "found.jsonl").write_text("\n" + text)
    assert judge(album)[0] == 2
    assert "found.jsonl, line 2: no" in capsys.readouterr().err


def test_another_drawing_takes_the_albums_place(tiny, tmp_path, capsys):
    assert main([*tiny, "--no-score"]) == 0
    first = (tmp_path / "out" / "pictures" / "plain-1" / "00000" / "samples" / "00000.png").read_bytes()
    assert main([*tiny, "--no-score", "--seed", "1", "--count", "1", "--noises", "1"]) == 0
    left = sorted((tmp_path / "out" / "pictures" / "plain-1").rglob("*.png"))
    assert [file.parent.parent.name for file in left] == ["00000", "00001", "00002"]  # one of each category
    assert left[0].read_bytes() != first
    (tmp_path / "out" / "pictures" / "plain-1" / "source.txt").unlink()
    assert main([*tiny, "--no-score"]) == 2
    assert "holds something else; choose another --output" in capsys.readouterr().err


def test_copies_where_links_are_not_to_be_had(tiny, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refused)
    assert main([*tiny, "--no-score"]) == 0
    laid, drawn = (sorted((tmp_path / "out").rglob(kind)) for kind in ("samples/*.png", "????-?.png"))
    assert [file.read_bytes() for file in laid] == [file.read_bytes() for file in drawn]
