from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hypernoise.errors import InputError
from hypernoise.evaluation.engine import compare
from hypernoise.generators.base import Condition
from hypernoise.generators.module import ModuleGenerator
from hypernoise.methods.best_of_n import Plain
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
    network = ResidualNoise(shape, width=16, depth=1)  # which takes the size of the generator's conditions
    config = TrainConfig(max_train_steps=30, train_batch_size=8, kl_weight=0.01, learning_rate=1e-2)
    result = train(generator, network, lambda p, t: 10 * redness(p, t), COLOURS, config, progress=False)
    first, last = result.history[0]["reward"], result.history[-1]["reward"]
    assert result.history[0]["kl"] == 0
    assert last > first + 0.1
    assert not any(p.requires_grad for p in module.parameters())
    assert network.condition_size == network.settings["condition_size"] == (0 if embed is None else 3)


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
    with pytest.raises(InputError, match="labels from 0 to 2: they must be from 0 to condition_size - 1, 1"):
        network(noise, Condition({"embedding": torch.tensor([0, 2])}))
    with pytest.raises(InputError, match="labels from -1 to 0: they must be from 0"):
        network(noise, Condition({"embedding": torch.tensor([0, -1])}))
    assert network(noise, Condition({"embedding": torch.tensor([[0], [1]])})).shape == (2, 4)
    assert ResidualNoise((4,), condition_size=1)(noise, Condition({"embedding": torch.ones(2)})).shape == (2, 4)
    with pytest.raises(InputError, match="condition_size must be a whole number, not 3.0"):
        ResidualNoise((4,), condition_size=3.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"this network takes noise of \(4,\), not \(5,\)"):
        network(torch.zeros(2, 5), Condition({"embedding": torch.tensor([0, 1])}))
    with pytest.raises(InputError, match="noise_shape must be one sample's shape"):
        ModuleGenerator(nn.Identity(), noise_shape=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="has no denoiser to put a LoRA on: use ResidualNoise"):
        LoRANoise(ModuleGenerator(nn.Identity(), noise_shape=(4,)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="an embedding has 3 numbers, but condition_size is 2"):
        network(noise, Condition({"embedding": torch.zeros(2, 3)}))
    with pytest.raises(InputError, match="this one does not"):
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


# --- what people hand in ---------------------------------------------------------------------------------------------


class Gan(nn.Module):
    """A conditional generator with BatchNorm and dropout."""

    def __init__(self, classes=3):
        super().__init__()
        self.label, self.norm = nn.Embedding(classes, 4), nn.BatchNorm1d(16)
        self.first, self.drop, self.last = nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 48)

    def forward(self, noise, labels):
        hidden = self.norm(self.first(torch.cat([noise, self.label(labels)], 1))).relu()
        return torch.sigmoid(self.last(self.drop(hidden)).unflatten(1, (3, 4, 4)))


class Plainer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 48)

    def forward(self, noise):
        return torch.sigmoid(self.layer(noise)).unflatten(1, (3, 4, 4))

    def draw(self, noise):
        return self(noise)

    @torch.no_grad()
    def draw_without_gradient(self, noise):
        return self(noise)


def climb(module, reward=redness, prompts=("red", "green"), **settings):
    generator = ModuleGenerator(module, **{"noise_shape": (8,), **settings})
    network = ResidualNoise(generator.noise_shape, width=8, depth=1)
    texts = list(prompts) if isinstance(prompts, tuple) else prompts
    config = TrainConfig(max_train_steps=2, train_batch_size=4, mixed_precision="no")
    return generator, train(generator, network, reward, texts, config, progress=False).history


CALLABLES = {
    "module": lambda one: one,
    "function": lambda one: lambda noise: one(noise),
    "default": lambda one: lambda noise, *, use=one: use(noise),
    "bound method": lambda one: one.draw,
    "partial": lambda one: partial(Plainer.forward, one),
    "held": lambda one: SimpleNamespace(net=one, draw=lambda noise: one(noise)).draw,
    "tuple": lambda one: lambda noise: (one(noise), noise),
    "list": lambda one: lambda noise: [None, one(noise)],
    "mapping": lambda one: lambda noise: {"image": one(noise), "latent": noise},
    "object": lambda one: lambda noise: SimpleNamespace(sample=one(noise)),
    "mask beside it": lambda one: lambda noise: (one(noise)[:, :1], one(noise)),
}


@pytest.mark.parametrize("wrap", CALLABLES.values(), ids=CALLABLES.keys())
def test_a_callable_with_its_output_draws_as_the_module_does(wrap):
    module = Plainer()
    generator, history = climb(wrap(module))
    assert [row["reward"] for row in history] == [row["reward"] for row in climb(Plainer())[1]]
    assert not any(weight.requires_grad for weight in module.parameters())
    assert generator.describe()["weights"] == ModuleGenerator(Plainer(), noise_shape=(8,)).describe()["weights"]
    found = compare(generator, [Plain()], ["red"], redness, num_images_per_prompt=2)
    assert found.rows[0]["denoiser_forwards"] == 1


