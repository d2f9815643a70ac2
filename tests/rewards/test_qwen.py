"""Rewards on Qwen's vision-language models in small: their patches, their answers, and HPSv3's head and layout."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from hypernoise.errors import InputError
from hypernoise.rewards import hpsv3, vqa
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.check import check_reward
from hypernoise.rewards.ensemble import NETWORKS, load_reward
from hypernoise.rewards.hpsv3 import MARK, NAMES, UNUSED, HpsV3, Network
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, Resize, normalise, patches
from hypernoise.rewards.vqa import HELPFUL, QUESTION, VLMS, QwenReward, with_places
from hypernoise.rewards.weights import filled, read_state, renamed
from tests.rewards import layouts
from tests.rewards.gradients import assert_gradient_is_right
from tests.rewards.test_clip import LONG, pictures

PROMPTS = ["a red ring and a blue square", "three crosses"]
WORDING = "Judge this for {text_prompt} : <|Reward|> END"
QWENS = ("vqascore-qwen2.5-vl", "vqascore-qwen3-vl")
TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=2048, rope_theta=1e6,
    rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
)  # fmt: skip


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch):
    """A picture is a few tokens here, so that finite differences are cheap."""
    monkeypatch.setattr("hypernoise.rewards.network.AREA", 9)


@pytest.fixture
def tokenizer():
    marks = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
    words = " ".join([*PROMPTS, LONG, QUESTION, WORDING, *(row.chat for row in VLMS.values()), "Yes No"])
    for mark in [*marks, MARK]:
        words = words.replace(mark, " ")
    pieces = [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(words)]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *marks, *dict.fromkeys(pieces)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", additional_special_tokens=marks)


def config_of(name, words):
    text = {**TEXT, "vocab_size": words}
    common = dict(text_config=text, image_token_id=1, vision_start_token_id=2, vision_end_token_id=3)
    if name == "hpsv3":
        eye = dict(depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14)
        return Qwen2VLConfig(vision_config=eye, **common)
    eye = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32)
    if name == "vqascore-qwen2.5-vl":
        return Qwen2_5_VLConfig(vision_config={**eye, "patch_size": 14, "fullatt_block_indexes": [1]}, **common)
    eye |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return Qwen3VLConfig(vision_config=eye, **common)


def lively(model):
    """With the usual initial weights pictures hardly matter."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5
    return model.requires_grad_(False).eval()


@pytest.fixture
def build(tokenizer):
    def build(name, **settings):
        torch.manual_seed(0)
        config = config_of(name, len(tokenizer) + 1)  # and <|Reward|>
        if name == "hpsv3":
            return HpsV3(lively(Network(config)), tokenizer, WORDING, RewardSettings(**settings))
        model = lively(getattr(transformers, VLMS[name].model)(config))
        return QwenReward(name, model, tokenizer, VLMS[name], RewardSettings(**settings))

    return build


@pytest.mark.parametrize(("patch", "height", "width"), [(14, 56, 84), (16, 64, 32)])
def test_patches_are_those_of_transformers_processor(patch, height, width):
    pictures_ = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(patch_size=patch, do_resize=False)
    theirs = processor(images=list(pictures_), return_tensors="pt")
    pixels = torch.from_numpy(pictures_).permute(0, 3, 1, 2) / 255
    ours = patches(normalise(pixels, CLIP_MEAN, CLIP_STD), patch, 2, 2)
    assert ours.shape == theirs["pixel_values"].shape
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)
    assert theirs["image_grid_thw"].tolist() == [[1, height // patch, width // patch]] * 2


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (768, 1024), (1024, 1024), (300, 1000), (30, 600), (448, 448)])
def test_pictures_keep_their_shape_at_one_area(size, monkeypatch):
    monkeypatch.setattr("hypernoise.rewards.network.AREA", 256)
    area = 256 * 28**2
    assert Resize(28, "area").scaled(*size) == smart_resize(*size, factor=28, min_pixels=area, max_pixels=area)
    if size == (768, 1024):
        assert Resize(28, "area").scaled(*size) == (364, 504)
    if size[0] == size[1]:
        assert Resize(28, "area")(torch.zeros(1, 3, *size)).shape[-2:] == (448, 448)


