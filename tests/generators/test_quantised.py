"""A frozen denoiser in few bits: it draws, the fp32 LoRA on it trains by the right gradient, and adapters go across.

The packages are extras: without one, its tests are skipped.
"""

import importlib

import pytest
import torch
from torch import nn

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import QUANTISERS, Memory
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

PROMPTS = ["a red circle", "two blue rings and a cross"]


@pytest.fixture(params=QUANTISERS)
def kind(request):
    pytest.importorskip(QUANTISERS[request.param], reason=f"{QUANTISERS[request.param]} is not installed")
    return request.param


def loaded(family, folder, **settings):
    return load_generator(folder / "saved", device="cpu", size=size_of(family), **settings)


@pytest.fixture(params=["StableDiffusionPipeline", "SanaSprintPipeline", "FluxPipeline"])
def family(request, tmp_path):
    build_pipeline(request.param, tmp_path).save_pretrained(tmp_path / "saved")
    return request.param


def plain_weight(layer):
    """A layer's weight as the numbers it stands for."""
    if hasattr(layer.weight, "quant_state"):
        functional = importlib.import_module("bitsandbytes.functional")
        return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return layer.weight.dequantize().float()


def unquantised(family, generator, folder):
    """The same generator with fp32 layers that hold the numbers the quantised ones stand for."""
    other = loaded(family, folder)
    for name, layer in generator.denoiser.named_modules():
        if isinstance(layer, nn.Linear) and describes_few_bits(layer.weight):
            other.denoiser.get_submodule(name).weight.data = plain_weight(layer).clone()
    return other


def describes_few_bits(weight):
    return type(weight) is not nn.Parameter


def step(generator):
    network = LoRANoise(generator, rank=2, alpha=2.0)
    disturb(network, scale=0.2)
    noise = torch.randn(2, *generator.noise_shape, generator=torch.Generator().manual_seed(0))
    condition = generator.encode(PROMPTS)
    residual = network(noise, condition)
    pixels = generator.sample(noise + residual, condition, seed=0)
    (l2_kl(residual).sum() + pixels.square().sum()).backward()
    return network, pixels.detach()


def test_it_draws_and_the_lora_gets_the_gradient_of_what_it_draws(kind, family, tmp_path):
    generator = loaded(family, tmp_path, memory=Memory(quantise=kind))
    linear = {name: m.weight for name, m in generator.denoiser.named_modules() if isinstance(m, nn.Linear)}
    output = generator.family.output_layer
    assert {name for name, weight in linear.items() if not describes_few_bits(weight)} <= {output}
    other = unquantised(family, generator, tmp_path)
    (network, pixels), (reference, expected) = step(generator), step(other)
    assert {p.dtype for p in network.trainable_parameters()} == {torch.float32}
    assert (pixels - expected).abs().max() <= 2e-4
    assert pixels.std() > 1e-2
    pairs = list(zip(network.trainable_parameters(), reference.trainable_parameters(), strict=True))
    for mine, right in pairs:
        assert (mine.grad is None) == (right.grad is None)
        if mine.grad is not None:
            assert torch.allclose(mine.grad, right.grad, rtol=2e-2, atol=2e-3 * float(right.grad.abs().max()) + 1e-6)
    assert sum(mine.grad is not None and bool(mine.grad.any()) for mine, _ in pairs) > len(pairs) / 2
    exact = loaded(family, tmp_path)
    assert any(not torch.equal(m.weight, exact.denoiser.get_submodule(n).weight) for n, m in layers_of(other))


def layers_of(generator):
    bare = [(n.removesuffix(".base_layer"), m) for n, m in generator.denoiser.named_modules() if ".lora_" not in n]
    return [(name, module) for name, module in bare if isinstance(module, nn.Linear)]


def test_attach_on_a_quantised_pipeline_of_an_adapter_from_a_whole_one_and_back(kind, family, tmp_path):
    whole = loaded(family, tmp_path)
    network = LoRANoise(whole, rank=2)
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "adapter")
    generator = loaded(family, tmp_path, memory=Memory(quantise=kind))
    assert generator.describe()["fingerprint"] == whole.describe()["fingerprint"]
    noise = torch.randn(1, *generator.noise_shape, generator=torch.Generator().manual_seed(0))
    pipe = attach(generator.pipeline, tmp_path / "adapter")
    call = dict(output_type="pt", return_dict=False, height=generator.size[0], width=generator.size[1])
    drawn = pipe(prompt="a ring", latents=noise.clone(), **generator.call(1), **call)[0]
    own = detach(pipe)
    with torch.no_grad():
        again = load_adapter(DiffusionGenerator(own, size=generator.size, name="whole"), tmp_path / "adapter")
        condition = again.generator.encode(["a ring"])
        better = noise + again(noise, condition)
        expected = again.generator.sample(better, condition)
    assert (better - noise).abs().max() > 1e-2
    assert (drawn - expected).abs().max() <= 1e-4
    save_adapter(again, tmp_path / "back")
    assert load_adapter(whole, tmp_path / "back").settings == network.settings


def test_an_adapter_of_other_weights_is_still_refused(kind, family, tmp_path):
    """By the weights that are not quantised: convolutions, embeddings, the output layer."""
    whole = loaded(family, tmp_path)
    whole.denoiser.get_submodule(whole.family.output_layer).weight.data.add_(1.0)
    save_adapter(LoRANoise(whole, rank=2), tmp_path / "adapter")
    with pytest.raises(InputError, match="was made for other weights"):
        load_adapter(loaded(family, tmp_path, memory=Memory(quantise=kind)), tmp_path / "adapter")


def test_a_few_step_lora_is_fused_before_the_weights_are_packed(tmp_path, sd_pipeline):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from tests.generators.test_registry import lora_file

    pipeline = sd_pipeline()
    file, change = lora_file(tmp_path / "lcm", pipeline)
    pipeline.save_pretrained(tmp_path / "base")
    settings = dict(device="cpu", lora=str(file), scheduler="lcm", memory=Memory(quantise="int8"))
    generator = load_generator(tmp_path / "base", **settings)
    for name, weight in change.items():
        stored = plain_weight(generator.denoiser.get_submodule(name))
        assert (stored - weight).abs().max() <= 0.51 * weight.abs().max() / 127
