"""The ensemble of networks: each member kept, running scales; and a user's own reward."""

import math
import re

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from dev.scenes.networks import build_tokenizer
from hypernoise.errors import InputError
from hypernoise.rewards import ensemble
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.check import check_gradients, check_reward
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.ensemble import ENSEMBLES, NETWORKS, WeightedSum, load_reward, named
from hypernoise.rewards.pixel import PIXEL_REWARDS, redness
from tests.rewards.test_clip import small_config

PROMPTS = ["a red ring and a blue square", "three crosses"]


@pytest.fixture
def clip(tmp_path):
    """Builds small CLIP rewards with random weights."""
    tokenizer = build_tokenizer(tmp_path / "tokenizer")

    def build(seed=0, fit="crop", **settings):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(**small_config(tokenizer)))
        return ClipReward(f"clip{seed}", model, tokenizer, RewardSettings(**settings), fit=fit, scale=1.0)

    return build


def pictures(height=40, width=40, count=2, seed=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_papers_weights():
    """arXiv 2508.09968, appendix: ImageReward 1.0, HPSv2.1 5.0, PickScore 0.05, CLIP 0.01."""
    assert ENSEMBLES["human-preference"] == {"imagereward": 1.0, "hpsv2.1": 5.0, "pickscore": 0.05, "clip": 0.01}
    assert set(ENSEMBLES["human-preference"]) <= set(NETWORKS)


def test_human_preference_loads_its_members_with_the_settings(monkeypatch, clip):
    asked = {}

    class Module:
        @staticmethod
        def load(name, settings):
            asked[name] = settings
            return clip(len(asked))

    monkeypatch.setattr(ensemble, "import_module", lambda module: Module)
    settings = RewardSettings(dtype="bfloat16")
    reward = load_reward("human-preference", settings)
    assert asked == dict.fromkeys(ENSEMBLES["human-preference"], settings)
    assert reward.weights == ENSEMBLES["human-preference"]
    score = reward(pictures(), PROMPTS)
    expected = sum(weight * reward.members[name](pictures(), PROMPTS) for name, weight in reward.weights.items())
    assert torch.allclose(score, expected, atol=1e-6)
    assert reward.member_scores().keys() == reward.weights.keys()


def test_a_sum_gives_the_scores_and_the_gradient_of_its_members(clip):
    members = {"a": clip(0), "b": clip(1, "pad"), "red": redness}
    weights = {"a": 1.0, "b": 2.0, "red": 3.0}
    pixels = pictures(width=52).requires_grad_()
    alone = sum(weights[name] * member(pixels, PROMPTS) for name, member in members.items())
    (expected,) = torch.autograd.grad(alone.sum(), pixels)
    scores = WeightedSum(weights, members)(pixels, PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    assert torch.allclose(scores, alone, atol=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7)


# A user's own

OWN = """
import torch

def warmth(pixels, prompts):
    return (pixels[:, 0] - pixels[:, 2]).mean((1, 2))

class Contrast:
    name = "contrast"
    def __call__(self, pixels, prompts):
        return pixels.flatten(1).var(1)

def cut(pixels, prompts):
    return pixels.detach().flatten(1).mean(1)

number = 3

def one(pixels):
    return pixels.flatten(1).mean(1)

class Needs:
    def __init__(self, weight):
        pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_of_this_test.py").write_text(OWN)
    (tmp_path / "my_broken_rewards_of_this_test.py").write_text("def warmth(pixels prompts):")
    monkeypatch.chdir(tmp_path)
    return "my_rewards_of_this_test"


def test_a_function_and_a_class_by_import_path(own):
    reward = WeightedSum({f"{own}:warmth": 2.0, f"{own}:Contrast": 1.0, "redness": 1.0})
    pixels = pictures()
    expected = 2 * (pixels[:, 0] - pixels[:, 2]).mean((1, 2)) + pixels.flatten(1).var(1) + redness(pixels, PROMPTS)
    assert torch.allclose(reward(pixels, PROMPTS), expected)
    check_reward(reward)


def test_wrong_import_paths_are_named(own):
    for path, message in (
        ("no_such_module_here:warmth", "module 'no_such_module_here' cannot be imported from"),
        ("my_broken_rewards_of_this_test:warmth", r"cannot be imported .*_of_this_test.py, line 1\)"),
        (f"{own}:warmht", "did you mean 'warmth'"),
        (f"{own}:number", "is a int; pass a function of"),
        (f"{own}:one", r"must take \(pixels, prompts\), but takes \(pixels\)"),
        (f"{own}:Needs", "cannot be constructed without arguments"),
        (f"{own}:", "unknown name"),
        (":warmth", "cannot be imported"),
    ):
        with pytest.raises(InputError, match=message):
            load_reward(path)


def rounded(pixels, prompts):
    return (pixels * 255).round().flatten(1).mean(1)


def mixed(pixels, prompts):
    return pixels.flatten(1).mean(1) + pixels.mean()


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def mean(pixels):
    return pixels.flatten(1).mean(1)


PARTLY_CUT = [
    lambda pixels, prompts: mean(pixels) + 0.5 * rounded(pixels, prompts) / 255,
    lambda pixels, prompts: mean(pixels[:, :1]) + mean(pixels[:, 1:].detach()),  # at right angles to what is left
    lambda pixels, prompts: mean(pixels) * pixels.flatten(1).std(1).detach(),
    lambda pixels, prompts: mean(pixels[:, :, :16]) + mean(pixels[:, :, 32:].detach()),
    lambda pixels, prompts: mean(pixels * pixels.detach()),
    lambda pixels, prompts: mean(pixels) + mean((pixels > 0.5).float()),
]


@pytest.mark.parametrize("reward", PARTLY_CUT)
def test_a_partly_cut_gradient_is_named(reward):
    with pytest.raises(InputError, match="a change of the pixels moves a score by .* instead of"):
        check_reward(reward)


@pytest.mark.parametrize(
    "reward",
    [
        *PIXEL_REWARDS.values(),
        lambda pixels, prompts: 1000 - 1e-4 * mean(pixels),
        lambda pixels, prompts: pixels[:, 0, 0, 0],
        lambda pixels, prompts: pixels.flatten(1).median(1).values,
        lambda pixels, prompts: mean(pixels.clamp(0.2, 0.8)),
        lambda pixels, prompts: mean(torch.sigmoid(20 * (pixels - 0.5))),
        lambda pixels, prompts: mean(torch.nn.functional.dropout(pixels)),  # the same draws at every try
        lambda pixels, prompts: mean(pixels + ((255 * pixels).round() / 255 - pixels).detach()),  # straight through
    ],
)
def test_honest_gradients_pass(reward):
    check_reward(reward)


def test_the_check_leaves_torchs_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_reward(lambda pixels, prompts: mean(pixels * torch.rand(pixels.shape)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda pixels, prompts: pixels.mean(), "returned shape"),
        (lambda pixels, prompts: mean(pixels.detach()).numpy(), "returned a ndarray, not a tensor"),
        (lambda pixels, prompts: torch.from_numpy(pixels.numpy().mean((1, 2, 3))), "it goes through numpy, which has"),
        (lambda pixels, prompts: torch.ones(len(pixels)), "the gradient is cut: .* or a constant"),
        (lambda pixels: mean(pixels), r"must take \(pixels, prompts\), but takes \(pixels\)"),
        ("redness", r"is the text 'redness'; hypernoise.load_reward\('redness'\) loads a reward by name"),
        (torch.nn.Identity, "is the class Identity; pass a function of"),
        (3, "is a int; pass a function of"),
        (lambda pixels, prompts: mean(pixels) - mean(pixels).mean(), "depends on the other pictures"),
        (lambda pixels, prompts: mean(pixels) - mean(pixels).mean().detach(), "depends on the other pictures"),
        (lambda pixels, prompts: pixels.flatten(1).mean(1) / 0, "scores must be finite"),
        (rounded, "the reward: the gradient is cut"),
        (mixed, "depends on the other pictures"),
        (lambda pixels, prompts: Backwards.apply(pixels).flatten(1).mean(1), "a change of the pixels"),
    ],
)
def test_what_is_no_reward_is_refused(reward, message):
    with pytest.raises(InputError, match=message):
        check_reward(reward)


def test_a_member_with_a_cut_gradient_is_named_and_one_of_no_weight_may_have_none():
    with pytest.raises(InputError, match="reward 'rounded': the gradient is cut"):
        check_reward(WeightedSum({"redness": 1.0, "rounded": 1.0}, {"rounded": rounded}))
    check_reward(WeightedSum({"redness": 1.0, "rounded": 0.0}, {"rounded": rounded}))


def test_in_training_gradients_that_cancel_in_a_batch_are_not_taken_for_a_cut():
    def above_the_others(pixels, prompts):
        return mean(pixels) - mean(pixels).sum().mul(0.5)  # exactly 0 in the sum

    pixels = torch.full((2, 3, 4, 4), 0.5).requires_grad_()
    with pytest.raises(InputError, match="the gradients of a batch cancel"):
        check_gradients(above_the_others, above_the_others(pixels, PROMPTS), pixels)
    with pytest.raises(InputError, match="the gradient is cut"):
        check_gradients(rounded, rounded(pixels, PROMPTS), pixels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_networks_pass_the_check(clip, dtype):
    check_reward(clip(dtype=dtype))
    check_reward(WeightedSum({"a": 1.0, "redness": 1.0}, {"a": clip()}))


def test_unknown_settings_are_named():
    with pytest.raises(InputError, match="dtype must be .* not 'float16'"):
        RewardSettings(dtype="float16")  # type: ignore[arg-type]


def test_what_cannot_be_summed_is_refused():
    pixels = torch.rand(2, 3, 4, 4)
    with pytest.raises(InputError, match="weight of reward 'redness' must be a number, not nan"):
        WeightedSum({"redness": float("nan")})
    listed = WeightedSum({"mine": 1.0}, {"mine": lambda pixels, prompts: [0.0, 1.0]})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="'mine' returned a list, not a tensor"):
        listed(pixels, ["a ring", "a cross"])
    for prompts in ("ab", ["a ring"]):
        with pytest.raises(InputError, match="one prompt for each of 2 pictures"):
            WeightedSum({"redness": 1.0})(pixels, prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"redness": "1"}, "the weight of reward 'redness' must be a number, not '1'"),
        (["redness"], "map names to weights"),
    ],
)
def test_weights_of_the_wrong_kind_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        WeightedSum(weights)


def test_a_reward_of_classes_is_checked_with_their_names():
    classes = ["red", "green", "blue"]

    def named(pixels, prompts):
        logits = 5 * pixels.mean((2, 3))
        return logits.log_softmax(1)[torch.arange(len(prompts)), [classes.index(prompt) for prompt in prompts]]

    check_reward(named, prompts=classes)
    check_reward(named, prompts=["blue"])
    with pytest.raises(
        InputError, match="set size and prompts of check_reward.*'a red ring' is not in list"
    ) as refused:
        check_reward(named)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(
        InputError, match=r"pictures \[2, 3, 64, 64\] .*set size and prompts of check_reward.*RuntimeError"
    ):
        check_reward(lambda pixels, prompts: (pixels * torch.ones(32, 32)).flatten(1).mean(1))
    with pytest.raises(InputError, match="prompts is a single text"):
        check_reward(named, prompts="red")
    for wrong in ({"size": 64}, {"size": (0, 4)}, {"prompts": []}):
        with pytest.raises(InputError, match="a prompt and a size such as"):
            check_reward(named, **wrong)


PIXELS = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("pixels", "prompts", "message"),
    [
        (torch.rand(2, 4, 8, 8), ["a", "b"], "takes pixels [B, 3, H, W], floats in [0, 1], not shape [2, 4, 8, 8]"),
        (torch.rand(2, 1, 8, 8), ["a", "b"], "not shape [2, 1, 8, 8]"),
        (torch.rand(2, 8, 8, 3), ["a", "b"], "not shape [2, 8, 8, 3]"),
        (torch.rand(3, 8, 8), ["a"], "not shape [3, 8, 8]"),
        (Image.new("RGB", (8, 8)), ["a"], "not a Image"),
        ((PIXELS * 255).byte(), ["a", "b"], "; pass pixels.float() / 255"),
        (PIXELS * 255, ["a", "b"], "; pass pixels / 255"),
        (PIXELS * 2 - 1, ["a", "b"], "pass (pixels + 1) / 2"),
        (PIXELS * math.nan, ["a", "b"], "not values from nan to nan"),
        (PIXELS, "ab", "one prompt for each of 2 pictures"),
        (PIXELS, ["a"], "one prompt for each of 2 pictures"),
        (PIXELS, [1, 2], "prompts must be texts"),
    ],
)
@pytest.mark.parametrize("name", ["redness", "sum", "scenes-match"])
def test_a_reward_called_by_hand_says_what_it_takes(name, pixels, prompts, message):
    reward = WeightedSum({"redness": 1.0}) if name == "sum" else load_reward(name)
    with pytest.raises(InputError, match=re.escape(message)):
        reward(pixels, prompts)


@pytest.mark.parametrize(
    ("written", "known"),
    [
        *(("hpsv2", "hpsv2.1"), ("ImageReward", "imagereward"), ("PickScore_v1", "pickscore"), ("CLIP", "clip")),
        *(("yuvalkirstain/PickScore_v1", "pickscore"), ("Redness", "redness"), ("redess", "redess"), ("a:B", "a:B")),
    ],
)
def test_names_as_people_write_them(written, known):
    assert named(written) == known
