import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import TrainConfig
from hypernoise.training.noise import keyed_noise
from hypernoise.training.prompts import prompts_of_step
from hypernoise.training.warm_start import WARM_STEP, _measure, warm_start

CONFIG = TrainConfig(batch_size=4, kl_weight=1.0)


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
