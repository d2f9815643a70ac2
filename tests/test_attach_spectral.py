"""`attach` of a spectral noise network: one pass of the user's call, drawn from the noise plus f, on every family."""

import json

import pytest
import torch
from torch.ao.quantization import quantize_dynamic

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.generators.module import ModuleGenerator
from hypernoise.methods.base import Problem
from hypernoise.methods.finetune import load_finetuned
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise, spectral_noise
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of
from tests.test_attach_families import GUIDED, as_pipeline, drawn_shape, noise

SMALL = Spectral(k=2, width=16, depth=2)
CALL = dict(num_inference_steps=1, guidance_scale=0.0, output_type="pt", return_dict=False)


def made(family, folder, *, disturbed=True, size=None):
    generator = DiffusionGenerator(build_pipeline(family, folder), size=size or size_of(family))
    network = spectral_noise(generator, SMALL)
    if disturbed:
        disturb(network, scale=0.2)
    return generator, network


def drawn(pipeline, base, prompt, steps=1, **call):
    own = {**base.call(steps), "output_type": "pt", "return_dict": False}
    return pipeline(prompt=prompt, **{**own, **call})[0]


def attached(base, network, prompt, steps=1, **call):
    pipeline = attach(base.pipeline, network)
    try:
        return drawn(pipeline, base, prompt, steps, **call)
    finally:
        detach(pipeline)


@torch.no_grad()
def by_hand(generator, network, prompts, x, steps=1):
    condition = generator.encode(prompts)
    return generator.sample(x + network(x, condition).to(x.dtype), condition, num_inference_steps=steps)


family = pytest.mark.parametrize("family", sorted(FAMILIES))


@family
def test_an_untrained_one_changes_no_bit(family, tmp_path):
    generator, network = made(family, tmp_path, disturbed=False)
    for steps in (1, 2):
        torch.manual_seed(0)
        plain = drawn(generator.pipeline, generator, "a ring", steps, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(0)
        ours = attached(generator, network, "a ring", steps, generator=torch.Generator().manual_seed(3))
        assert torch.equal(ours, plain)


@family
def test_a_call_runs_once_from_the_noise_plus_f(family, tmp_path):
    generator, network = made(family, tmp_path)
    x, prompts, calls = noise(generator.noise_shape), ["a ring", "two blue crosses"], []
    hook = generator.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    found = attached(generator, network, list(prompts), latents=x.clone())
    assert len(calls) == 1
    hook.remove()
    assert (found - by_hand(generator, network, prompts, x)).abs().max() <= 1e-5
    plain = generator.sample(x, generator.encode(prompts))
    assert (found - plain).abs().max() > 1e-3
    four = noise(drawn_shape(generator), (3, 4, 5, 6))
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5, 6)]
    found = attached(generator, network, ["a ring", "a cross"], num_images_per_prompt=2, generator=seeds)
    assert len(found) == 4
    if family != "StableDiffusionXLPipeline":  # its ancestral step draws from the generators too
        whole = by_hand(generator, network, ["a ring", "a ring", "a cross", "a cross"], as_pipeline(generator, four))
        assert (found - whole).abs().max() <= 1e-5


@family
def test_another_size_than_it_was_trained_at(family, tmp_path):
    trained, network = made(family, tmp_path)
    generator = DiffusionGenerator(trained.pipeline, size=(trained.size[0], 2 * trained.size[1]))
    save_adapter(network, tmp_path / "adapter", generator=trained)
    again = load_adapter(generator, tmp_path / "adapter")
    x = noise(generator.noise_shape, (0,))
    expected = by_hand(generator, again, ["a ring"], x)
    assert (attached(generator, network, "a ring", latents=x.clone()) - expected).abs().max() <= 1e-5
    assert (expected - generator.sample(x, generator.encode(["a ring"]))).abs().max() > 1e-3


@pytest.mark.parametrize("family", sorted(GUIDED))
def test_under_guidance_f_is_the_prompts_own(family, tmp_path):
    generator, network = made(family, tmp_path)
    x = noise(generator.noise_shape, (0,))
    if family == "Flux2KleinPipeline":
        generator.pipeline.register_to_config(is_distilled=False)
    with torch.no_grad():
        better = x + network(x, generator.encode(["a ring"]))
    expected = drawn(generator.pipeline, generator, "a ring", latents=better, **GUIDED[family])
    found = attached(generator, network, "a ring", latents=x.clone(), **GUIDED[family])
    assert (found - expected).abs().max() <= 1e-5


@family
def test_embeddings_that_are_given_are_seen(family, tmp_path):
    generator, network = made(family, tmp_path)
    x = noise(generator.noise_shape, (0,))
    condition = generator.encode(["two blue crosses"])
    given = generator.family.arguments(condition.tensors)
    found = attached(generator, network, None, latents=x.clone(), **given)
    assert (found - by_hand(generator, network, ["two blue crosses"], x)).abs().max() <= 1e-5