@pytest.mark.parametrize("name", QWENS)
@pytest.mark.parametrize("shape", [(32, 32), (32, 64)], ids=str)
def test_the_score_is_the_answers_log_probability(build, name, shape):
    """Each sample alone, without padding, as generation would see it."""
    reward = build(name)
    pixels = torch.nn.functional.interpolate(pictures(), shape)
    scores = reward(pixels, [PROMPTS[0], LONG])
    assert (scores < 0).all()
    for row, prompt in enumerate([PROMPTS[0], LONG]):
        text = VLMS[name].chat.replace("{question}", QUESTION.format(prompt))
        resized = reward.resize(pixels[row : row + 1])
        ids = with_places(reward.tokenizer(text, return_tensors="pt").input_ids[0], 1, reward.places(resized))[None]
        with torch.no_grad():
            logits = reward.network(input_ids=ids, **reward.shown(resized, ids)).logits[0, -1]
        expected = logits.log_softmax(-1)[reward.tokenizer.convert_tokens_to_ids("Yes")]
        assert scores[row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert NETWORKS[name] == "hypernoise.rewards.vqa"


@pytest.mark.parametrize("name", [*QWENS, "hpsv3"])
def test_gradient_is_right_by_finite_differences(build, name):
    reward = build(name)
    reward.network.double()
    # their RMSNorm computes in fp32, so that steps cannot be small; those of HPSv3's head must not cross many ReLUs
    assert_gradient_is_right(reward, pictures(), PROMPTS, step=3e-4 if name == "hpsv3" else 1e-3, rel=2e-3)
    reward.network.float()
    check_reward(reward)


def test_a_qwen_loads_by_name(tmp_path, monkeypatch, build, tokenizer):
    name = "vqascore-qwen3-vl"
    reward = build(name)
    reward.network.save_pretrained(tmp_path / "vlm")
    tokenizer.save_pretrained(tmp_path / "vlm")
    monkeypatch.setitem(VLMS, name, replace(VLMS[name], repository=str(tmp_path / "vlm")))
    loaded = load_reward(name)
    assert isinstance(loaded, QwenReward)
    assert torch.allclose(loaded(pictures(), PROMPTS), reward(pictures(), PROMPTS), atol=1e-6)
    monkeypatch.setitem(VLMS, name, replace(VLMS[name], repository=str(tmp_path / "none")))
    with pytest.raises(InputError, match="cannot be loaded .*hf download .*none"):
        vqa.load(name, RewardSettings())


def test_hpsv3_scores_by_the_state_of_its_mark(build):
    reward = build("hpsv3")
    scores = reward(pictures(), [PROMPTS[0], LONG])
    network = reward.network
    for row, prompt in enumerate([PROMPTS[0], LONG]):
        text = HELPFUL.replace("{question}", WORDING.replace("{text_prompt}", prompt))
        resized = reward.resize(pictures()[row : row + 1])
        ids = with_places(reward.tokenizer(text, return_tensors="pt").input_ids[0], 1, reward.places(resized))[None]
        states = network.model(input_ids=ids, **reward.shown(resized, ids)).last_hidden_state[0]
        (place,) = (ids[0] == reward.mark).nonzero().flatten().tolist()
        mean, _ = network.rm_head(states[place])
        assert scores[row].item() == pytest.approx(mean.item(), abs=1e-5)
        assert (scores[row] - network.rm_head(states[-1])[0]).abs() > 1e-4


def published(old=True, width=3584, layers=28, inner=18944, heads=(28, 4, 128), words=151658, eye=(1280, 32, 4)):
    """HPSv3.safetensors: hpsv3/model/qwen2vl_trainer.py's Qwen2VLRewardModelBT over transformers 4.45's Qwen2-VL-7B
    ("old"), or over that of 4.52 and later, with ranknet's head of two numbers."""
    see, read = ("visual", "model") if old else ("model.visual", "model.language_model")
    seen, blocks, ratio = eye
    layout = {
        f"{see}.patch_embed.proj.weight": (seen, 3, 2, 14, 14),
        **layouts.norm(f"{see}.merger.ln_q", seen),
        **layouts.both(f"{see}.merger.mlp.0", 4 * seen, 4 * seen),
        **layouts.both(f"{see}.merger.mlp.2", width, 4 * seen),
        f"{read}.embed_tokens.weight": (words, width),
        f"{read}.norm.weight": (width,),
        "lm_head.weight": (words, width),
        **layouts.both("rm_head.0", 1024, width),
        **layouts.both("rm_head.3", 16, 1024),
        **layouts.both("rm_head.5", 2, 16),
    }
    for number in range(blocks):
        place = f"{see}.blocks.{number}"
        layout |= {**layouts.norm(f"{place}.norm1", seen), **layouts.norm(f"{place}.norm2", seen)}
        layout |= {
            **layouts.both(f"{place}.attn.qkv", 3 * seen, seen),
            **layouts.both(f"{place}.attn.proj", seen, seen),
        }
        layout |= layouts.both(f"{place}.mlp.fc1", ratio * seen, seen)
        layout |= layouts.both(f"{place}.mlp.fc2", seen, ratio * seen)
    asked, kept, size = heads
    for number in range(layers):
        place = f"{read}.layers.{number}"
        layout |= layouts.both(f"{place}.self_attn.q_proj", asked * size, width)
        layout |= layouts.both(f"{place}.self_attn.k_proj", kept * size, width)
        layout |= layouts.both(f"{place}.self_attn.v_proj", kept * size, width)
        layout[f"{place}.self_attn.o_proj.weight"] = (width, asked * size)
        layout |= {f"{place}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        layout[f"{place}.mlp.down_proj.weight"] = (width, inner)
        layout |= {f"{place}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return layout


@pytest.mark.parametrize("old", [True, False])
def test_the_published_checkpoints_names_and_shapes_fit(old):
    """At full size, on the meta device: the checkpoint's tensors are exactly the model's."""
    config = Qwen2VLConfig(
        text_config=dict(
            hidden_size=3584, num_hidden_layers=28, intermediate_size=18944, num_attention_heads=28,
            num_key_value_heads=4, vocab_size=151658,
            rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        ),
        vision_config=dict(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4),
    )  # fmt: skip
    layout = published(old)
    network = filled(lambda: Network(config), renamed(layouts.on_meta(layout), NAMES, UNUSED), "HPSv3")
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(7.75e9, rel=0.01)
    layout.pop("rm_head.3.bias")
    with pytest.raises(InputError, match='HPSv3 does not fit the model: Missing key.*: "rm_head.3.bias"'):
        filled(lambda: Network(config), renamed(layouts.on_meta(layout), NAMES, UNUSED), "HPSv3")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the authors' package, which cannot be imported."""
    folder = tmp_path / "site" / "hpsv3" / "dataset"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('it was run')")
    instruction, rest = WORDING.split(" : ")
    text = (
        f"import pandas_of_another_age\nINSTRUCTION = {instruction + ' : '!r}\nprompt_with_special_token = {rest!r}\n"
    )
    (folder / "data_collator_qwen.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_hpsv3_loads_by_name(package, tmp_path, monkeypatch, build, tokenizer):
    reward = build("hpsv3")
    expected = reward(pictures(), PROMPTS)
    backbone = tmp_path / "backbone"
    reward.network.config.save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    state = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in reward.network.state_dict().items()
    }
    save_file({**state, "lm_head.weight": torch.zeros(2, 2)}, tmp_path / "HPSv3.safetensors")
    monkeypatch.setattr(hpsv3, "BACKBONE", str(backbone))
    monkeypatch.setattr(hpsv3, "fetch", lambda repository, file: tmp_path / file)
    loaded = load_reward("hpsv3")
    assert torch.allclose(loaded(pictures(), PROMPTS), expected, atol=1e-6)
    assert "hpsv3" not in sys.modules
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert set(read_state(tmp_path / "HPSv3.safetensors")) == {*state, "lm_head.weight"}
    monkeypatch.setattr(hpsv3, "BACKBONE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="the configuration of .*none cannot be loaded"):
        load_reward("hpsv3")


def test_without_the_authors_wording_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(hpsv3, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps hpsv3==1\.0\.0"):
        load_reward("hpsv3")
