"""Benchmarks of questions: their files, their scores by hand, and a tiny random model."""

import json

import numpy as np
import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.evaluation.questions import (
    KINDS,
    Question,
    QuestionJudge,
    benchmark,
    read_dpg,
    read_geneval2,
    read_items,
    read_unigenbench,
    score_dpg,
    score_soft,
)
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, normalise
from hypernoise.rewards.vqa import VLMS, VqaReward
from tests.rewards.test_vqa import small, tokenizer  # noqa: F401

COLUMNS = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed"]
DPG = f"""{",".join(COLUMNS)},tuple,question_natural_language
p1,"A ring, on a square",x,1,0,entity,whole,entity - whole (ring),Is there a ring?
p1,"A ring, on a square",x,2,0,entity,whole,entity - whole (square),Is there a square?
p1,"A ring, on a square",x,3,"1, 2",relation,spatial,relation - spatial,Is the ring on the square?
p2,Two rings,x,1,0,entity,whole,entity - whole (rings),Are there rings?
"""
SOFT = {
    "prompt": "two rings",
    "atom_count": 2,
    "vqa_list": [["How many rings are in the image?", "two"], ["Are there any rings in the image?", "Yes"]],
    "skills": ["count", "object"],
}


def test_dpgs_questions_with_what_they_depend_on():
    (one, first), (other, second) = read_dpg(DPG, "dpg.csv")
    assert (one, other) == ("A ring, on a square", "Two rings")
    assert first[2] == Question("Is the ring on the square?", "yes", "relation", (0, 1))
    assert first[0].parents == second[0].parents == ()


def test_dpg_counts_a_child_only_with_its_parents():
    a, b = Question("a?", "yes", "entity"), Question("b?", "yes", "entity")
    item = (a, b, Question("c?", "yes", "relation", (0, 1)))
    assert score_dpg(item, [0.9, 0.8, 0.7]) == (1.0, [1, 1, 1])
    assert score_dpg(item, [0.9, 0.3, 0.7]) == (pytest.approx(1 / 3), [1, 0, 1])  # categories count it as answered
    assert score_dpg(item, [0.9, 0.8, 0.5]) == (pytest.approx(2 / 3), [1, 1, 0])


def test_dpg_passes_a_no_on_to_grandchildren():
    """In the file's order, as the official script: one that stands before its parent sees the parent's own answer."""
    a, b = Question("a?", "yes", "entity"), Question("b?", "yes", "attribute", (0,))
    assert score_dpg((a, b, Question("c?", "yes", "relation", (1,))), [0.1, 0.9, 0.9]) == (0, [0, 1, 1])
    early = (Question("c?", "yes", "relation", (2,)), a, Question("b?", "yes", "attribute", (1,)))
    assert score_dpg(early, [0.9, 0.1, 0.9]) == (pytest.approx(1 / 3), [1, 0, 1])


POINTS = {
    "Primary Categories": "Art",
    "Testpoints": ["Style", "Attribute - Quantity"],
    "Testpoint Description": ["ink wash painting", "two pandas, seated"],
}


def unigenbench(points):
    text = json.dumps(points).replace('"', '""')
    return f'index,prompt_en,sub_dims_en\n0,"Ink, two pandas, seated",{chr(34)}{text}{chr(34)}\n'


def test_unigenbench_asks_for_each_test_point(tmp_path):
    (tmp_path / "test_prompts_en.csv").write_text(unigenbench(POINTS))
    kind, items = read_items(tmp_path / "test_prompts_en.csv")
    ((prompt, item),) = items.items()
    assert (kind.name, prompt) == ("unigenbench", "Ink, two pandas, seated")
    assert [question.category for question in item] == ["Style", "Attribute"]
    assert item[1].text == 'Does the picture show "two pandas, seated" (Attribute - Quantity)?'
    assert kind.score(item, [0.9, 0.4]) == (0.5, [1, 0])
    for wrong in ({**POINTS, "Testpoints": ["Style"]}, {**POINTS, "Testpoints": [1, 2]}, {"Testpoints": []}, []):
        with pytest.raises(InputError, match="line 2: sub_dims_en needs Testpoints and Testpoint Description"):
            list(read_unigenbench(unigenbench(wrong), "wrong.csv"))
    with pytest.raises(InputError, match="line 2: sub_dims_en is not JSON"):
        list(read_unigenbench("index,prompt_en,sub_dims_en\n0,a,{\n", "wrong.csv"))


