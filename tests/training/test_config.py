import os
import re
from pathlib import Path

import pytest

from hypernoise.commands import flags
from hypernoise.commands.flags import parse
from hypernoise.commands.train import Train
from hypernoise.errors import InputError
from hypernoise.training.config import LoRA, Recipe, TrainConfig, read_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
MULTIPLIED = ", ".join(f"&a{i + 1} [{', '.join(9 * [f'*a{i}'])}]" for i in range(9))  # 9**9 in all
RECIPES = sorted(FOLDER.glob("**/*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_shipped_recipe_parses_and_has_a_spectral_sibling(file):
    recipe = read_recipe(file)
    assert isinstance(recipe, Recipe)
    sibling = parse(Train, [str(file), "--noise-network", "spectral"])
    assert (sibling.noise_network, sibling.generator) == ("spectral", recipe.generator)


def test_the_papers_recipes_differ_from_ours_in_what_their_heads_say():
    ours, paper = (read_recipe(FOLDER / name) for name in ("sana-sprint-0.6b.yaml", "paper/sana-sprint-0.6b.yaml"))
    assert (ours.lora.layers, paper.lora.layers) == (("without-depthwise",), ())
    assert (ours.one_noise_per_step, paper.one_noise_per_step) == (False, True)
    assert paper.lr_warmup_steps == 6 * ours.lr_warmup_steps


def test_there_are_recipes():
    assert RECIPES


def test_a_recipe_is_read_as_it_is_written(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "max_train_steps: 7\nlearning_rate: 1e-3\nrewards: {redness: 2}\noptimizer: sgd\nlora: {rank: 4, alpha: 8}\n"
    )
    recipe = read_recipe(file)
    assert (recipe.max_train_steps, recipe.learning_rate, recipe.optimizer) == (7, 1e-3, "sgd")
    assert recipe.lora == LoRA(rank=4, alpha=8.0)
    assert recipe.rewards == {"redness": 2.0}


def test_rewards_may_be_one_name(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("rewards: scenes\n")
    assert read_recipe(file).rewards == {"scenes": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_train_step: 7", "'max_train_step'; did you mean 'max_train_steps'"),
        ("lora: {rnk: 7}", "'lora.rnk'; did you mean 'lora.rank'"),
        ("lora: 7", "lora is a group of fields, such as lora: {...}, not '7'"),
        ("rank: 7", "'rank'; did you mean 'lora.rank'"),
        ("gradient_checkpointing: true", "did you mean 'memory.gradient_checkpointing'"),
        ("steps: [1", "not valid YAML at line"),
        ("- max_train_steps", "must hold fields"),
        ("max_train_steps: many", "max_train_steps must be a whole number, not 'many'"),
        ("max_train_steps: 1.5", "max_train_steps must be a whole number"),
        ("learning_rate: fast", "learning_rate must be a number"),
        ("reward_checkpointing: 1", "reward_checkpointing must be true or false"),
        ("optimizer: adam", "optimizer must be one of adamw, sgd"),
        ("rewards: [redness]", "rewards must be a name or map names to numbers"),
        ("rewards: {redness: high}", "rewards.redness must be a number"),
        ("rewards: {}", "rewards is empty"),
        ("lora: {rank: 0}", "rank must be at least 1"),
        ("lora: {alpha: 0}", "lora.alpha must be a positive number"),
        ("rewards: {redness: nan}", "the weight of reward 'redness' must be a number"),
        ("seed: -1", "seed must be from 0"),
        ("steps: \0", "is not UTF-8 text"),
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("lora: {rank: 2, rank: 4}", "duplicate key 'rank'"),
        (f"seed: {'9' * 5000}", "seed must be a whole number, not '999"),
        (f"learning_rate: {'9' * 5000}", "learning_rate must be a positive number, not inf"),
        ("seed: 2024-13-45", "seed must be a whole number, not '2024-13-45'"),
        ("seed: !!bool x", "seed must be a whole number, not 'x'"),
        ("rewards: " + "[" * 100_000, "maximum recursion depth"),
        ("rewards: &a {redness: *a}", "recursive"),
        (f"rewards: [&a0 [x], {MULTIPLIED}]", "rewards must be a name or map names to numbers"),
        ('validation_prompts: ["\\ud800"]', "surrogates not allowed"),
        ("validation_prompts: [" + "a, " * 100_000 + "]", "is too long: "),
        ("train_batch_size: 1000000000", "train_batch_size must be at most 65536"),
        (f"max_train_steps: {10**23}", "max_train_steps must be at most 1000000000"),
        ("lora: {rank: 100000}", "lora.rank must be at most 4096"),
        ("height: 1000000000", "height must be at most 16384"),
        ("num_inference_steps: [" + "1, " * 2000 + "]", "num_inference_steps must be 1 to 1000 numbers, not 2000"),
        ("learning_rate: 1e308", "learning_rate must be a positive number"),
        ("rewards: {redness: 1e400}", "the weight of reward 'redness' must be a number, not inf"),
        ("train_batch_size: 0", "train_batch_size must be at least 1"),
        ("validation_steps: 0", "validation_steps must be at least 1"),
        ("validation_reward: redness\npatience: 2", "patience must be 0 (never stop early) or at least 3 readings"),
        ("patience: 5", "patience needs a validation reward; for example validation_reward"),
        ("validation_reward: {redness: inf}", "the weight of reward 'redness' must be a number"),
        ("reward_dtype: float16", "reward_dtype must be one of float32, bfloat16"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, message):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_recipe(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_is_not_waited_for(tmp_path, make):
    make(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="cannot be read: it is not a file"):
        read_recipe(tmp_path / "r.yaml")


def test_a_revision_that_looks_like_a_date_stays_a_word(tmp_path):
    (tmp_path / "r.yaml").write_text("revision: 2024-05-01\nmixed_precision: no\npush_to_hub: no\n")
    assert read_recipe(tmp_path / "r.yaml").revision == "2024-05-01"


@pytest.mark.parametrize("value", ["16", 16.0, True, None, pytest.param(10**5000, id="long")])
def test_a_callers_numbers_go_through_the_same_door(value):
    if value == "16":
        assert TrainConfig(train_batch_size=value).train_batch_size == 16
        return
    with pytest.raises(InputError, match="train_batch_size must be"):
        TrainConfig(train_batch_size=value)


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_recipe(file)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_train_steps": 0}, "max_train_steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"seed": -1}, "seed must be from 0"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"sample_clip": -1.0}, "sample_clip must be 0 or more"),
        ({"train_batch_size": 10, "gradient_accumulation_steps": 4}, "the next that fits is 12"),
        ({"learning_rates": 1.0}, "unknown field 'learning_rates'; did you mean 'learning_rate'?"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(**values)


def test_a_source_of_prompts_may_have_any_number_for_a_weight_and_is_named_once():
    read = flags._weights
    assert read(["a.txt=1e-1", "b.txt=.5", "c.txt", "d=e.txt"]) == {
        "a.txt": 0.1,
        "b.txt": 0.5,
        "c.txt": 1,
        "d=e.txt": 1,
    }
    with pytest.raises(InputError, match="'a.txt' is named twice"):
        read(["a.txt=1", "a.txt"])
