"""Benchmarks of questions: their files, their scores by hand, and their askers on tiny random models."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipConfig, BlipForQuestionAnswering

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation.questions import (
    Item,
    Question,
    phrases,
    read_compbench,
    read_dpg,
    read_geneval2,
    read_items,
    score_dpg,
    score_product,
    score_soft,
)
from hypernoise.evaluation.vqa_models import BlipAsker, LlavaAsker, load
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalise
from hypernoise.rewards.vqa import VLMS, VqaReward
from tests.evaluation.geneval.conftest import build_tokenizer
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


def test_dpgs_questions_with_what_they_depend_on(tmp_path):
    (tmp_path / "dpg.csv").write_text(DPG)
    first, second = read_dpg(tmp_path / "dpg.csv")
    assert (first.name, first.prompt, second.prompt) == ("p1", "A ring, on a square", "Two rings")
    assert first.questions[2] == Question("Is the ring on the square?", "yes", "relation", (0, 1))
    assert first.questions[0].parents == second.questions[0].parents == ()


def test_dpg_counts_a_child_only_with_its_parents():
    a, b = Question("a?", "yes", "entity"), Question("b?", "yes", "entity")
    item = Item("p", "a on b", (a, b, Question("c?", "yes", "relation", (0, 1))))
    assert score_dpg(item, [0.9, 0.8, 0.7]) == (1.0, [1, 1, 1])
    assert score_dpg(item, [0.9, 0.3, 0.7]) == (pytest.approx(1 / 3), [1, 0, 1])  # categories count it as answered
    assert score_dpg(item, [0.9, 0.8, 0.5]) == (pytest.approx(2 / 3), [1, 1, 0])


def test_dpg_passes_a_no_on_to_grandchildren():
    """In the file's order, as the official script: one that stands before its parent sees the parent's own answer."""
    a, b = Question("a?", "yes", "entity"), Question("b?", "yes", "attribute", (0,))
    assert score_dpg(Item("p", "a", (a, b, Question("c?", "yes", "relation", (1,)))), [0.1, 0.9, 0.9]) == (0, [0, 1, 1])
    early = Item("p", "a", (Question("c?", "yes", "relation", (2,)), a, Question("b?", "yes", "attribute", (1,))))
    assert score_dpg(early, [0.9, 0.1, 0.9]) == (pytest.approx(1 / 3), [1, 0, 1])


def test_geneval2_and_its_geometric_mean(tmp_path):
    (tmp_path / "two.jsonl").write_text(json.dumps(SOFT) + "\n")
    (item,) = read_geneval2(tmp_path / "two.jsonl")
    assert item.questions[0] == Question("How many rings are in the image?", "two", "count")
    score, counted = score_soft(item, [0.9, 0.4])
    assert score == pytest.approx(0.6)
    assert counted == [0.9, 0.4]
    assert score_soft(item, [0.0, 1.0])[0] == pytest.approx(1e-6)


def test_compbench_asks_for_each_noun_phrase(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl.\n\nA red book\n")
    bench, book = read_compbench(tmp_path / "color_val.txt")
    assert [question.text for question in bench.questions] == ["a green bench?", "a blue bowl?"]
    assert {question.category for question in bench.questions} == {"color"}
    assert book.prompt == "A red book"
    assert phrases("a fluffy towel, a glass vase and wooden chairs") == [
        "a fluffy towel",
        "a glass vase",
        "wooden chairs",
    ]
    assert phrases("The black chair is on the left of the white table") == ["The black chair", "the white table"]
    assert phrases("The oval mirror and its frame were mounted on the wall") == [
        "The oval mirror",
        "its frame",
        "the wall",
    ]
    assert phrases("The wooden crate and glass bottle for the soda by a door") == [
        "The wooden crate",
        "glass bottle",
        "the soda",
        "a door",
    ]
    (tmp_path / "long_val.txt").write_text(", ".join(f"a ring {i}" for i in range(10)))
    assert [q.text for q in read_compbench(tmp_path / "long_val.txt")[0].questions] == [
        f"a ring {i}?" for i in range(8)
    ]
    assert phrases("sandals") == ["sandals"]  # "and" inside a word parts nothing
    assert score_product(bench, [0.5, 0.4]) == (pytest.approx(0.2), [0.5, 0.4])


def test_spacys_chunks_where_it_is_installed(tmp_path, monkeypatch):
    """Here a stand-in: its model is not to be had from a package index."""
    (tmp_path / "color_val.txt").write_text("A black and white cat sits\nRun")

    class Parsed:
        def __init__(self, text):
            self.noun_chunks = [SimpleNamespace(text="A black and white cat")] if "cat" in text else []

    def load_language(name):
        assert name == "en_core_web_sm"
        return Parsed

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load_language))
    cat, run = read_items("t2i-compbench-spacy", tmp_path / "color_val.txt")
    assert [question.text for question in cat.questions] == ["A black and white cat?"]
    assert [question.text for question in run.questions] == ["Run?"]
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match=r"pip install 'hypernoise\[spacy\]', then python -m spacy download en_core_"):
        read_items("t2i-compbench-spacy", tmp_path / "color_val.txt")


@pytest.mark.parametrize(
    ("benchmark", "text", "message"),
    [
        ("dpg", "item_id,text\np1,ring\n", "has no column 'proposition_id'"),
        ("dpg", DPG.replace('"1, 2"', "7"), "line 4: dependency '7' is no other question of p1"),
        ("dpg", DPG.replace('"1, 2"', "3"), "line 4: dependency '3' is no other question"),
        ("dpg", DPG + "p3,short\n", "line 6: fewer columns"),
        ("dpg", DPG.splitlines()[0], "holds no prompt of dpg"),
        ("geneval2", "{", "line 1: not JSON"),
        ("geneval2", "\n[]", "line 2: needs a prompt, a vqa_list"),
        ("geneval2", json.dumps({**SOFT, "skills": ["count"]}), "as many skills"),
        ("geneval2", json.dumps({**SOFT, "vqa_list": [["How?"], ["a", "b"]]}), "needs a prompt, a vqa_list"),
        ("t2i-compbench", "\n", "holds no prompt of t2i-compbench"),
    ],
)
def test_files_that_cannot_be_asked_from(tmp_path, benchmark, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError, match=message):
        read_items(benchmark, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be read"):
        read_items(benchmark, tmp_path / "none")


def picture(seed=0):
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_a_llava_gives_the_right_answers_probability(tokenizer, small):  # noqa: F811
    reward = VqaReward("vqascore", small("vqascore"), tokenizer, VLMS["vqascore"])
    asker, asked = LlavaAsker(reward), [Question("three crosses", "yes", "object"), Question("crosses", "No", "object")]
    found = asker(picture(), asked, "{} Please answer yes or no.")
    for one, question in zip(found, asked, strict=True):
        text = VLMS["vqascore"].chat.replace("<image>", "<image> " * reward.places)
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


def build_blip():
    words = build_tokenizer()
    words.add_tokens(["yes", "no", "<dec>", "<enc>"])
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    start = words.convert_tokens_to_ids("<dec>")
    text = {**layers, "vocab_size": len(words), "bos_token_id": start, "encoder_hidden_size": 16, "is_decoder": True}
    vision = {**layers, "image_size": 16, "patch_size": 8}
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
    return model, words


def test_blip_weighs_yes_against_no():
    """Against the whole model's own forward pass, whose mark at the question's start is the one it was trained with."""
    model, words = build_blip()
    asker = BlipAsker(model, words, "tiny")
    questions = [Question("a red circle?", "yes", "color"), Question("a blue ring?", "yes", "color")]
    found = asker(picture(), questions, "{}")
    assert abs(found[0] - found[1]) > 1e-4
    ids = words("a red circle?", return_tensors="pt").input_ids
    ids[0, 0] = words.convert_tokens_to_ids("<enc>")
    seen = normalise(asker.resize(picture()[None]), CLIP_MEAN, CLIP_STD)
    features = model.vision_model(seen)[0]
    read = model.text_encoder(input_ids=ids, encoder_hidden_states=features)[0]
    start = torch.tensor([[words.convert_tokens_to_ids("<dec>")]])
    logits = model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[0, 0].detach().numpy()
    yes, no = (np.exp(logits[words.convert_tokens_to_ids(word)]) for word in ("yes", "no"))
    assert found[0] == pytest.approx(yes / (yes + no), rel=1e-4)
    assert asker(1 - picture(), questions, "{}")[0] != pytest.approx(found[0], abs=1e-4)
    with pytest.raises(InputError, match="answers yes or no only, and a right answer is 'two'"):
        asker(picture(), [Question("how many?", "two", "count")], "{}")


@pytest.fixture
def call(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    model, words = build_blip()
    model.save_pretrained(tmp_path / "blip")
    words.save_pretrained(tmp_path / "blip")
    (tmp_path / "color_val.txt").write_text("a red circle and a blue ring\na ring\n")
    return [
        "evaluate", "questions", "--benchmark", "t2i-compbench", "--prompts", str(tmp_path / "color_val.txt"),
        "--asker", str(tmp_path / "blip"), "--generator", str(tmp_path / "tiny"), "--noises", "2", "--device", "cpu",
        "--methods", "best-of-2", "--rewards", "redness", "--output", str(tmp_path / "out"),
    ]  # fmt: skip


def test_drawn_asked_and_kept_question_by_question(call, tmp_path, capsys, monkeypatch):
    assert main([*call, "--report"]) == 0
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    plain, best = told["results"]
    lines = [json.loads(x) for x in (tmp_path / "out" / "questions-plain-1.jsonl").read_text().splitlines()]
    assert [len(line["questions"]) for line in lines] == [2, 2, 1, 1]
    for line in lines:
        assert line["score"] == pytest.approx(np.prod([q["probability"] for q in line["questions"]]))
        assert Image.open(next((tmp_path / "out").rglob(f"plain-*/{line['file']}"))).size == (16, 16)
    assert plain["score"] == pytest.approx(np.mean([line["score"] for line in lines]))
    assert plain["categories"]["color"] == pytest.approx(
        np.mean([q["probability"] for line in lines for q in line["questions"]])
    )
    assert best["gain"] == pytest.approx(best["score"] - plain["score"])
    assert f"{plain['score']:.3f}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 4  # two prompts, two methods
    unsure = [q["question"] for q in lines[0]["questions"] if q["probability"] <= 0.5]
    assert f"<small>{'; '.join([format(lines[0]['score'], '.3f'), *unsure])}</small>" in page
    monkeypatch.setattr(BlipAsker, "__call__", None)  # answers are kept
    assert main(call) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["results"] == told["results"]


@pytest.mark.parametrize("text", ["", "[0.5", "[]", '["yes", "no"]', "7"])
def test_kept_answers_that_are_damaged_are_asked_again(call, tmp_path, text):
    ways = [*call, "--methods", "plain", "--noises", "1"]
    assert main(ways) == 0
    before = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    kept = min((tmp_path / "out" / "answers").iterdir())
    kept.write_text(text)
    assert main(ways) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["results"] == before


def test_shards_share_drawing_and_asking(call, tmp_path, capsys):
    ways = ["--batch-size", "2", "--methods", "plain"]
    assert main([*call, *ways, "--shard", "0/2"]) == 0
    assert "1 batches of pictures are left to other shards" in capsys.readouterr().err
    assert main([*call, *ways, "--shard", "1/2"]) == 0  # draws the rest, and asks about its half
    assert "2 pictures to ask about are left to other shards" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "answers").iterdir())) == 2
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main([*call, *ways, "--shard", "0/2"]) == 0
    (shared,) = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert main([*call, *ways, "--output", str(tmp_path / "alone")]) == 0
    (alone,) = json.loads((tmp_path / "alone" / "summary.json").read_text())["results"]
    assert (shared["score"], shared["categories"]) == (alone["score"], alone["categories"])


def test_a_prompt_that_is_too_long_is_refused_or_cut(call, tmp_path, capsys):
    (tmp_path / "color_val.txt").write_text("a ring\n" + "a red circle and a blue ring and " * 9 + "a ring\n")
    ways = [*call, "--methods", "plain", "--noises", "1"]
    assert main(ways) == 2
    told = capsys.readouterr().err.strip()
    assert "prompt 2 of 2 has" in told
    assert told.endswith("shorten it, or have such prompts cut with --long-prompts cut")
    assert "\n" not in told
    assert main([*ways, "--long-prompts", "cut"]) == 0
    assert "1 of 2 prompts are longer than the generator's text encoder: only their" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cut_prompts"] == 1
    lines = [json.loads(x) for x in (tmp_path / "out" / "questions-plain-1.jsonl").read_text().splitlines()]
    assert len(lines[1]["questions"]) == 8  # they are asked of the whole prompt


def test_mistakes_are_told_in_one_line(call, tmp_path, capsys):
    for more, message in (
        (["--prompts", "nowhere"], "nowhere cannot be read"),
        (["--asker", "nowhere/blip"], "asker nowhere/blip cannot be loaded"),
        (["--noises", "0"], "--noises must be at least 1"),
        (["--methods", "reno-2", "--rewards"], "reno-2 searches by a reward"),
    ):
        assert main([*call, *more]) == 2
        told = capsys.readouterr().err.strip()
        assert message in told
        assert "\n" not in told
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="cannot be loaded"):
        load("nowhere/at-all", "cpu")