def test_to_pixels_takes_several_outputs_whole():
    module = Plainer()
    _, history = climb(lambda noise: (2 * module(noise) - 1, noise), to_pixels=lambda y: (y[0] + 1) / 2)
    assert history[0]["reward"] == pytest.approx(climb(Plainer())[1][0]["reward"], abs=1e-6)


def test_train_mode_set_later_moves_no_statistics_and_mixes_no_batch():
    module = Gan()
    generator = ModuleGenerator(module, noise_shape=(8,), embed=labels)
    before = generator.describe()
    module.train()
    noise, condition = torch.randn(4, 8), generator.encode(["red"] * 4)
    together = generator.sample(noise, condition)
    module.norm.train()
    assert torch.allclose(generator.sample(noise[:1], condition[:1]), together[:1], atol=1e-6)
    assert generator.describe() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_weights_of_any_precision_train(dtype, mixed_precision):
    generator = ModuleGenerator(Gan().to(dtype), noise_shape=(8,), embed=labels)
    config = TrainConfig(max_train_steps=2, train_batch_size=4, mixed_precision=mixed_precision)
    network = ResidualNoise((8,), width=8, depth=1)
    rows = train(generator, network, redness, COLOURS, config, progress=False).history
    assert all(row["gradient_norm"] > 0 for row in rows)
    vectors = ModuleGenerator(
        nn.Bilinear(8, 3, 48).to(dtype), noise_shape=(8,), embed=lambda p: torch.eye(3)[labels(p)]
    )
    vectors.to_pixels = lambda y: torch.sigmoid(y).unflatten(1, (3, 4, 4))
    assert vectors.sample(torch.zeros(3, 8), vectors.encode(COLOURS)).dtype == torch.float32


def test_a_reward_may_depend_on_a_prompt_that_the_module_is_not_given(capsys):
    def asked(pixels, prompts):
        return redness(pixels, prompts) * torch.tensor([1.0 if prompt == "red" else -1.0 for prompt in prompts])

    generator, _ = climb(Plainer(), asked, embed=labels)
    assert set(generator.encode(["red"]).tensors) == {"embedding"}
    assert "the reward reads the prompt" not in capsys.readouterr().err
    climb(Plainer(), redness)
    assert "the reward reads the prompt" not in capsys.readouterr().err
    climb(Plainer(), asked)
    assert "the reward reads the prompt, which the noise network does not see" in capsys.readouterr().err


def unnormalised():
    return nn.Sequential(nn.Linear(8, 48), nn.BatchNorm1d(48, track_running_stats=False), nn.Unflatten(1, (3, 4, 4)))


def shown(change):
    module = Plainer()
    return lambda noise: change(module(noise))


