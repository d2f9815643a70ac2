from collections import Counter

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.methods.base import Problem
from hypernoise.methods.best_of_n import Plain
from hypernoise.methods.prompt_search import PromptSearch
from hypernoise.rewards.pixel import redness

PROMPTS = ["a red circle", "two blue rings", "a cross"]


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rewrite(prompt, number):
    """The cross has none; one of the circle's is too long for the text encoder."""
    wordings = {
        "a red circle": ["red " * 40, "a circle", "a red ring"],
        "two blue rings": ["two rings", "two blue rings"],
    }
    return wordings.get(prompt, [])[:number]


def test_a_rewriter_returns_a_list(generator, noise):
    with pytest.raises(InputError, match="a rewriter's result is a single text; put it in a list"):
        PromptSearch(lambda prompt, number: "a circle", 2).generate(Problem(generator, redness), PROMPTS, noise)


def test_each_prompt_keeps_its_best_wording(generator, noise):
    problem, seen = Problem(generator, redness), []

    def reward(pixels, prompts):
        seen.extend(prompts)
        return redness(pixels, prompts)

    result = PromptSearch(rewrite, 4).generate(Problem(generator, reward), PROMPTS, noise)
    assert Counter(seen) == {"a red circle": 3, "two blue rings": 2, "a cross": 1}
    assert (result.spent.denoiser_forwards, result.spent.reward_calls, result.spent.decodes) == (6, 6, 6)
    candidates = [["a red circle", "a circle", "a red ring"], ["two blue rings", "two rings"], ["a cross"]]
    for i, texts in enumerate(candidates):
        drawn = generator.sample(noise[i].expand(len(texts), -1, -1, -1), generator.encode(texts))
        scores = redness(drawn, texts)
        assert result.prompts[i] == texts[int(scores.argmax())]
        assert torch.allclose(result.pixels[i], drawn[int(scores.argmax())].to(result.pixels.dtype), atol=1e-10)
    assert torch.equal(result.noise, noise)
    alone = PromptSearch(rewrite, 1).generate(problem, PROMPTS, noise)
    assert torch.equal(alone.pixels, Plain().generate(problem, PROMPTS, noise).pixels)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="n must be at least 1"):
        PromptSearch(rewrite, 0)
