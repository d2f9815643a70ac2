"""The aesthetic heads: released layouts, the head on unit features, gradients, and files off the Hub."""

import contextlib
import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

from hypernoise.errors import InputError
from hypernoise.rewards import aesthetic
from hypernoise.rewards.aesthetic import AESTHETICS, AestheticNetwork, AestheticReward, from_released
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.check import check_reward
from hypernoise.rewards.ensemble import NETWORKS
from hypernoise.rewards.preprocess import Resize, normalise
from hypernoise.rewards.weights import Linked, filled
from tests.rewards import layouts
from tests.rewards.test_clip import L14, pictures

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {
    "aesthetic-v1": layouts.both("0", 1, 768),
    "aesthetic-v2": layouts.mlp_head("layers", 768),
    "aesthetic-v2.5": layouts.mlp_head("scoring_head", 1152, (0, 2, 4, 6, 8)),
}
HEADS["aesthetic-v1"] = {name.removeprefix("0."): shape for name, shape in HEADS["aesthetic-v1"].items()}


def small_clip():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=24, image_size=32, patch_size=8))


def small_siglip():
    return SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32, patch_size=8))


@pytest.fixture
def build():
    """A small network in a row's arrangement, with random weights."""

    def build(name, **settings):
        row = AESTHETICS[name]
        small = small_siglip if row.tower is aesthetic.siglip_so400m else small_clip
        row = replace(row, tower=small, resize=Resize(32, row.resize.fit))
        torch.manual_seed(0)
        network = AestheticNetwork(row)
        for parameter in network.head.parameters():  # the usual start ends in scores that hardly differ
            parameter.data.mul_(3)
        return AestheticReward(name, network, row, RewardSettings(**settings))

    return build


@pytest.mark.parametrize("name", AESTHETICS)
def test_released_layouts_fit_the_full_size(name):
    """The tower's files hold the half for words too; it is left out."""
    row = AESTHETICS[name]
    tower = layouts.siglip_vision() if "2.5" in name else layouts.transformers_clip(**L14, length=77)
    words = {"text_model.final_layer_norm.weight": (1152,), "logit_scale": ()}
    state = from_released(row, layouts.on_meta({**tower, **words}), layouts.on_meta(HEADS[name]))
    network = filled(lambda: AestheticNetwork(row), state, name)
    parameters = sum(p.numel() for p in network.tower.parameters())
    assert parameters == {"aesthetic-v2.5": 428_225_600}.get(name, 303_966_208)
    assert NETWORKS[name] == "hypernoise.rewards.aesthetic"


def test_a_head_that_lacks_a_layer_is_refused():
    row = AESTHETICS["aesthetic-v2"]
    tower = layouts.on_meta(layouts.transformers_clip(**L14, length=77))
    head = {name: tensor for name, tensor in layouts.on_meta(HEADS["aesthetic-v2"]).items() if ".7." not in name}
    with pytest.raises(InputError, match=r"2 missing \(head.7.weight, head.7.bias\)"):
        filled(lambda: AestheticNetwork(row), from_released(row, tower, head), "head")


@pytest.mark.parametrize("name", AESTHETICS)
def test_the_score_is_the_head_on_unit_features(build, name):
    """The head's layers written as one product, on the tower's own output."""
    reward = build(name)
    seen = normalise(Resize(32, reward.resize.fit)(pictures()), reward.row.mean, reward.row.std)
    tower = reward.network.tower
    out = tower(pixel_values=seen)
    score = out.image_embeds if "2.5" not in name else out.pooler_output
    score = score / score.norm(dim=-1, keepdim=True)
    for layer in reward.network.head:
        score = functional.linear(score, layer.weight, layer.bias)
    assert reward(pictures(), ["a", "b"]).shape == (2,)
    assert (reward(pictures(), ["a", "b"]) - score[:, 0]).abs().max() < 1e-6
    assert (score[0] - score[1]).abs() > 1e-5


@pytest.mark.parametrize("name", AESTHETICS)
def test_gradient_is_right_by_finite_differences(build, name):
    reward = build(name)
    reward.network.double()
    pixels = pictures().double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(pixels, ["a", "b"]).sum(), pixels)
    assert gradient.flatten(1).norm(dim=1).min() > 1e-6
    along = gradient / gradient.norm()
    with torch.no_grad():
        rise = reward(pixels + 1e-4 * along, ["a", "b"]).sum() - reward(pixels - 1e-4 * along, ["a", "b"]).sum()
    assert rise.item() / 2e-4 == pytest.approx(gradient.norm().item(), rel=1e-4)
    reward.network.float()
    check_reward(reward)


@pytest.mark.parametrize("name", ["aesthetic-v2", "aesthetic-v2.5"])
def test_checkpointing_changes_nothing_and_bf16_little(build, name):
    pixels, found = pictures().requires_grad_(), []
    for settings in ({}, {"checkpointing": True}, {"dtype": "bfloat16"}):
        reward, held = build(name, **settings), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t) or t, lambda t: t):
            score = reward(pixels, ["a", "b"])
        weights = {parameter.data_ptr() for parameter in reward.network.parameters()}
        memory = sum(tensor.numel() for tensor in held if tensor.data_ptr() not in weights)
        found.append((score, torch.autograd.grad(score.sum(), pixels)[0], memory))
    (plain, along, usual), (kept, kept_along, saving), (rounded, _, _) = found
    assert saving < 0.8 * usual
    assert torch.equal(plain, kept)
    assert torch.allclose(along, kept_along, rtol=1e-4, atol=1e-9)
    assert rounded.dtype == torch.float32
    assert 0 < (plain - rounded).abs().max() < 0.05 * plain.abs().max()


def test_released_files_load_by_name(tmp_path, monkeypatch, build):
    source = build("aesthetic-v1")
    tower = source.network.tower.state_dict()
    head = {name.removeprefix("0."): tensor for name, tensor in source.network.head.state_dict().items()}
    torch.save({**tower, "text_model.final_layer_norm.weight": torch.zeros(3)}, tmp_path / "tower.bin")
    torch.save(head, tmp_path / "head.pth")
    monkeypatch.setitem(AESTHETICS, "aesthetic-v1", source.row)
    loaded = aesthetic.load("aesthetic-v1", RewardSettings(), (tmp_path / "tower.bin", tmp_path / "head.pth"))
    assert torch.equal(loaded(pictures(), ["a", "b"]), source(pictures(), ["a", "b"]))


def test_files_off_the_hub_are_kept_and_asked_for_once(tmp_path, monkeypatch):
    served = tmp_path / "served" / "head.pth"
    served.parent.mkdir()
    served.write_bytes(b"weights")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    link = Linked(served.as_uri())
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        link.fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    cut = SimpleNamespace(headers={"Content-Length": "99"}, read=io.BytesIO(b"weig").read)
    with monkeypatch.context() as patched:
        patched.setattr("urllib.request.urlopen", lambda url, timeout: contextlib.nullcontext(cut))
        with pytest.raises(InputError, match="ended after 4 of 99 bytes"):
            link.fetch()
    assert link.fetch().read_bytes() == b"weights"
    served.unlink()
    assert link.fetch().read_bytes() == b"weights"
    assert [f.name for f in link.fetch().parent.iterdir()] == ["head.pth"]
    with pytest.raises(InputError, match="cannot be downloaded"):
        Linked(served.with_name("other.pth").as_uri()).fetch()