def test_geneval2_and_its_geometric_mean():
    ((prompt, item),) = read_geneval2(json.dumps(SOFT) + "\n", "two.jsonl")
    assert prompt == "two rings"
    assert item[0] == Question("How many rings are in the image?", "two", "count")
    score, counted = score_soft(item, [0.9, 0.4])
    assert score == pytest.approx(0.6)
    assert counted == [0.9, 0.4]
    assert score_soft(item, [0.0, 1.0])[0] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".csv", "item_id,text\np1,ring\n", "line 2: it lacks a column; needed are item_id, text, proposition_id"),
        (".csv", DPG.replace('"1, 2"', "7"), "dependency '7' does not name other questions of p1"),
        (".csv", DPG.replace('"1, 2"', "3"), "dependency '3' does not name other questions"),
        (".csv", DPG + "p3,short\n", "line 6: it lacks a column"),
        (".csv", DPG.splitlines()[0], "has no prompts of dpg"),
        (".jsonl", "{", "line 1 is not JSON"),
        (".jsonl", "\n[]", "line 2: needs a prompt, a vqa_list"),
        (".jsonl", json.dumps({**SOFT, "skills": ["count"]}), "as many skills"),
        (".jsonl", json.dumps({**SOFT, "vqa_list": [["How?"], ["a", "b"]]}), "needs a prompt, a vqa_list"),
    ],
)
def test_unusable_question_files_are_refused(tmp_path, suffix, text, message):
    file = tmp_path / f"file{suffix}"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_items(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_items(tmp_path / f"none{suffix}")
    with pytest.raises(InputError, match="takes dpg_bench.csv"):
        read_items(tmp_path / "file.png")


def picture(seed=0):
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_a_vqa_model_gives_the_right_answers_probability(tokenizer, small):  # noqa: F811
    reward = VqaReward("vqascore", small("vqascore"), tokenizer, VLMS["vqascore"])
    judge, asked = QuestionJudge(KINDS[0], {}, reward), [Question("three crosses", "yes", "object")]
    asked.append(Question("crosses", "No", "object"))
    found = [judge.probability(picture(), question) for question in asked]
    for one, question in zip(found, asked, strict=True):
        text = VLMS["vqascore"].chat.replace("<image>", "<image> " * reward.places(torch.empty(0)))
        text = text.replace("{question}", f"{question.text} Please answer yes or no.")
        ids = tokenizer(text, return_tensors="pt").input_ids
        seen = normalise(picture()[None], CLIP_MEAN, CLIP_STD)
        with torch.no_grad():
            logits = reward.network(input_ids=ids, pixel_values=seen).logits[0, -1]
        word = tokenizer.convert_tokens_to_ids(question.answer.capitalize())
        assert one == pytest.approx(logits.softmax(-1)[word].item(), rel=1e-4)
    fresh = VqaReward("vqascore", small("vqascore"), tokenizer, VLMS["vqascore"])
    one, other = (each(picture()[None], ["three crosses"]).exp().item() for each in (reward, fresh))
    assert one == other != pytest.approx(found[0])  # the reward itself asks as it did


def test_the_judge_asks_each_prompts_own_questions(tmp_path):
    (tmp_path / "dpg.csv").write_text(DPG)
    kind, items = read_items(tmp_path / "dpg.csv")
    asked = []

    class Model:
        name = "mine"

        def asking(self, sentence, answer):
            def ask(pixels, questions):
                asked.append((tuple(pixels.shape), *questions, sentence, answer))
                return torch.tensor([[0.9, 0.8, 0.3][len(asked) - 1]], dtype=torch.float64).log()

            return ask

    judge = QuestionJudge(kind, items, Model())
    found = judge(np.zeros((4, 6, 3), np.float32), "A ring, on a square")
    sentence = "{} Please answer yes or no."
    assert asked == [((1, 3, 4, 6), question.text, sentence, "Yes") for question in items["A ring, on a square"]]
    assert (judge.name, found.right) == ("dpg by mine", pytest.approx(2 / 3))
    assert found.parts == {"entity": [1.0, 1.0], "relation": [0.0]}
    assert found.note == "0.667; Is the ring on the square?"
    assert [one["probability"] for one in found.details] == pytest.approx([0.9, 0.8, 0.3])
    (tmp_path / "dpg.csv").write_text(DPG + "p3,Two rings,x,1,0,entity,whole,entity - whole (rings),Are there two?\n")
    with pytest.raises(InputError, match="'Two rings' appears twice in .*dpg.csv, with different questions"):
        benchmark(str(tmp_path / "dpg.csv"), 0)


def test_a_model_that_is_not_there_is_named(tmp_path):
    (tmp_path / "dpg.csv").write_text(DPG)

    def load(name):
        benchmark(str(tmp_path / "dpg.csv"), 0, name).load_judge("cpu")

    with pytest.raises(InputError, match="unknown judge 'vqascore-smal'; did you mean 'vqascore-small'"):
        load("vqascore-smal")
    with pytest.raises(InputError, match="llava-hf/llava-1.5-7b-hf cannot be loaded"):
        load("vqascore")
