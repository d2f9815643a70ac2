"""ImageReward: its released layout, its own arrangement's forward, its gradient, and prompts of any length."""

import math
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from hypernoise.errors import InputError
from hypernoise.rewards import image_reward
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.image_reward import (
    LIMIT,
    MEAN,
    NAMES,
    STD,
    TEXT,
    UNUSED,
    VISION,
    ImageReward,
    ImageRewardNetwork,
)
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.weights import filled, renamed
from tests.rewards import layouts
from tests.rewards.gradients import assert_gradient_is_right

PROMPTS = ["a red ring and a blue square", "three crosses"]
WORDS = ["a", "red", "blue", "green", "yellow", "black", "ring", "square", "circle", "cross", "crosses", "three"]
WORDS += ["and", "above", ",", "."]
SMALL_VISION = {
    **VISION,
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SMALL_TEXT = {
    **TEXT,
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 48,
    "vocab_size": 24,
    "max_position_embeddings": 40,
}
LONG = "a red ring and a blue square, " * 5 + "a green cross above a black circle, " * 5
OTHER = "a red ring and a blue square, " * 5 + "a yellow cross above a black circle, " * 5


@pytest.fixture
def tokenizer():
    """BERT's marks and padding around a vocabulary of a few words."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512)


@pytest.fixture
def state():
    return layouts.filled(
        layouts.image_reward(vision=48, blocks=2, patch=8, image=32, text=24, layers=2, words=24, longest=40)
    )


@pytest.fixture
def build(tokenizer, state):
    def build(**settings):
        network = filled(partial(ImageRewardNetwork, SMALL_VISION, SMALL_TEXT), renamed(state, NAMES, UNUSED), "small")
        return ImageReward("imagereward", network, tokenizer, RewardSettings(**settings))

    return build


def pictures(height=40, width=52, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_the_released_layout_fits_the_full_size():
    """Its fp32 parameters are ImageReward.pt's 1.79 GB on the Hub."""
    released = layouts.on_meta(layouts.image_reward())
    network = filled(ImageRewardNetwork, renamed(released, NAMES, UNUSED), "ImageReward.pt")
    assert sum(p.numel() for p in network.vision_model.parameters()) == 303_301_632
    assert sum(p.numel() for p in network.text_encoder.parameters()) == 141_977_088
    heads = (network.vision_model.config.num_attention_heads, network.text_encoder.config.num_attention_heads)
    assert heads == (16, 12)  # which no shape shows
    assert network.vision_model.config.layer_norm_eps == 1e-6
    assert 4 * sum(math.prod(t.shape) for t in released.values()) == pytest.approx(1.79e9, rel=3e-3)


def test_missing_and_unexpected_weights_are_named(state):
    lacking = {name: tensor for name, tensor in state.items() if name != "mlp.layers.7.bias"}
    with pytest.raises(
        InputError, match='Missing key.*: "mlp.7.bias".*Unexpected key.*: "blip.visual_encoder.dist_token"'
    ):
        filled(
            partial(ImageRewardNetwork, SMALL_VISION, SMALL_TEXT),
            renamed({**lacking, "blip.visual_encoder.dist_token": torch.zeros(1)}, NAMES, UNUSED),
            "small",
        )


def released_score(state, resized, ids, mask):
    """The reference's arrangement, written from BLIP's and BERT's definitions over the released names."""

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(x, name, eps):
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(query, key, value, hidden=None):
        split = [x.unflatten(-1, (4, -1)).transpose(1, 2) for x in (query, key, value)]
        weights = split[0] @ split[1].mT / split[0].shape[-1] ** 0.5
        if hidden is not None:
            weights = weights.masked_fill(hidden[:, None, None], -torch.inf)
        return (weights.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)

    see = "blip.visual_encoder"
    x = functional.conv2d(
        normalise(resized, CLIP_MEAN, CLIP_STD),
        state[f"{see}.patch_embed.proj.weight"],
        state[f"{see}.patch_embed.proj.bias"],
        stride=8,
    )
    x = torch.cat([state[f"{see}.cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + state[f"{see}.pos_embed"]
    for number in range(2):
        block = f"{see}.blocks.{number}"
        query, key, value = linear(layer_norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(query, key, value), f"{block}.attn.proj")
        y = functional.gelu(linear(layer_norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        x = x + linear(y, f"{block}.mlp.fc2")
    picture = layer_norm(x, f"{see}.norm", 1e-6)

    read = "blip.text_encoder"
    x = state[f"{read}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{read}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = layer_norm(x, f"{read}.embeddings.LayerNorm", 1e-12)
    for number in range(2):
        layer = f"{read}.encoder.layer.{number}"
        for attention, seen, hidden in (("attention", None, mask == 0), ("crossattention", picture, None)):
            source = x if seen is None else seen
            query, key, value = (
                linear(given, f"{layer}.{attention}.self.{part}")
                for part, given in (("query", x), ("key", source), ("value", source))
            )
            y = linear(attend(query, key, value, hidden), f"{layer}.{attention}.output.dense")
            x = layer_norm(x + y, f"{layer}.{attention}.output.LayerNorm", 1e-12)
        y = linear(functional.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = layer_norm(x + y, f"{layer}.output.LayerNorm", 1e-12)
    score = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(score, f"mlp.layers.{number}")
    return (score[:, 0] - MEAN) / STD


def test_scores_are_the_references(build, state, tokenizer):
    given = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=LIMIT, return_tensors="pt")
    expected = released_score(state, Resize(32)(pictures()), given.input_ids, given.attention_mask)
    scores = build()(pictures(), PROMPTS)
    assert (scores - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs() > 1e-3


def test_a_released_file_loads_by_name(tmp_path, monkeypatch, state, tokenizer):
    torch.save(state, tmp_path / "ImageReward.pt")
    monkeypatch.setattr(image_reward, "ImageRewardNetwork", partial(ImageRewardNetwork, SMALL_VISION, SMALL_TEXT))
    monkeypatch.setattr(image_reward, "load_tokenizer", lambda repository: tokenizer)
    monkeypatch.setattr(image_reward, "fetch", lambda repository, file: tmp_path / file)
    reward = image_reward.load("imagereward", RewardSettings())
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())
    assert reward(pictures(), PROMPTS).shape == (2,)


def test_gradient_is_right_by_finite_differences(build):
    reward = build()
    reward.network.double()
    assert_gradient_is_right(reward, pictures(), PROMPTS)


def test_scores_are_per_sample(build):
    reward, prompts = build(), [PROMPTS[0], LONG]
    alone = torch.cat([reward(pictures()[i : i + 1], prompts[i : i + 1]) for i in range(2)])
    assert torch.allclose(reward(pictures(), prompts), alone, atol=1e-5)


def test_checkpointing_changes_nothing_else(build):
    pixels = pictures().requires_grad_()
    results = []
    for reward in (build(), build(checkpointing=True)):
        score = reward(pixels, PROMPTS)
        results.append((score, torch.autograd.grad(score.sum(), pixels)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], atol=1e-7)


def test_truncation_is_blind_to_the_second_half(build):
    reward = build()
    with pytest.warns(UserWarning, match="reads 35 tokens"):
        difference = reward(pictures(count=1), [LONG]) - reward(pictures(count=1), [OTHER])
    assert difference.item() == 0
