from collections import Counter

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.scenes.prompts import combination, evaluation_requests, split, training_prompts
from hypernoise.scenes.world import CATEGORIES
from hypernoise.training.noise import keyed_noise
from hypernoise.training.prompts import prompts_of_step, read_prompts


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
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(str(file))
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(str(tmp_path / "nowhere.txt"))


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
