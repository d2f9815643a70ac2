import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation.geneval import official
from hypernoise.evaluation.geneval.requests import TAGS, read_requests


@pytest.fixture
def requests(tmp_path, capsys):
    assert main(["prompts", "fetch", "geneval", "--output", str(tmp_path / "deep" / "geneval.jsonl")]) == 0
    assert official.SHA256 in capsys.readouterr().out
    return read_requests(tmp_path / "deep" / "geneval.jsonl")


def test_the_benchmarks_prompts(requests):
    """The published counts, and prompts that other repositories quote with their number."""
    assert Counter(request.tag for request in requests) == official.COUNTS
    assert sum(official.COUNTS.values()) == len(requests) == 553
    assert list(dict.fromkeys(request.tag for request in requests)) == list(TAGS)
    assert requests[0].prompt == "a photo of a bench"
    assert requests[457].prompt == "a photo of a pink oven and a green motorcycle"
    assert requests[530].prompt == "a photo of a purple suitcase and an orange pizza"
    quoted = '{"tag": "color_attr", "include": [{"class": "suitcase", "count": 1, "color": "purple"}, '
    quoted += '{"class": "pizza", "count": 1, "color": "orange"}], '
    quoted += '"prompt": "a photo of a purple suitcase and an orange pizza"}'
    assert json.dumps(requests[530].source) == quoted


def test_every_prompt_says_what_its_metadata_asks(requests):
    for request in requests:
        for clause in request.include:
            assert clause.name.removesuffix("s") in request.prompt
            assert clause.color is None or f"{clause.color} {clause.name}" in request.prompt
            assert clause.relation is None or f"{clause.name} {clause.relation} a" in request.prompt
        for clause in request.exclude:
            assert (clause.name, clause.count - 1) == (request.include[0].name, request.include[0].count)
    assert len({request.prompt for request in requests}) == 553


def test_the_checksum_is_of_the_text():
    assert hashlib.sha256(official.metadata().encode()).hexdigest() == official.SHA256


def test_another_draw_is_noticed(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed, real=np.random.default_rng: real(seed + 1))
    with pytest.raises(InputError, match="does not draw the benchmark's prompts from its seed"):
        official.metadata()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "genevl"], "unknown prompt set 'genevl'; did you mean 'geneval'"),
        (["get", "geneval"], "unknown action 'get'"),
        (["fetch", "geneval", "--output", "."], "is a folder; --output names the file"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, message):
    assert main(["prompts", *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
