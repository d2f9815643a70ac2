import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.methods.base import Problem, fresh_noise
from hypernoise.methods.search import Search
from hypernoise.rewards.pixel import redness
from tests.conftest import Recorded

PROMPTS = ["a red circle", "two blue rings", "a cross"]


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rounds_build_on_each_other_and_the_best_is_kept(generator, noise):
    first, second = Recorded(redness), Recorded(redness)
    result = Search(3, 2).generate(Problem(generator, first), PROMPTS, noise)
    assert first.scores.shape == (3, 7)
    assert redness(result.pixels, PROMPTS).tolist() == pytest.approx(first.scores.amax(1).tolist())
    again = generator.sample(result.noise, generator.encode(PROMPTS))
    assert torch.allclose(again, result.pixels, atol=1e-10)
    spent = result.spent
    assert (spent.denoiser_forwards, spent.denoiser_backwards, spent.decodes, spent.reward_calls) == (21, 0, 21, 21)
    Search(4, 2).generate(Problem(generator, second), PROMPTS, noise)
    assert torch.equal(second.scores[:, :7], first.scores)


def test_neighbours_are_near_and_keep_the_noises_scale(generator, noise):
    drawn = []

    def spy(noise, condition, **settings):
        drawn.append(noise)
        return sample(noise, condition, **settings)

    sample, generator.sample = generator.sample, spy
    Search(1, 3).generate(Problem(generator, redness), PROMPTS, noise)
    for neighbour in drawn[1:]:
        likeness = torch.cosine_similarity(neighbour.flatten(1), noise.flatten(1), dim=1)
        assert (likeness - 0.866).abs().max() < 0.08  # √(1 − 0.5²)
        assert abs(neighbour.std() - 1) < 0.1


def test_a_round_starts_from_the_best_so_far(generator, noise):
    drawn = []

    def spy(noise, condition, **settings):
        drawn.append(noise)
        return sample(noise, condition, **settings)

    sample, generator.sample = generator.sample, spy
    ever_better = Problem(generator, lambda pixels, prompts: pixels.new_full((len(pixels),), float(len(drawn))))
    Search(2, 2).generate(ever_better, PROMPTS, noise)
    assert len(drawn) == 5
    for turn, best in ((1, 0), (2, 0), (3, 2), (4, 2)):
        assert torch.allclose(drawn[turn], 0.75**0.5 * drawn[best] + 0.5 * fresh_noise(noise, turn))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Search(**settings)
