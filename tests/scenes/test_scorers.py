"""The scenes reward: its gradient, its long prompts, and whether it prefers the truth."""

import numpy as np
import pytest
import torch

from dev.scenes.lessons import EVALUATED, lesson, to_tensor
from dev.scenes.matcher import build_matcher
from dev.scenes.networks import build_tokenizer
from hypernoise.generators.registry import load_generator
from hypernoise.noise.draws import keyed_noise
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.ensemble import load_reward
from hypernoise.rewards.network import Resize
from hypernoise.scenes import scorers
from tests.rewards.gradients import assert_gradient_is_right

PROMPTS = ["a red ring and a blue square", "three crosses"]
ACCURACY = 0.95  # that the benchmark asks for, of each in every category


@pytest.fixture
def untrained(tmp_path):
    """A scorer of a kind with random weights, through the same loading as the shipped ones."""

    def build(**settings):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(tmp_path / "tokenizer")
        build_matcher(tokenizer).save_pretrained(tmp_path / "matcher")
        return scorers.Scorer("scenes-match", RewardSettings(**settings), tmp_path / "matcher")

    return build


def test_gradient_is_right_by_finite_differences(untrained):
    scorer = untrained()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    scorer.network.double()
    # the trained models answer in fp32, which bounds what a difference can tell
    assert_gradient_is_right(scorer, pixels, PROMPTS, least=1e-6, step=1e-2, rel=2e-2)
    assert all(p.grad is None and not p.requires_grad for p in scorer.network.parameters())


def test_scores_are_per_sample_and_depend_on_the_prompt(untrained):
    scorer = untrained()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    both, swapped = scorer(pixels, PROMPTS), scorer(pixels, PROMPTS[::-1])
    alone = torch.cat([scorer(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    assert both.shape == (2,)
    assert torch.allclose(both, alone, atol=1e-5)  # padding to the longer caption changes nothing
    assert (both - swapped).abs().min() > 1e-5


FIRST = "a red ring left of a blue square, " * 3
LONG, OTHER = FIRST + "a green cross above a black circle", FIRST + "a yellow cross above a black circle"


def test_truncation_is_warned_of_once(untrained):
    scorer, pixels = untrained(), torch.rand(1, 3, 64, 64)
    with pytest.warns(UserWarning, match="reads 24 tokens, but a prompt has") as warned:
        assert [scorer(pixels, [prompt]).item() for prompt in (LONG, LONG)] == [scorer(pixels, [OTHER]).item()] * 2
    assert len(warned) == 1


def test_settings_reach_the_shipped_scorers():
    reward = load_reward("scenes", RewardSettings(dtype="bfloat16"))
    scores = reward(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), ["a ring"])
    assert scores.dtype == torch.float32
    assert reward.members["scenes-match"].dtype == torch.bfloat16


def test_recomputed_activations_change_neither_score_nor_gradient():
    plain, saving = (load_reward("scenes-match", RewardSettings(checkpointing=on)) for on in (False, True))
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    captions = ["a ring", "a red square"]
    expected, found = plain(pixels, captions), saving(pixels, captions)
    assert torch.equal(expected, found)
    slopes = [torch.autograd.grad(scores.sum(), pixels)[0] for scores in (expected, found)]
    assert slopes[0].abs().max() > 0
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-4, atol=0)


def test_pictures_of_another_size_are_resized(untrained):
    scorer, pixels = untrained(), torch.rand(1, 3, 96, 96)
    assert torch.equal(scorer(pixels, ["a ring"]), scorer.score(Resize(64)(pixels), ["a ring"]))


@pytest.mark.slow
def test_the_shipped_scorers_prefer_the_truth_to_near_misses():
    """On new pictures of evaluation captions, which trained nothing; docs/scenes.md has each category."""
    scorer, rng = load_reward("scenes-match"), np.random.default_rng(7)
    right = {}
    for category, group in EVALUATED.items():
        batch = [lesson(group[rng.integers(len(group))], frozenset(), 2, rng) for _ in range(60)]
        pixels = to_tensor([x.pixels for x in batch])
        with torch.no_grad():
            own = scorer(pixels, [x.caption for x in batch])
            false = [scorer(pixels, [x.false_captions[i] for x in batch]) for i in range(2)]
        right[category] = torch.stack([own > one for one in false]).float().mean().item()
    assert min(right.values()) >= ACCURACY - 1e-6, right


@pytest.mark.slow
def test_the_ensemble_reaches_the_noise_network_through_the_shipped_generator():
    """Directional derivative of the reward along its own gradient, against a central difference."""
    generator = load_generator("scenes", device="cpu")
    noise = keyed_noise(generator.noise_shape, seed=0, step=0, samples=range(2)).requires_grad_()
    condition = generator.encode(PROMPTS)
    reward = load_reward("scenes")
    score = reward(generator.sample(noise, condition), PROMPTS).sum()
    (gradient,) = torch.autograd.grad(score, noise)
    assert gradient.flatten(1).norm(dim=1).min() > 1e-3
    along = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (reward(generator.sample(noise + e * along, condition), PROMPTS).sum() for e in (1e-3, -1e-3))
    assert (up - down).item() / 2e-3 == pytest.approx(gradient.norm().item(), rel=0.02)
