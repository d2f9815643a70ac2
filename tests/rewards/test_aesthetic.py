"""The aesthetic predictor: released layouts, the head on unit features, gradients."""

import pytest
import torch
from torch.nn import functional

from hypernoise.errors import InputError
from hypernoise.rewards import aesthetic
from hypernoise.rewards.aesthetic import AestheticNetwork, AestheticReward, from_released
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.check import check_reward
from hypernoise.rewards.ensemble import NETWORKS
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.weights import filled
from tests.rewards import layouts
from tests.rewards.test_clip import L14, pictures

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"projection_dim": 24, "image_size": 32, "patch_size": 8}
HEAD = layouts.mlp_head("layers", 768)


@pytest.fixture
def build():
    """A small network in the predictor's arrangement, with random weights."""

    def build(**settings):
        torch.manual_seed(0)
        network = AestheticNetwork(SMALL)
        for parameter in network.head.parameters():  # the usual start ends in scores that hardly differ
            parameter.data.mul_(3)
        return AestheticReward("aesthetic-v2", network, RewardSettings(**settings))

    return build


def test_released_layouts_fit_the_full_size():
    """The tower's file holds the half for words too; it is left out."""
    tower = layouts.transformers_clip(**L14, length=77)
    words = {"text_model.final_layer_norm.weight": (1152,), "logit_scale": ()}
    state = from_released(layouts.on_meta({**tower, **words}), layouts.on_meta(HEAD))
    network = filled(AestheticNetwork, state, "aesthetic-v2")
    assert sum(p.numel() for p in network.tower.parameters()) == 303_966_208
    assert NETWORKS["aesthetic-v2"] == "hypernoise.rewards.aesthetic"


def test_a_head_that_lacks_a_layer_is_refused():
    tower = layouts.on_meta(layouts.transformers_clip(**L14, length=77))
    head = {name: tensor for name, tensor in layouts.on_meta(HEAD).items() if ".7." not in name}
    with pytest.raises(InputError, match='Missing key.*: "head.7.weight", "head.7.bias"'):
        filled(AestheticNetwork, from_released(tower, head), "head")


def test_the_score_is_the_head_on_unit_features(build):
    """The head's layers written as one product, on the tower's own output."""
    reward = build()
    seen = normalise(Resize(32)(pictures()), CLIP_MEAN, CLIP_STD)
    score = reward.network.tower(pixel_values=seen).image_embeds
    score = score / score.norm(dim=-1, keepdim=True)
    for layer in reward.network.head:
        score = functional.linear(score, layer.weight, layer.bias)
    assert reward(pictures(), ["a", "b"]).shape == (2,)
    assert (reward(pictures(), ["a", "b"]) - score[:, 0]).abs().max() < 1e-6
    assert (score[0] - score[1]).abs() > 1e-5


def test_gradient_is_right_by_finite_differences(build):
    reward = build()
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


def test_checkpointing_changes_nothing_and_bf16_little(build):
    pixels, found = pictures().requires_grad_(), []
    for settings in ({}, {"checkpointing": True}, {"dtype": "bfloat16"}):
        reward, held = build(**settings), []
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
    source = build()
    tower = source.network.tower.state_dict()
    head = {f"layers.{name}": tensor for name, tensor in source.network.head.state_dict().items()}
    torch.save({**tower, "text_model.final_layer_norm.weight": torch.zeros(3)}, tmp_path / "tower.bin")
    torch.save(head, tmp_path / "head.pth")
    monkeypatch.setattr(aesthetic, "AestheticNetwork", lambda: AestheticNetwork(SMALL))
    names = {aesthetic.TOWER: "tower.bin", aesthetic.HEAD: "head.pth"}
    monkeypatch.setattr(aesthetic, "fetch", lambda *asked: tmp_path / names[asked])
    loaded = aesthetic.load("aesthetic-v2", RewardSettings())
    assert torch.equal(loaded(pictures(), ["a", "b"]), source(pictures(), ["a", "b"]))
