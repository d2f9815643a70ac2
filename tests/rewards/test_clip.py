"""The CLIP family: released layouts, OpenCLIP's own forward, gradients, long prompts, the cache."""

import math
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from dev.scenes.networks import build_tokenizer
from hypernoise.errors import InputError
from hypernoise.rewards import clip
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, ClipReward, from_openclip
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.weights import filled
from tests.rewards import layouts
from tests.rewards.gradients import assert_gradient_is_right

PROMPTS = ["a red ring and a blue square", "three crosses"]
H14 = dict(text=1024, text_blocks=24, vision=1280, blocks=32, patch=14, joint=1024)
L14 = dict(text=768, text_blocks=12, vision=1024, blocks=24, patch=14, joint=768)
SMALL = dict(text=32, text_blocks=2, vision=48, blocks=2, patch=8, image=32, joint=24)
LENGTH = 77


def small_config(tokenizer, length=LENGTH):
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {
        "projection_dim": 24,
        "text_config": {
            **text,
            **marks,
            "projection_dim": 24,
            "hidden_act": "gelu",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": length,
        },
        "vision_config": {**vision, "projection_dim": 24, "hidden_act": "gelu", "patch_size": 8, "image_size": 32},
    }


@pytest.fixture
def tokenizer(tmp_path):
    return build_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def state(tokenizer):
    """A small checkpoint in OpenCLIP's layout."""
    return layouts.filled(layouts.openclip(**SMALL, words=len(tokenizer), length=LENGTH))


@pytest.fixture
def build(tokenizer, state):
    """A small reward with the weights of `state`."""

    def build(**settings):
        model = filled(lambda: CLIPModel(CLIPConfig(**small_config(tokenizer))), from_openclip(state), "small")
        return ClipReward("small", model, tokenizer, RewardSettings(**settings), scale=1.0)

    return build


def pictures(height=40, width=52, count=2, seed=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# Released layouts


@pytest.mark.parametrize("name", ["clip", "pickscore", "long-clip"])
def test_the_full_size_is_the_released_one(name):
    """986,109,441 parameters of fp32 are PickScore_v1's model.safetensors: 3.94 GB on the Hub."""
    size, length = (L14, 248) if name == "long-clip" else (H14, 77)
    released = layouts.on_meta(layouts.transformers_clip(**size, length=length))
    model = filled_on_meta(CLIPS[name], CLIPS[name].convert(released))
    if size is H14:
        assert sum(p.numel() for p in model.parameters()) == 986_109_441


def test_hpsv2s_released_layout_fits_the_full_size():
    """1.97 GB of fp16 on the Hub are the same 986,109,441 parameters."""
    released = layouts.on_meta(layouts.openclip(**H14, image=224))
    assert sum(math.prod(tensor.shape) for tensor in released.values()) == 986_109_441
    filled_on_meta(CLIPS["hpsv2.1"], CLIPS["hpsv2.1"].convert(released))


def filled_on_meta(row, state):
    """`filled` compares every name and shape before it loads."""
    return filled(lambda: CLIPModel(CLIPConfig(**row.config)), state, "released")


def test_missing_unexpected_and_misshapen_weights_are_named(tokenizer, state):
    def refused(state):
        with pytest.raises(InputError) as error:
            filled(lambda: CLIPModel(CLIPConfig(**small_config(tokenizer))), from_openclip(state), "file.pt")
        return str(error.value)

    lacking = {name: tensor for name, tensor in state.items() if name != "visual.ln_post.bias"}
    missing = 'file.pt does not fit the model: Missing key(s) in state_dict: "vision_model.post_layernorm.bias"'
    assert missing in refused(lacking)
    unexpected = 'Unexpected key(s) in state_dict: "visual.head.weight"'
    assert unexpected in refused({**state, "visual.head.weight": torch.zeros(2)})
    cut = refused({**state, "visual.proj": torch.zeros(48, 20)})
    assert "size mismatch for visual_projection.weight" in cut
    assert "torch.Size([20, 48])" in cut
    assert "layers.0.self_attn.rope" in refused({**state, "transformer.resblocks.0.attn.rope": torch.zeros(2)})


def test_a_released_file_loads_by_name(tmp_path, monkeypatch, tokenizer, state):
    """From a .pt with the training script's wrapping and OpenCLIP's names, in fp16, as HPSv2.1 is published."""
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: tensor.half() for name, tensor in state.items()}}, file)
    row = CLIPS["hpsv2.1"]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setitem(CLIPS, "hpsv2.1", replace(row, config=small_config(tokenizer)))
    monkeypatch.setattr(clip, "TOKENIZER", str(tmp_path / "tokenizer"))
    monkeypatch.setattr(clip, "fetch", lambda *asked: file)
    reward = clip.load("hpsv2.1", RewardSettings())
    assert (reward.name, reward.resize, reward.scale) == ("hpsv2.1", Resize(32, "pad"), 1.0)
    assert (reward.dtype, reward.network.training) == (torch.float32, False)
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())
    halved = {name: tensor.half().float() for name, tensor in state.items()}
    expected = openclip_score(halved, tokenizer, Resize(32, "pad")(pictures()), PROMPTS)
    assert (reward(pictures(), PROMPTS) - expected).abs().max() < 1e-5


