import pytest
import torch
from torch import nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train

COLOURS = ["red", "green", "blue"]


class Labelled(nn.Module):
    """A picture of one colour: the label's, moved by the noise."""

    def __init__(self):
        super().__init__()
        self.colours = nn.Embedding(3, 3, _weight=torch.eye(3))

    def forward(self, noise, labels):
        colour = torch.sigmoid(self.colours(labels) + noise.flatten(1)[:, :3])
        return colour[:, :, None, None].expand(-1, -1, 4, 4)


def labels(prompts):
    return torch.tensor([COLOURS.index(prompt) for prompt in prompts])


CASES = {
    "labels": (Labelled, (5,), labels),
    "embeddings": (
        lambda: nn.Bilinear(2, 3, 3 * 4 * 4),
        (2,),
        lambda prompts: torch.nn.functional.one_hot(labels(prompts), 3).float(),
    ),
    "nothing, 1-D": (lambda: nn.Linear(7, 3 * 4 * 4), (7,), None),
    "nothing, 3-D": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 3 * 4 * 4)), (2, 2, 2), None),
}


@pytest.mark.parametrize(("make", "shape", "embed"), CASES.values(), ids=CASES.keys())
def test_a_noise_network_trains_on_any_module(make, shape, embed):
    torch.manual_seed(0)
    module = make()
    generator = ModuleGenerator(
        module, noise_shape=shape, embed=embed, to_pixels=lambda y: torch.sigmoid(y.reshape(len(y), 3, 4, 4))
    )
    network = ResidualNoise(shape, width=16, depth=1)
    config = TrainConfig(max_train_steps=30, train_batch_size=8, kl_weight=0.01, learning_rate=1e-2)
    result = train(generator, network, lambda p, t: 10 * redness(p, t), COLOURS, config, progress=False)
    first, last = result.history[0]["reward"], result.history[-1]["reward"]
    assert result.history[0]["kl"] == 0
    assert last > first + 0.1
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("embed", [labels, lambda prompts: torch.eye(3)[labels(prompts)]], ids=["labels", "vectors"])
def test_the_residual_may_depend_on_the_condition(embed):
    # the reward asks for red where the prompt says so, and for anything but red elsewhere: one shift cannot serve both
    generator = ModuleGenerator(Coloured(), noise_shape=(5,), embed=embed)
    sign = {"red": 1.0, "green": -1.0, "blue": -1.0}

    def asked(pixels, prompts):
        return 10 * redness(pixels, prompts) * torch.tensor([sign[prompt] for prompt in prompts])

    network = ResidualNoise((5,), condition_size=3, width=16, depth=1)
    config = TrainConfig(max_train_steps=60, train_batch_size=12, kl_weight=0.01, learning_rate=1e-2)
    train(generator, network, asked, COLOURS, config, progress=False)
    with torch.no_grad():
        red, green, _ = network(torch.zeros(3, 5), generator.encode(COLOURS))
    assert red[0] > 0.3
    assert green[0] < -0.3


class Coloured(nn.Module):
    """A picture whose colour the noise alone decides."""

    def forward(self, noise, condition):
        return torch.sigmoid(noise[:, :3])[:, :, None, None].expand(-1, -1, 4, 4)


def test_the_gradient_of_a_conditioned_residual_is_right():
    network = ResidualNoise((2,), condition_size=3, width=4, depth=1).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    condition = Condition({"embedding": torch.tensor([0, 2])})
    noise = torch.randn(2, 2, dtype=torch.float64)
    names = [name for name, _ in network.named_parameters()]

    def residual(*parameters):
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (noise, condition))

    assert torch.autograd.gradcheck(residual, tuple(network.parameters()))


def test_a_condition_of_another_size_is_refused():
    noise, network = torch.zeros(2, 4), ResidualNoise((4,), condition_size=2)
    with pytest.raises(InputError, match="there is a label 2: condition_size must be above it, not 2"):
        network(noise, Condition({"embedding": torch.tensor([0, 2])}))
    with pytest.raises(InputError, match="there is a label -1: labels begin at 0"):
        network(noise, Condition({"embedding": torch.tensor([0, -1])}))
    assert network(noise, Condition({"embedding": torch.tensor([[0], [1]])})).shape == (2, 4)
    assert ResidualNoise((4,), condition_size=1)(noise, Condition({"embedding": torch.ones(2)})).shape == (2, 4)
    with pytest.raises(InputError, match="condition_size must be a whole number of at least 0, not 3.0"):
        ResidualNoise((4,), condition_size=3.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"this network takes noise of \(4,\), not \(5,\)"):
        network(torch.zeros(2, 5), Condition({"embedding": torch.tensor([0, 1])}))
    with pytest.raises(InputError, match="noise_shape is of one sample"):
        ModuleGenerator(nn.Identity(), noise_shape=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="has no denoiser to put a LoRA on: take ResidualNoise"):
        LoRANoise(ModuleGenerator(nn.Identity(), noise_shape=(4,)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="an embedding has 3 numbers: condition_size must be that, not 2"):
        network(noise, Condition({"embedding": torch.zeros(2, 3)}))
    with pytest.raises(InputError, match="this one has none"):
        network(noise, ModuleGenerator(nn.Identity(), noise_shape=(4,)).encode(["", ""]))


def test_conditions_reach_the_module_and_slice():
    generator = ModuleGenerator(Labelled(), noise_shape=(5,), embed=labels)
    noise, condition = torch.zeros(3, 5), generator.encode(COLOURS)
    pixels = generator.sample(noise, condition)
    assert pixels[:, :, 0, 0].argmax(1).tolist() == [0, 1, 2]
    assert torch.equal(generator.sample(noise[1:], condition[1:]), pixels[1:])


def test_an_embedding_without_a_row_for_each_prompt_is_refused():
    generator = ModuleGenerator(Labelled(), noise_shape=(5,), embed=lambda prompts: torch.zeros(1))
    with pytest.raises(InputError, match="a row for each of 3 prompts"):
        generator.encode(COLOURS)
