import json
from collections import Counter

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.noise.draws import keyed_noise
from hypernoise.prompts import PromptMix, prompts_of_step, read_mix, read_prompts
from hypernoise.scenes.prompts import combination, evaluation_requests, split, training_prompts
from hypernoise.scenes.world import CATEGORIES


def test_every_prompt_comes_once_per_epoch_whatever_the_batch():
    prompts = [str(i) for i in range(10)]
    by_four = [p for step in range(5) for p in prompts_of_step(prompts, step, 4, seed=3)]
    by_two = [p for step in range(10) for p in prompts_of_step(prompts, step, 2, seed=3)]
    assert by_four == by_two
    assert sorted(by_four[:10]) == sorted(prompts)
    assert sorted(by_four[10:]) == sorted(prompts)
    assert by_four[:10] != by_four[10:]


def test_a_batch_may_be_larger_than_the_prompt_list():
    assert Counter(prompts_of_step(["a", "b"], 0, 6, seed=0)) == {"a": 3, "b": 3}


def test_noise_depends_on_seed_step_and_sample_alone():
    whole = keyed_noise((4, 2), seed=0, step=3, samples=range(6))
    assert torch.equal(whole[4:], keyed_noise((4, 2), seed=0, step=3, samples=[4, 5]))
    for other in (dict(seed=1, step=3), dict(seed=0, step=4)):
        assert not torch.isclose(whole, keyed_noise((4, 2), samples=range(6), **other)).any()


def test_noise_is_standard_normal_and_uncorrelated_between_samples():
    noise = keyed_noise((1000,), seed=0, step=0, samples=range(200)).double()
    assert abs(noise.mean()) < 0.01
    assert noise.var().item() == pytest.approx(1.0, abs=0.02)
    correlation = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlation.abs().max() < 0.16  # 5 standard errors of 1/sqrt(1000)


def test_prompt_files(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a ring\n\n  a cross \n")
    assert read_prompts(str(file)) == ["a ring", "a cross"]
    file.write_text("\n \n")
    with pytest.raises(InputError, match="has no prompts"):
        read_prompts(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(str(file))
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(str(tmp_path / "nowhere.txt"))


TEXTS = ["a ring", "a cross", "two, or three"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '{"caption": "a ring", "id": 3}\n\n"a cross"\n{"prompt": "two, or three", "caption": "no"}\n'),
        ("p.json", '[{"caption": "a ring"}, "a cross", {"text": "two, or three"}]'),
        ("p.tsv", "id\tprompt\n1\ta ring\n2\ta cross\n3\ttwo, or three\n"),
        ("p.csv", 'id,prompt\n1,a ring\n2,a cross\n3,"two, or three"\n'),
        ("p.csv", 'Prompt ,x\na ring,1\na cross,2\n"two, or three",3\n'),
        ("p.tsv", 'x\tPrompts\n1\t"a ring"\n2\ta cross\n3\ttwo, or three\n'),
        ("p.json", '{"7": "a ring", "8": {"Prompt": "a cross"}, "9": "two, or three"}'),
        *(
            ("p.json", json.dumps({"images": [], rows: [{column: text} for text in TEXTS]}))
            for rows, column in (("annotations", "caption"), ("results", "prompt"))  # of COCO, and of `generate`
        ),
        ("p.CSV", '\ufefftext\na ring\n a cross \n"two, or three"\n\n'),
    ],
)
def test_prompt_formats(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prompts(str(tmp_path / name)) == TEXTS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a ring"}\n{"prompt": ', r"line 2 is not JSON"),
        ("p.jsonl", "[1]\n", r"line 1 must be an object or a string, not \[1\]"),
        ("p.jsonl", '{"words": "a ring"}\n', r"has no column prompt, caption, text; its columns: words"),
        ("p.jsonl", '{"prompt": 3}\n', r"line 1: a prompt must be text, not 3"),
        ("p.csv", "id,words\n1,a ring\n", r"has no column prompt, caption, text; its columns: id, words"),
        ("p.csv", "id,prompt\n1,a ring\n2\n", r"line 3: a prompt must be text, not None"),
        ("p.csv", 'prompt\n"' + 2**18 * "a", r"p.csv': the row at line 2 is not CSV: field larger than field limit"),
        ("p.json", '{"prompt": "a ring"}', r"must be a list of objects or strings, or map names to them"),
        ("p.json", '["a ring", 3]', r"entry 2 must be an object or a string, not 3"),
        ("p.csv", "", r"has no column prompt, caption, text; its columns: none"),
        ("p.csv", 'prompt\n"a ring\na cross\n', r"the row at line 2 is not CSV: unexpected end of data"),
        ("p.json", "[" * 100_000, r"nested too deeply"),
        ("p.jsonl", "[" * 100_000, r"line 1 is not readable JSON: it is nested too deeply"),
        ("p.json", '["a \\ud800"]', r"lone surrogate"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', r"has a duplicate name 'prompt'"),
        ("p.json", f"[{'9' * 5000}]", r"entry 1 must be an object or a string, not inf"),
        ("p.txt", "a\0", r"is not UTF-8 text: it holds NUL characters"),
    ],
)
def test_mistakes_in_prompt_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / name))


