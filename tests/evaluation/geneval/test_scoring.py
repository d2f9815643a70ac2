"""A folder in GenEval's layout, judged by what a detector finds."""

import csv
import json

import pytest
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.benchmark import GenEvalJudge, by_prompt, read_folder
from hypernoise.evaluation.geneval.rules import Detection
from hypernoise.evaluation.measures import measured, measured_row, write_scores
from tests.evaluation.geneval.conftest import LINES


class Seen(GenEvalJudge):
    """Finds the requested objects; in blue pictures of rings, one ring too many."""

    def __init__(self, requests):
        self.requests = by_prompt(requests)

    def detect(self, pixels, request):
        clause = request.include[0]
        more = clause.name == "ring" and pixels[2].mean() > 0.5
        return [
            Detection(clause.name, (4.0 * i, 0.0, 4.0 * i + 3, 9.0), 0.95, clause.color)
            for i in range(clause.count + more)
        ]


@pytest.fixture
def folder(tmp_path):
    """Three prompts with a red and a blue picture each."""
    for number, line in enumerate(LINES):
        folder = tmp_path / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(line))
        for index in range(2):
            Image.new("RGB", (16, 16), ("red", "blue")[index]).save(folder / f"{index:05d}.png")
    return tmp_path


@pytest.fixture
def judged(folder):
    """Judges the folder's pictures."""

    def of(**more):
        pictures, _ = read_folder(folder)
        return measured(pictures, None, Seen([one.request for one in pictures]), **more)

    return of


def test_a_folders_score_and_its_verdicts(judged, tmp_path):
    done = []
    found, _ = judged(progress=done.append)
    assert done == [1] * 6
    row = measured_row("folder", found)
    assert row["categories"] == {"single_object": 1.0, "counting": 0.5, "colors": 1.0}
    assert row["score"] == pytest.approx(2.5 / 3)
    assert (row["images"], row["prompts"]) == (6, 3)
    write_scores(tmp_path / "scores.csv", {"folder": found}, [])
    (wrong,) = [line for line in csv.DictReader((tmp_path / "scores.csv").open()) if line["right"] != "1.0"]
    assert (wrong["file"], wrong["note"]) == ("00001/samples/00001.png", "expected ring < 3, found 3")


def test_a_picture_that_cannot_be_read_costs_itself(judged, folder):
    (folder / "00000" / "samples" / "00000.png").write_bytes(b"no picture")
    found, broken = judged()
    assert list(broken) == ["00000/samples/00000.png"]
    assert len([one["right"] for one in found]) == 5


def test_if_nothing_can_be_judged_it_says_why(judged, folder):
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no picture could be read; the first: .*00000.png cannot be read"):
        judged()
