import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import ENSEMBLES, WeightedSum, load_reward, members_of
from hypernoise.rewards.pixel import PIXEL_REWARDS, redness

PROMPTS = ["a", "b"]


def random_pixels():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_gradient_matches_finite_differences(name):
    pixels = random_pixels().requires_grad_()
    score = PIXEL_REWARDS[name](pixels, PROMPTS)
    assert score.shape == (2,)
    (gradient,) = torch.autograd.grad(score.sum(), pixels)
    assert gradient.abs().max() > 0
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 1e-7
    ahead, behind = (PIXEL_REWARDS[name](pixels.detach() + s * h * direction, PROMPTS).sum() for s in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * h)).item(), rel=1e-5)


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_scores_are_per_sample(name):
    pixels = random_pixels()
    both = PIXEL_REWARDS[name](pixels, PROMPTS)
    alone = torch.cat([PIXEL_REWARDS[name](p[None], ["x"]) for p in pixels])
    assert torch.allclose(both, alone)


@pytest.mark.parametrize(
    ("name", "color", "value"),
    [
        ("redness", (1, 0, 0), 1.0),
        ("redness", (0, 1, 1), -1.0),
        ("redness", (0.5, 0.5, 0.5), 0.0),
        ("greenness", (0.2, 0.8, 0.4), 0.5),
        ("blueness", (0.2, 0.4, 0.8), 0.5),
        ("brightness", (0.3, 0.6, 0.9), 0.6),
    ],
)
def test_values_on_flat_pictures(name, color, value):
    pixels = torch.tensor(color, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert PIXEL_REWARDS[name](pixels, ["x"]).item() == pytest.approx(value, abs=1e-5)


def test_weighted_sum_adds_and_keeps_each_member():
    pixels = random_pixels()
    both = WeightedSum({"redness": 2.0, "brightness": -1.0})
    expected = 2 * redness(pixels, PROMPTS) - PIXEL_REWARDS["brightness"](pixels, PROMPTS)
    assert torch.allclose(both(pixels, PROMPTS), expected)
    assert both.member_scores()["redness"].mean().item() == pytest.approx(redness(pixels, PROMPTS).mean().item())


def test_weighted_sum_takes_the_users_own_callable():
    own = WeightedSum({"mine": 1.0}, {"mine": lambda pixels, prompts: pixels[:, 0, 0, 0]})
    assert torch.equal(own(random_pixels(), PROMPTS), random_pixels()[:, 0, 0, 0])


def test_bad_rewards_are_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'redness'"):
        load_reward("rednes")
    with pytest.raises(InputError, match="no reward was given"):
        WeightedSum({})
    with pytest.raises(InputError, match="one score per picture"):
        WeightedSum({"mean": 1.0}, {"mean": lambda pixels, prompts: pixels.mean()})(random_pixels(), PROMPTS)


def test_an_ensembles_name_stands_for_its_members():
    assert members_of({"scenes": 2.0, "redness": 1.0}) == {
        **{name: 2.0 * weight for name, weight in ENSEMBLES["scenes"].items()},
        "redness": 1.0,
    }
    assert WeightedSum({"scenes": 1.0}).weights == ENSEMBLES["scenes"]
    assert load_reward("scenes").name == "+".join(ENSEMBLES["scenes"])