def test_a_quote_in_a_row_and_odd_line_ends_stay_in_their_prompt(tmp_path):
    (tmp_path / "p.tsv").write_text('Prompt\tx\n"a ring\t1\na "red" cross\t2\n')
    assert read_prompts(str(tmp_path / "p.tsv")) == ['"a ring', 'a "red" cross']
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.jsonl")) == ["a\u2028b\x85c"]


def test_a_mix_keeps_its_weights_and_takes_the_prompts_of_a_source_in_turn(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"a{i}\n" for i in range(7)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(f"b{i}") + "\n" for i in range(30)))
    mix = read_mix({str(tmp_path / "a.txt"): 3.0, str(tmp_path / "b.jsonl"): 1.0})
    assert isinstance(mix, PromptMix)
    assert (len(mix), mix[0], mix[-1]) == (37, "a0", "b29")
    seen = [p for step in range(500) for p in prompts_of_step(mix, step, 8, seed=0)]
    assert seen == [p for step in range(1000) for p in prompts_of_step(mix, step, 4, seed=0)]
    assert Counter(p[0] for p in seen[:1000]) == Counter(p[0] for p in seen[1000:2000]) == {"a": 750, "b": 250}
    for letter, count in (("a", 7), ("b", 30)):
        turns = [p for p in seen if p[0] == letter]
        epochs = [turns[i : i + count] for i in range(0, 10 * count, count)]
        assert all(sorted(epoch) == sorted({*turns}) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 10
    assert read_mix({str(tmp_path / "a.txt"): 5.0}) == [f"a{i}" for i in range(7)]
    with pytest.raises(InputError, match="begin with 'b0' is under a thousandth"):
        read_mix({str(tmp_path / "a.txt"): 1.0, str(tmp_path / "b.jsonl"): 1e-5})


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_combination_is_trained_on_and_evaluated(category):
    trained, evaluated = split(category)
    assert trained
    assert evaluated
    assert not {combination(r) for r in trained} & {combination(r) for r in evaluated}
    assert len(evaluated) == pytest.approx((len(trained) + len(evaluated)) / 3, rel=0.1)


def test_wordings_of_one_request_are_one_combination():
    trained, evaluated = split("position")
    both = {r.caption: combination(r) for r in [*trained, *evaluated]}
    assert both["a ring left of a cross"] == both["a cross right of a ring"]
    assert both["a ring left of a cross"] != both["a cross left of a ring"]


def test_prompt_sets_are_balanced_and_fixed():
    assert training_prompts() == training_prompts()
    requests = evaluation_requests(50)
    assert Counter(r.category for r in requests) == dict.fromkeys(CATEGORIES, 50)
    assert not {r.caption for r in requests} & set(training_prompts())
