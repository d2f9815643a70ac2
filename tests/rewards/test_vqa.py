"""VQAScore on small LLaVAs of both builds: the answer's log-probability, long prompts, gradients, loading."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from hypernoise.errors import InputError
from hypernoise.rewards import vqa
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.check import check_reward
from hypernoise.rewards.ensemble import NETWORKS
from hypernoise.rewards.network import Resize, normalise
from hypernoise.rewards.vqa import QUESTION, VLMS, VqaReward
from tests.rewards.gradients import assert_gradient_is_right
from tests.rewards.test_clip import LONG, OTHER, pictures

PROMPTS = ["a red ring and a blue square", "three crosses"]
LLAVAS = ("vqascore", "vqascore-small")  # tests/rewards/test_qwen.py has the others
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def tokenizer():
    words = " ".join([*PROMPTS, LONG, OTHER, QUESTION, *(row.chat for row in VLMS.values()), "Yes No"])
    pieces = [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(words)]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "<image>", *dict.fromkeys(pieces)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", additional_special_tokens=["<image>"])


@pytest.fixture
def small(tokenizer):
    def small(name):
        size = {**TEXT, "vocab_size": len(tokenizer)}
        clip = name == "vqascore"
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION) if clip else SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=LlamaConfig(**size) if clip else Qwen2Config(**size),
            image_token_index=1,
            vision_feature_layer=-2 if clip else -1,
            vision_feature_select_strategy="default" if clip else "full",
        )
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():  # the usual start is so small that pictures hardly matter
            if parameter.ndim > 1:
                parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
        return model

    return small


@pytest.fixture
def build(tokenizer, small):
    return lambda name, **settings: VqaReward(name, small(name), tokenizer, VLMS[name], RewardSettings(**settings))


@pytest.mark.parametrize("name", LLAVAS)
def test_the_score_is_the_answers_log_probability(build, name):
    """Each sample alone, without padding, over the whole of its text, as generation would see it."""
    reward = build(name)
    scores = reward(pictures(), [PROMPTS[0], LONG])
    assert (scores < 0).all()
    for row, prompt in enumerate([PROMPTS[0], LONG]):
        text = VLMS[name].chat.replace("<image>", "<image> " * 16).replace("{question}", QUESTION.format(prompt))
        ids = reward.tokenizer(text, return_tensors="pt").input_ids
        seen = normalise(Resize(32, VLMS[name].fit)(pictures()[row : row + 1]), VLMS[name].mean, VLMS[name].std)
        with torch.no_grad():
            logits = reward.network(input_ids=ids, pixel_values=seen).logits[0, -1]
        expected = logits.log_softmax(-1)[reward.tokenizer.convert_tokens_to_ids("Yes")]
        assert scores[row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert NETWORKS[name] == "hypernoise.rewards.vqa"


@pytest.mark.parametrize("name", LLAVAS)
def test_gradient_is_right_by_finite_differences(build, name):
    reward = build(name)
    reward.network.double()
    # transformers' RMSNorm computes in fp32 whatever comes in, which bounds what a difference can tell
    assert_gradient_is_right(reward, pictures(), PROMPTS, step=1e-3, rel=2e-3)
    reward.network.float()
    check_reward(reward)


def test_the_end_of_a_long_prompt_counts_and_has_gradient(build):
    reward = build("vqascore")
    pixels = pictures(count=1).requires_grad_()
    difference = reward(pixels, [LONG]) - reward(pixels, [OTHER])
    assert difference.abs() > 1e-4
    assert torch.autograd.grad(difference.sum(), pixels)[0].norm() > 1e-5


def test_checkpointing_changes_nothing_else(build):
    pixels = pictures().requires_grad_()
    plain, ours = (build("vqascore", checkpointing=kept)(pixels, PROMPTS) for kept in (False, True))
    assert torch.equal(plain, ours)
    gradients = [torch.autograd.grad(score.sum(), pixels)[0] for score in (plain, ours)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_prompt_beyond_the_model_is_refused(build):
    with pytest.raises(InputError, match="reads 1024 tokens, but a prompt has"):
        build("vqascore")(pictures(count=1), ["ring " * 1100])


def test_loads_by_name_and_refuses_weights_that_do_not_fit(tmp_path, monkeypatch, small, tokenizer):
    folder = tmp_path / "vlm"
    model = small("vqascore")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    monkeypatch.setitem(VLMS, "vqascore", replace(VLMS["vqascore"], repository=str(folder)))
    reward = vqa.load("vqascore", RewardSettings())
    expected = VqaReward("vqascore", model, tokenizer, VLMS["vqascore"])(pictures(), PROMPTS)
    assert torch.allclose(reward(pictures(), PROMPTS), expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())

    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "projector" in name)
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="does not fit the model: model.multi_modal_projector"):
        vqa.load("vqascore", RewardSettings())
    save_file({**state, "extra.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="does not fit the model: extra.weight"):
        vqa.load("vqascore", RewardSettings())
    save_file({**state, lost: torch.zeros(7)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"does not fit the model: .*model.multi_modal_projector.*\[7\].*\[32\]"):
        vqa.load("vqascore", RewardSettings())
    monkeypatch.setitem(VLMS, "vqascore", replace(VLMS["vqascore"], repository=str(tmp_path / "none")))
    with pytest.raises(InputError, match="cannot be loaded .*hf download .*none"):
        vqa.load("vqascore", RewardSettings())


def test_the_small_ones_released_arrangement_loads(tmp_path, monkeypatch, small, tokenizer):
    """Its 1.73 GB of bf16 hold the embedding once: the configuration of its words says that they are tied."""
    folder = tmp_path / "vlm"
    model = small("vqascore-small")
    model.lm_head.weight = model.get_input_embeddings().weight
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state.pop("lm_head.weight", None)
    state = {name.replace("model.language_model.", "language_model.model."): tensor for name, tensor in state.items()}
    state = {name.replace("model.vision_tower.", "vision_tower.vision_model."): t for name, t in state.items()}
    state = {name.replace("model.multi_modal", "multi_modal"): tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(VLMS, "vqascore-small", replace(VLMS["vqascore-small"], repository=str(folder)))
    loaded = vqa.load("vqascore-small", RewardSettings())
    expected = VqaReward("vqascore-small", model, tokenizer, VLMS["vqascore-small"])(pictures(), PROMPTS)
    assert torch.allclose(loaded(pictures(), PROMPTS), expected, atol=1e-6)