REFUSED = {
    "class": (lambda: {"module": Plainer}, "module is the class Plainer"),
    "text": (lambda: {"module": "gan.pt"}, "module is a str"),
    "embed": (lambda: {"module": Gan(), "embed": torch.eye(3)}, "embed is a Tensor"),
    "no embed": (lambda: {"module": Gan()}, r"takes \(noise, labels\); give embed"),
    "three": (lambda: {"module": lambda a, b, c: a, "embed": labels}, r"takes \(a, b, c\); wrap it"),
    "shape": (lambda: {"module": Plainer(), "noise_shape": (9,)}, r"'module' fails when given \[4, 9\]: Runt"),
    "with batch": (lambda: {"module": Plainer(), "noise_shape": (4, 8)}, r"fails when given \[4, 4, 8\]"),
    "label": (lambda: {"module": Gan(2), "embed": labels, "prompts": ("red", "blue")}, "labels from 0 to 2: Index"),
    "negative": (lambda: {"module": Gan(), "embed": lambda p: -labels(p)}, "a negative number .* for 'green'"),
    "unknown": (lambda: {"module": Gan(), "embed": labels, "prompts": ("red", "mauve")}, "embed raised .* for 'mauve'"),
    "list": (lambda: {"module": Gan(), "embed": lambda p: [0] * len(p)}, "a row for each of 1 prompts, not a list"),
    "NaN": (lambda: {"module": Gan(), "embed": lambda p: labels(p) / 0}, "embed returns NaN or inf for 'red'"),
    "sparse": (lambda: {"module": Gan(), "embed": lambda p: labels(p).to_sparse()}, "not torch.sparse_coo, torch.int"),
    "1e9 classes": (lambda: {"module": Gan(), "embed": lambda p: labels(p) + 10**9}, "1,000,000,002 classes"),
    "half": (lambda: {"module": Plainer(), "prompts": ["\ud800"]}, "half a character"),
    "numpy's": (lambda: {"module": Plainer(), "prompts": np.array(["a", "b"])}, r"not a ndarray, such as list\("),
    "numbers": (lambda: {"module": Gan(), "embed": torch.tensor, "prompts": (0, 1)}, "prompts must be texts, and 0 is"),
    "bare": (lambda: {"module": Plainer(), "prompts": "red"}, r"prompts is a single text; put it in a list: \['red'\]"),
    "mapping": (lambda: {"module": Plainer(), "prompts": {"a": "red"}}, "must be a list of texts, not a dict"),
    "tanh": (lambda: {"module": shown(lambda y: 2 * y - 1)}, r"values from -0.*; .*to_pixels=lambda y: \(y \+ 1\) / 2"),
    "bytes": (lambda: {"module": shown(lambda y: 255 * y)}, "to_pixels=lambda y: y / 255"),
    "unbounded": (lambda: {"module": shown(lambda y: 9 * y - 4)}, r"to_pixels=lambda y: y.clamp\(0, 1\)"),
    "to_pixels": (lambda: {"module": Plainer(), "to_pixels": lambda y: y * 2 - 1}, "to_pixels returns values from -"),
    "not finite": (lambda: {"module": shown(lambda y: y / 0)}, r"values from -?(inf|nan) to .*\[0, 1\]: pass"),
    "integers": (lambda: {"module": shown(lambda y: (y * 255).byte())}, r"returns torch.uint8; .*y.float\(\) / 255"),
    "grey": (lambda: {"module": shown(lambda y: y[:, :1])}, r"\[4, 1, 4, 4\]; it must .*: pass to_pixels, which"),
    "last": (lambda: {"module": shown(lambda y: y.permute(0, 2, 3, 1))}, r"shape \[4, 4, 4, 3\]; it must"),
    "flat": (lambda: {"module": shown(lambda y: y.flatten(1))}, r"shape \[4, 48\]; it must"),
    "two": (lambda: {"module": shown(lambda y: (y, y))}, r"a tuple of \[4, 3, 4, 4\], \[4, 3, 4, 4\]; pick"),
    "none": (lambda: {"module": shown(lambda y: None)}, r"it returns a NoneType; pick the picture \[B, 3"),
    "no_grad": (lambda: {"module": Plainer().draw_without_gradient}, "no gradient reaches the noise of 'module'"),
    "inference": (lambda: {"module": torch.inference_mode()(Plainer().draw)}, "no gradient reaches the noise"),
    "detach": (lambda: {"module": shown(lambda y: y.detach())}, "no gradient reaches the noise"),
    "numpy": (lambda: {"module": shown(lambda y: torch.from_numpy(y.numpy()))}, "goes through numpy"),
    "lazy": (lambda: {"module": nn.LazyLinear(48)}, "weights without values: load them, or call a lazy"),
    "meta": (lambda: {"module": Plainer().to("meta")}, "weights without values"),
    "shape of 1e12": (lambda: {"module": Plainer(), "noise_shape": (10**6, 10**6)}, "such as .8,. or .4, 8, 8., not"),
    "batch": (lambda: {"module": unnormalised()}, "'1' of 'module' is a BatchNorm1d without running"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_refused_in_one_line(case, message):
    with pytest.raises(InputError, match=message) as refused:
        climb(**case())
    assert len(str(refused.value).splitlines()) == 1


def test_a_module_that_changes_what_it_is_given_leaves_the_noise_as_it_was():
    generator = ModuleGenerator(lambda noise: noise.clamp_(0, 1).expand(-1, 3, -1, -1), noise_shape=(1, 2, 2))
    noise = 9 * torch.randn(2, 1, 2, 2)
    before = noise.clone()
    generator.sample(noise, generator.encode(["", ""]))
    assert torch.equal(noise, before)


def test_a_function_under_study_may_give_anything():
    generator = ModuleGenerator(nn.Identity(), noise_shape=(1, 1, 4), pictures=False)
    noise = 9 * torch.randn(2, 1, 1, 4)
    assert torch.equal(generator.sample(noise, generator.encode(["", ""])), noise)
    several = ModuleGenerator(lambda x: (x, x), noise_shape=(1, 1, 4), pictures=False)
    with pytest.raises(InputError, match=r"returns a tuple of \[2, 1, 1, 4\], .*, not a tensor; pick what the reward"):
        several.sample(noise, several.encode(["", ""]))


def test_an_embed_that_gives_inference_tensors_trains():
    climb(Gan(), embed=torch.inference_mode()(labels))


def test_a_network_of_another_noise_is_refused_before_training():
    generator = ModuleGenerator(Plainer(), noise_shape=(8,))
    with pytest.raises(InputError, match=r"takes noise of \(9,\), but 'module' takes \(8,\)"):
        train(generator, ResidualNoise((9,)), redness, ["red"], TrainConfig(), progress=False)
