import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import load_benchmark
from hypernoise.evaluation.geneval import official

COUNTS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


@pytest.fixture
def requests():
    return official.official_requests()


def test_the_benchmarks_prompts(requests):
    """The published counts, and prompts that other repositories quote with their number."""
    assert Counter(request.tag for request in requests) == COUNTS
    assert sum(COUNTS.values()) == len(requests) == 553
    assert list(dict.fromkeys(request.tag for request in requests)) == list(COUNTS)
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


def test_the_benchmark_takes_the_first_of_each_category():
    asked = load_benchmark("geneval", 2, "none")
    assert (len(load_benchmark("geneval").prompts), len(asked.prompts)) == (553, 12)
    assert asked.categories == [tag for tag in COUNTS for _ in range(2)]
    assert asked.load_judge is None


def test_a_prompt_with_two_meanings_is_refused(tmp_path):
    lines = [
        {"tag": "colors", "include": [{"class": name, "count": 1}], "prompt": "a thing"} for name in ("cat", "dog")
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="'a thing' appears twice in the metadata, with different meanings"):
        load_benchmark(f"geneval:{tmp_path / 'metadata.jsonl'}")
