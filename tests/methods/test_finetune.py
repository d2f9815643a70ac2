import pytest
import torch

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.methods.base import Problem
from hypernoise.methods.best_of_n import Plain
from hypernoise.methods.finetune import FineTune, LoRATune, finetune, load_finetuned
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import TrainConfig
from tests.conftest import disturb

PROMPTS = ["a red circle", "two blue rings", "a cross"]


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def settings(**changes):
    return TrainConfig(
        **{"max_train_steps": 4, "train_batch_size": 4, "learning_rate": 1e-2, "lr_warmup_steps": 0, **changes}
    )


def test_untrained_it_is_the_generator_and_off_it_stays_so(generator, noise):
    problem = Problem(generator, redness)
    plain = Plain().generate(problem, PROMPTS, noise)
    network = LoRATune(generator, rank=2)
    assert torch.allclose(FineTune(network).generate(problem, PROMPTS, noise).pixels, plain.pixels, atol=1e-12)
    disturb(network)
    tuned = FineTune(network).generate(problem, PROMPTS, noise)
    assert (tuned.pixels - plain.pixels).abs().max() > 1e-3
    assert torch.equal(tuned.noise, noise)
    assert (tuned.spent.denoiser_forwards, tuned.spent.decodes, tuned.kl) == (3, 3, None)
    assert torch.allclose(Plain().generate(problem, PROMPTS, noise).pixels, plain.pixels, atol=1e-12)


def test_it_adds_to_the_frozen_weights(generator, noise):
    """W x + (alpha / rank) B A x on the output layer, whose base path a noise network leaves out."""
    network = LoRATune(generator, rank=2, alpha=3.0)
    disturb(network)
    layer, update = generator.denoiser.conv_out, network.layers["conv_out"]
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    with network.adapted():
        both = layer(x)
    lora = update.lora_B(update.lora_A(x)) * 1.5
    assert torch.allclose(both, layer(x) + lora)


def test_the_gradient_is_right_by_finite_differences(generator, noise):
    """The reward's gradient in an entry of the LoRA that draws; fp64."""
    network = LoRATune(generator, rank=2)
    disturb(network)
    condition = generator.encode(PROMPTS)

    def value():
        with network.adapted():
            return redness(generator.sample(noise, condition), PROMPTS).sum()

    value().backward()
    for parameter in network.trainable_parameters()[:: len(network.trainable_parameters()) // 4]:
        assert parameter.grad is not None
        place = parameter.grad.abs().argmax()
        flat, step = parameter.data.view(-1), 1e-6
        flat[place] += step
        high = value().item()
        flat[place] -= 2 * step
        low = value().item()
        flat[place] += step
        assert parameter.grad.view(-1)[place].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-9)


def test_training_raises_the_reward_and_freezes_the_base(sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = LoRATune(generator, rank=4)
    frozen = {n: p.clone() for n, p in generator.denoiser.named_parameters() if not p.requires_grad}
    reward = WeightedSum({"redness": 20.0})
    result = finetune(
        generator, network, reward, PROMPTS, settings(max_train_steps=20, train_batch_size=8), progress=False
    )
    first, last = (sum(row["reward"] for row in rows) / 5 for rows in (result.history[:5], result.history[-5:]))
    assert last > first + 0.1
    assert all(row["kl"] == 0 for row in result.history)
    assert all(row["loss"] == pytest.approx(-row["reward"], rel=1e-5) for row in result.history)
    now = dict(generator.denoiser.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())


def test_its_noises_and_first_reward_are_those_of_a_noise_network(sd_pipeline):
    """Before the first update both draw the plain generator's pictures: the same prompts and noises."""
    from hypernoise.training.loop import train

    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    reward = WeightedSum({"redness": 20.0})
    tuned = finetune(
        generator, LoRATune(generator, rank=2), reward, PROMPTS, settings(max_train_steps=1), progress=False
    )
    ours = train(generator, LoRANoise(generator, rank=2), reward, PROMPTS, settings(max_train_steps=1), progress=False)
    assert tuned.history[0]["reward"] == pytest.approx(ours.history[0]["reward"], abs=1e-6)


def test_resume_equals_no_interruption(sd_pipeline, tmp_path):
    def run(steps, output=None):
        generator = DiffusionGenerator(sd_pipeline(), name="tiny")
        network = LoRATune(generator, rank=2)
        reward = WeightedSum({"redness": 20.0})
        finetune(
            generator, network, reward, PROMPTS, settings(max_train_steps=steps), output_dir=output, progress=False
        )
        return {name: tensor.clone() for name, tensor in network.trainable_state().items()}

    whole = run(4)
    run(2, tmp_path)
    resumed = run(4, tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_saved_and_loaded_it_draws_the_same_and_is_no_noise_network(generator, noise, tmp_path):
    network = LoRATune(generator, rank=2)
    disturb(network)
    save_adapter(network, tmp_path / "tuned")
    problem = Problem(generator, redness)
    before = FineTune(network).generate(problem, PROMPTS, noise).pixels
    noisy = LoRANoise(generator, rank=2)
    save_adapter(noisy, tmp_path / "noise")
    HyperNoise(noisy).generate(problem, PROMPTS, noise)
    again = FineTune(tmp_path / "tuned").generate(problem, PROMPTS, noise).pixels
    assert torch.allclose(again, before, atol=1e-6)  # saved in fp32 or fp64 alike
    with pytest.raises(InputError, match="not lora or spectral for 'tiny'; a fine-tuned LoRA goes to --finetuned"):
        load_adapter(generator, tmp_path / "tuned")
    with pytest.raises(InputError, match="not finetune for 'tiny'; a noise network goes to --adapter"):
        load_finetuned(generator, tmp_path / "noise")