def test_a_pickle_and_a_cut_file_are_refused(tmp_path, monkeypatch):
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": print}, evil)
    cut = tmp_path / "cut.safetensors"
    save_file({"w": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:-10])
    for file in (evil, cut):
        monkeypatch.setattr(clip, "fetch", lambda *asked, file=file: file)
        with pytest.raises(InputError, match="is not a complete file of tensors"):
            clip.load("clip", RewardSettings())


def test_unavailable_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="PickScore_v1: model.safetensors or .* is not in the local cache") as error:
        clip.load("pickscore", RewardSettings())
    assert "\n" not in str(error.value)


# Scores


def openclip_score(state, tokenizer, resized, prompts):
    """cos(picture, text) by OpenCLIP's arrangement, written from its weights' meaning alone."""

    def layer_norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def tower(x, place, mask):
        number = 0
        while f"{place}{number}.ln_1.weight" in state:
            block = f"{place}{number}"
            y = layer_norm(x, f"{block}.ln_1").transpose(0, 1)
            y, _ = functional.multi_head_attention_forward(
                y,
                y,
                y,
                y.shape[-1],
                4,
                state[f"{block}.attn.in_proj_weight"],
                state[f"{block}.attn.in_proj_bias"],
                None,
                None,
                False,
                0.0,
                state[f"{block}.attn.out_proj.weight"],
                state[f"{block}.attn.out_proj.bias"],
                attn_mask=mask,
                need_weights=False,
            )
            x = x + y.transpose(0, 1)
            y = functional.linear(
                layer_norm(x, f"{block}.ln_2"), state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"]
            )
            y = functional.gelu(y)
            x = x + functional.linear(y, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
            number += 1
        return x

    image = normalise(resized, CLIP_MEAN, CLIP_STD)
    x = functional.conv2d(image, state["visual.conv1.weight"], stride=8).flatten(2).mT
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = tower(layer_norm(x, "visual.ln_pre"), "visual.transformer.resblocks.", None)
    picture = layer_norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]

    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)  # OpenCLIP pads with 0 to the full length
    for row, prompt in enumerate(prompts):
        found = tokenizer(prompt).input_ids
        ids[row, : len(found)] = torch.tensor(found)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    x = tower(x, "transformer.resblocks.", torch.full((LENGTH, LENGTH), -torch.inf).triu(1))
    x = layer_norm(x, "ln_final")
    text = x[torch.arange(len(ids)), (ids == tokenizer.eos_token_id).int().argmax(-1)] @ state["text_projection"]
    return functional.cosine_similarity(picture, text)