def test_the_pipelines_modules_are_left_alone_and_detach_restores_it(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = spectral_noise(generator, SMALL)
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "adapter", generator=generator)
    pipe = sd_pipeline()
    pipe("a ring", **CALL)  # which leaves attributes of its own
    attributes, kind = set(vars(pipe)), type(pipe)
    modules, hooks = list(pipe.unet.modules()), len(pipe.unet._forward_hooks)
    attach(pipe, tmp_path / "adapter")
    assert list(pipe.unet.modules()) == modules
    assert len(pipe.unet._forward_hooks) == hooks
    pipe("a ring", **CALL)
    assert set(vars(pipe)) - attributes == {"_hypernoise"}
    assert type(detach(pipe)) is kind
    assert set(vars(pipe)) == attributes


def packed(pipe):
    """As quantisers leave it that put their own layers in the place of Linear ones."""
    quantize_dynamic(pipe.unet, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor", "ignore:.*differ")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_quantised_denoiser(sd_pipeline, tmp_path, when):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = spectral_noise(generator, SMALL)
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "adapter", generator=generator)
    x, pipe, size = noise(generator.noise_shape, (0,)), sd_pipeline(), dict(height=16, width=16, **CALL)
    if when == "before":
        packed(pipe)
        with pytest.raises(InputError, match="differ in architecture; if it is that base .* check_base=False"):
            attach(pipe, tmp_path / "adapter")
    attach(pipe, tmp_path / "adapter", check_base=when == "after")
    if when == "after":
        packed(pipe)
    found = pipe("a ring", latents=x.clone(), **size)[0]
    better = x + network(x, generator.encode(["a ring"])).detach()
    assert (found - detach(pipe)("a ring", latents=better, **size)[0]).abs().max() <= 1e-5
    assert (found - pipe("a ring", latents=x.clone(), **size)[0]).abs().max() > 1e-3


def test_files_and_round_trip(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = spectral_noise(generator, SMALL)
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "adapter", generator=generator, training={"steps": 7})
    about = json.loads((tmp_path / "adapter" / "hypernoise.json").read_text())
    assert (about["kind"], about["output_layer"]) == ("spectral", None)
    assert about["settings"] == network.settings
    again = load_adapter(DiffusionGenerator(sd_pipeline()), tmp_path / "adapter")
    assert isinstance(again, SpectralNoise)
    x, condition = noise(generator.noise_shape), generator.encode(["a ring", "a cross"])
    assert torch.equal(again(x, condition), network(x, condition))
    problem = Problem(generator, lambda pixels, prompts: pixels.flatten(1).mean(1))
    result = HyperNoise(tmp_path / "adapter").generate(problem, ["a ring", "a cross"], x)
    assert result.spent.denoiser_forwards == 2  # one for each picture, none for f
    assert result.kl is not None
    assert torch.allclose(result.kl, network.kl(x, condition))


def test_adapters_of_another_kind_or_base_get_one_clear_line(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    save_adapter(spectral_noise(generator, SMALL), tmp_path / "spectral", generator=generator)
    with pytest.raises(InputError, match="holds a 'spectral' network, not finetune for 'tiny'"):
        load_finetuned(generator, tmp_path / "spectral")
    module = ModuleGenerator(torch.nn.Flatten(), noise_shape=(4,))
    with pytest.raises(InputError, match="does not fit 'module'"):
        load_adapter(module, tmp_path / "spectral")
    with pytest.raises(InputError, match="other weights"):
        attach(sd_pipeline(seed=5), tmp_path / "spectral")
    with pytest.raises(InputError, match="does not fit"):
        attach(sd_pipeline(width=16), tmp_path / "spectral")
    file = tmp_path / "spectral" / "hypernoise.json"
    about = json.loads(file.read_text())
    for wrong, message in (
        ({"settings": {**about["settings"], "channels": 16}}, "is for 16 latent channels .* 'tiny' has 4"),
        ({"settings": {**about["settings"], "kk": 1}}, "settings that a 'spectral' network does not take"),
        ({"settings": {"rank": 2, "alpha": 1.0}}, "settings that a 'spectral' network does not take"),
        ({"kind": "lora", "settings": {"rank": 2, "alpha": 1.0}}, "does not fit this generator"),
    ):
        file.write_text(json.dumps({**about, "base": None, **wrong}))
        with pytest.raises(InputError, match=message) as caught:
            load_adapter(generator, tmp_path / "spectral")
        assert "\n" not in str(caught.value)
    save_adapter(LoRANoise(generator, rank=2), tmp_path / "lora")
    lora_file = tmp_path / "lora" / "hypernoise.json"
    own = {"kind": "spectral", "settings": about["settings"]}
    lora_file.write_text(json.dumps({**json.loads(lora_file.read_text()), **own}))
    with pytest.raises(InputError, match="does not fit this generator"):
        load_adapter(generator, tmp_path / "lora")
    wide = SpectralNoise(4, 12, k=2)
    with pytest.raises(InputError, match="text width 12; these have 8"):
        attach(sd_pipeline(), wide)("a ring", **CALL)
    large = SpectralNoise(4, 8, k=9)
    with pytest.raises(InputError, match="k = 9 frequencies do not fit into a latent grid of 8 x 8"):
        attach(sd_pipeline(), large)("a ring", **CALL)
