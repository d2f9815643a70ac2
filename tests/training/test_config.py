import re
from pathlib import Path

import pytest

from hypernoise.errors import InputError
from hypernoise.training import config
from hypernoise.training.config import Recipe, TrainConfig, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_shipped_recipe_parses(file):
    assert isinstance(read_recipe(file), Recipe)


def test_there_are_recipes():
    assert RECIPES


def test_a_recipe_is_read_as_it_is_written(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("steps: 7\nlr: 1e-3\nrewards: {redness: 2}\noptimizer: sgd\ndecay: true\n")
    recipe = read_recipe(file)
    assert (recipe.steps, recipe.lr, recipe.optimizer, recipe.decay) == (7, 1e-3, "sgd", True)
    assert recipe.rewards == {"redness": 2.0}


def test_rewards_may_be_one_name(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("rewards: scenes\n")
    assert read_recipe(file).rewards == {"scenes": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 7", "'stepz'; did you mean 'steps'"),
        ("steps: [1", "not valid YAML at line"),
        ("- steps", "must hold fields"),
        ("steps: many", "steps must be int, not 'many'"),
        ("steps: 1.5", "steps must be int"),
        ("lr: fast", "lr must be float"),
        ("decay: 1", "decay must be bool"),
        ("optimizer: adam", "optimizer must be one of adamw, sgd"),
        ("rewards: 3", "rewards must be a name or map names to numbers"),
        ("rewards: {redness: high}", "rewards.redness must be float"),
        ("rewards: {}", "rewards is empty"),
        ("rank: 0", "rank must be at least 1"),
        ("alpha: 0", "alpha must be a positive number"),
        ("rewards: {redness: .nan}", "the weight of reward 'redness' must be a number"),
        ("seed: -1", "seed must be from 0"),
        ("steps: \0", "not valid YAML"),
        ("batch_size: 0", "batch_size must be at least 1"),
        ("watched_every: 0", "watched_every must be at least 1"),
        ("watched: redness\npatience: 2", "patience must be 0 (never stop early) or at least 3 readings"),
        ("patience: 5", "patience needs a watched reward; for example watched"),
        ("watched: {redness: .inf}", "the weight of reward 'redness' must be a number"),
        ("long_prompts: chunk", "long_prompts must be one of truncate, chunk-mean, chunk-min"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, message):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_recipe(file)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
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
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"seed": -1}, "seed must be from 0"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"sample_clip": -1.0}, "sample_clip must be 0 or more"),
        ({"batch_size": 10, "accumulation": 4}, "the next batch_size that fits is 12"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(**values)


def test_frequencies_of_a_recipe_are_not_negative():
    with pytest.raises(InputError, match="frequencies must be 0 or more, not -2"):
        Recipe(frequencies=-2)


def test_a_source_of_prompts_may_have_any_number_for_a_weight_and_is_named_once():
    read = config._sources_from_flags
    assert read(["a.txt=1e-1", "b.txt=.5", "c.txt", "d=e.txt"]) == {
        "a.txt": 0.1,
        "b.txt": 0.5,
        "c.txt": 1,
        "d=e.txt": 1,
    }
    with pytest.raises(InputError, match="prompts 'a.txt' are named twice"):
        read(["a.txt=1", "a.txt"])