def test_scores_are_openclips_own(build, state, tokenizer):
    expected = openclip_score(state, tokenizer, Resize(32)(pictures()), PROMPTS)
    scores = build()(pictures(), PROMPTS)
    assert (scores - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs() > 1e-2  # so that the comparison says something


def test_the_learned_scale_multiplies_where_the_reference_has_one(build, tokenizer):
    model = build().network
    assert ClipReward("s", model, tokenizer).scale == pytest.approx(model.logit_scale.exp().item())
    ours, times = build()(pictures(), PROMPTS), ClipReward("s", model, tokenizer, scale=7.0)(pictures(), PROMPTS)
    assert torch.allclose(times, 7 * ours)
    exact = model.logit_scale.detach().double().exp().item()
    assert ClipReward("s", model, tokenizer, RewardSettings(dtype="bfloat16")).scale == exact  # bf16 would round it


def test_gradient_is_right_by_finite_differences(build):
    reward = build()
    reward.network.double()
    assert_gradient_is_right(reward, pictures(), PROMPTS)


def test_scores_are_per_sample_and_depend_on_the_prompt(build):
    reward = build()
    both, swapped = reward(pictures(), PROMPTS), reward(pictures(), PROMPTS[::-1])
    alone = torch.cat([reward(pictures()[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-6)
    assert (both - swapped).abs().min() > 1e-3


def test_checkpointing_changes_memory_and_nothing_else(build):
    def measured(reward):
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        pixels = pictures().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            score = reward(pixels, PROMPTS)
            held = kept
        return score, torch.autograd.grad(score.sum(), pixels)[0], held

    plain, ours = measured(build()), measured(build(checkpointing=True))
    assert torch.equal(plain[0], ours[0])
    assert torch.allclose(plain[1], ours[1], atol=1e-8)
    assert ours[2] < 0.5 * plain[2]


def test_bf16_weights_give_fp32_scores_that_are_close(build):
    exact, rounded = build()(pictures(), PROMPTS), build(dtype="bfloat16")(pictures(), PROMPTS)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.03


def test_the_network_follows_the_pictures_and_forgets_features_of_the_other_device(build):
    """There is one device here, so the test watches where the pictures go."""
    reward = build()
    reward.texts(PROMPTS)
    reward.score = lambda resized, prompts: torch.zeros(len(resized))  # type: ignore[method-assign]
    reward(pictures().to("meta"), PROMPTS)
    assert reward.device.type == "meta"
    assert reward.texts.made == {}


# Long prompts

FIRST = "a red ring and a blue square, " * 12
LONG = FIRST + "a green cross above a black circle, " * 10  # 12 x 8 + 10 x 8 tokens of words, 84 beyond the limit
OTHER = FIRST + "a yellow cross above a black circle, " * 10


def contrast(reward, pixels):
    """How much more a picture shows LONG than OTHER, which differ beyond the first window alone."""
    return reward(pixels, [LONG]) - reward(pixels, [OTHER])


def test_truncation_is_warned_of_once_and_blind_to_the_second_half(build):
    pixels = pictures(count=1).requires_grad_()
    reward = build()
    with pytest.warns(UserWarning, match="reward 'small' reads 77 tokens, but a prompt has") as warned:
        difference = contrast(reward, pixels)
    assert len(warned) == 1
    assert difference.item() == 0
    (gradient,) = torch.autograd.grad(difference.sum(), pixels)
    assert gradient.abs().max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(pixels, [LONG])


# The cache


def test_each_prompt_is_encoded_once(build):
    reward, encoded = build(), []
    encode = reward.texts.encode
    reward.texts.encode = lambda prompts: encoded.append(prompts) or encode(prompts)
    reward(pictures(), PROMPTS)
    first = reward(pictures(), [PROMPTS[0], "two rings"])
    assert encoded == [PROMPTS, ["two rings"]]
    assert torch.equal(first, reward(pictures(), [PROMPTS[0], "two rings"]))
    reward.texts.clear()
    assert torch.allclose(first, reward(pictures(), [PROMPTS[0], "two rings"]), atol=1e-6)
    assert len(encoded) == 3


def test_a_hit_costs_less_than_a_millisecond(build):
    reward = build()
    prompts = [f"{number} red rings" for number in range(48)]
    reward.texts(prompts)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        reward.texts(prompts)
        took.append(time.perf_counter() - began)
    assert min(took) < 1e-3


def test_only_so_many_prompts_are_remembered(build, monkeypatch):
    monkeypatch.setattr("hypernoise.generators.text_cache.REMEMBERED", 3)
    reward = build()
    for prompts in (["a ring", "two rings"], ["a cross", "two crosses"]):
        reward.texts(prompts)
    assert list(reward.texts.made) == ["two rings", "a cross", "two crosses"]
