from dataclasses import replace

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import TrainConfig
from hypernoise.training.warm_start import WARM_STEP, _measure, warm_start

CONFIG = TrainConfig(train_batch_size=4, kl_weight=1.0)


@pytest.fixture
def network(generator):
    return LoRANoise(generator, rank=8, alpha=16.0)


def strongly(pixels, prompts):
    return 300 * redness(pixels, prompts)


def test_the_output_layer_is_set_to_any_weight_of_the_loras_rank(network):
    layer = network.layers[network.output_layer]
    weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).double()
    assert len(weight) <= 8
    network.set_output(weight)
    assert torch.allclose(layer.get_delta_weight("hypernoise"), weight, atol=1e-5)


def test_what_is_measured_is_the_gradient_and_the_features_of_f(network):
    """The measured sums give d(reward)/dW as autograd does through the LoRA itself."""
    generator, layer = network.generator, network.layers[network.output_layer]
    gradient, features, rewards = _measure(network, strongly, ["a", "b"], CONFIG, 0, 4)
    by_hand = (gradient.T @ features).view(layer.weight.shape)
    up, down = layer.lora_B["hypernoise"].weight, layer.lora_A["hypernoise"].weight
    texts_noise = keyed_noise(generator.noise_shape, seed=0, step=WARM_STEP, samples=range(4))
    texts = prompts_of_step(["a", "b"], 0, 4, 0)
    condition = generator.encode(texts)
    total = strongly(generator.sample(texts_noise + network(texts_noise, condition), condition), texts).sum()
    total.backward()
    expected = layer.scaling["hypernoise"] * torch.einsum("oikl,rikl->or", by_hand, down)
    assert up.grad.abs().max() > 0
    assert torch.allclose(up.grad.flatten(1), expected, rtol=1e-6)
    assert rewards.sum().item() == pytest.approx(total.item(), rel=1e-5)


def test_a_small_step_is_the_ridge_regressions_and_costs_what_it_may(network):
    rows = warm_start(network, strongly, ["a", "b"], CONFIG, rounds=1, samples=8, step=0.05, progress=False)
    assert rows[0]["newton_step"] > 0.05  # so that the step was limited
    features = torch.cat([_measure(network, strongly, ["a", "b"], CONFIG, batch, 4)[1] for batch in (0, 1)])
    answers = features @ network.layers[network.output_layer].get_delta_weight("hypernoise").flatten(1).T
    assert answers.square().sum().item() / 8 == pytest.approx(0.05**2, rel=1e-3)


def test_rounds_raise_the_reward_of_noises_not_seen(network):
    generator = network.generator
    noise = keyed_noise(generator.noise_shape, seed=5, step=7, samples=range(16))
    condition = generator.encode(["a"] * 16)
    with torch.no_grad():
        before = strongly(generator.sample(noise, condition), ["a"] * 16)
    rows = warm_start(network, strongly, ["a", "b"], CONFIG, rounds=3, samples=16, step=0.5, progress=False)
    with torch.no_grad():
        residual = network(noise, condition)
        after = strongly(generator.sample(noise + residual, condition), ["a"] * 16)
    assert (after - before).mean() > 0.5 * l2_kl(residual).mean() > 0
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[2]["reward"] > rows[0]["reward"]


def lengths(network):
    """The root mean square of ‖f‖ on noises of no warm start."""
    noise = keyed_noise(network.generator.noise_shape, seed=5, step=7, samples=range(16))
    with torch.no_grad():
        return (2 * l2_kl(network(noise, network.generator.encode(["a"] * 16)))).mean().sqrt().item()


def test_a_move_is_made_longer_where_the_objective_asks_for_it_and_it_may(network):
    """Gradients cut to a tenth make the move ten times too short: four times it is better, if allowed."""
    cut = replace(CONFIG, sample_clip=0.1 * _typical_gradient(network))
    short = {"rounds": 1, "samples": 16, "progress": False}
    (row,) = warm_start(network, strongly, ["a"], cut, step=1e-3, **short)
    newton = row["newton_step"]
    assert row["factor"] == pytest.approx(1e-3 / newton)
    moved = {}
    for most in (1.0, 1.7, 100.0):
        again = LoRANoise(network.generator, rank=8, alpha=16.0)
        (row,) = warm_start(again, strongly, ["a"], cut, step=most * newton, **short)
        moved[row["factor"]] = lengths(again)
    assert list(moved) == pytest.approx([1.0, 1.7, 4.0])
    assert [length / moved[1.0] for length in moved.values()] == pytest.approx(list(moved), rel=1e-3)


def test_a_move_is_left_as_it_is_where_the_straight_line_is_right(network):
    (row,) = warm_start(network, strongly, ["a"], CONFIG, rounds=1, samples=64, step=100.0, progress=False)
    assert row["factor"] == 1.0


def _typical_gradient(network):
    gradient = _measure(network, strongly, ["a"], CONFIG, 0, 4)[0].unflatten(0, (4, -1)).flatten(1)
    return gradient.norm(dim=1).mean().item()


def test_the_same_seed_gives_the_same_start_and_the_frozen_weights_stay(network):
    frozen = {name: p.clone() for name, p in network.generator.denoiser.named_parameters() if "lora" not in name}
    warm_start(network, strongly, ["a"], CONFIG, rounds=1, samples=6, step=1.0, progress=False)
    first = {name: weight.clone() for name, weight in network.trainable_state().items()}
    again = LoRANoise(network.generator, rank=8, alpha=16.0)
    warm_start(again, strongly, ["a"], CONFIG, rounds=1, samples=6, step=1.0, progress=False)
    assert all(torch.equal(weight, first[name]) for name, weight in again.trainable_state().items())
    now = dict(again.generator.denoiser.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    assert all(p.grad is None for p in again.generator.denoiser.parameters())


def test_a_trained_network_and_a_cut_reward_are_refused(network):
    with pytest.raises(InputError, match="gradient"):
        warm_start(network, lambda p, t: p.detach().mean((1, 2, 3)), ["a"], CONFIG, rounds=1, samples=4, step=1.0)
    warm_start(network, strongly, ["a"], CONFIG, rounds=1, samples=4, step=1.0, progress=False)
    with pytest.raises(InputError, match="trained already"):
        warm_start(network, strongly, ["a"], CONFIG, rounds=1, samples=4, step=1.0)
