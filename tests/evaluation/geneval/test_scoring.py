"""A folder in GenEval's layout, judged by what a detector finds."""

import json

import pytest
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.picture_folder import read_folder
from hypernoise.evaluation.geneval.rules import Detection
from hypernoise.evaluation.geneval.scoring import Judged, judge_folder, score_row, write_results
from hypernoise.evaluation.pictures import Broken
from tests.evaluation.geneval.conftest import LINES


class Seen:
    """Finds what is asked for; in blue pictures of rings, one ring too many."""

    name, classes = "seen", ("circle", "ring")

    def __call__(self, pixels, request):
        clause = request.include[0]
        more = clause.name == "ring" and pixels[2].mean() > 0.5
        return [
            Detection(clause.name, (4.0 * i, 0.0, 4.0 * i + 3, 9.0), 0.95, clause.color)
            for i in range(clause.count + more)
        ]


@pytest.fixture
def samples(tmp_path):
    """Three prompts with a red and a blue picture each."""
    for number, line in enumerate(LINES):
        folder = tmp_path / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(line))
        for index in range(2):
            Image.new("RGB", (16, 16), ("red", "blue")[index]).save(folder / f"{index:05d}.png")
    return read_folder(tmp_path)[0]


def test_a_folders_score_and_its_official_results(samples, tmp_path):
    done = []
    judged = judge_folder(samples, Seen(), progress=done.append)
    assert done == [1] * 6
    row = score_row(judged)
    assert row["categories"] == {"single_object": 1.0, "counting": 0.5, "colors": 1.0}
    assert row["score"] == pytest.approx(2.5 / 3)
    assert row["judged"] == 6
    write_results(tmp_path / "results.jsonl", judged.found)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (wrong,) = [line for line in results if not line["correct"]]
    assert (wrong["filename"], wrong["reason"]) == ("00001/samples/00001.png", "expected ring < 3, found 3")
    assert json.loads(wrong["details"])["ring"][0] == [0.0, 0.0, 3.0, 9.0, 0.95]
    assert json.loads(wrong["metadata"]) == LINES[1]


def test_a_gain_is_over_the_base_on_the_prompts_that_both_have(samples):
    base = judge_folder([sample for sample in samples if sample.name.startswith("00001/")], Seen())
    right = judge_folder([sample for sample in samples if sample.name.endswith("00000.png")], Seen())
    assert score_row(right, base)["gain"] == pytest.approx(0.5)


def test_a_picture_that_cannot_be_read_costs_itself(samples):
    samples[0].file.write_bytes(b"no picture")
    judged = judge_folder(samples, Seen())
    assert [one.name for one in judged.broken] == ["00000/samples/00000.png"]
    assert len(judged.found) == 5


def test_if_nothing_can_be_judged_it_says_why():
    with pytest.raises(InputError, match="no picture could be judged; the first: a.png: too dark"):
        score_row(Judged([], [Broken("a.png", "too dark")]))
