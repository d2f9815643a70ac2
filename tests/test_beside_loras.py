"""The user's own LoRAs beside a noise network: off while f is evaluated, and as the user set them in the generator."""

import copy
from functools import cache

import pytest
import torch
from peft import LoraConfig

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

FAMILY = {"sd": "StableDiffusionPipeline", "flux": "FluxPipeline"}
LAYERS = {"sd": ["to_q", "to_v", "conv1", "conv_out"], "flux": ["to_q", "to_v", "proj_out"]}


@pytest.fixture(scope="module", params=["sd", "flux"])
def name(request):
    return request.param


@pytest.fixture(scope="module", params=["lora", "spectral"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def build(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)
    first = cache(lambda: build_pipeline(FAMILY[name], folder))
    return lambda: copy.deepcopy(first())


def generator_of(pipe, name):
    return DiffusionGenerator(pipe, name="tiny", size=size_of(FAMILY[name]))


@pytest.fixture(scope="module")
def folder(build, name, kind, tmp_path_factory):
    generator, folder = generator_of(build(), name), tmp_path_factory.mktemp("adapter")
    network = LoRANoise(generator, rank=2) if kind == "lora" else spectral_noise(generator, Spectral(2, 16, 2))
    disturb(network, scale=0.2)
    save_adapter(network, folder, generator=generator)
    return folder


def denoiser_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def load(pipe, name, *styles):
    """The user's LoRAs, with weights that move the picture."""
    for seed, style in enumerate(styles):
        torch.manual_seed(seed)
        denoiser_of(pipe).add_adapter(LoraConfig(r=2, target_modules=LAYERS[name]), adapter_name=style)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in denoiser_of(pipe).named_parameters():
                if f"lora_B.{style}" in key:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))


def fuse(pipe):
    pipe.fuse_lora()
    pipe.unload_lora_weights()


STATES = {  # what the user does, and whether the base is another afterwards
    "one": lambda pipe, name: load(pipe, name, "mine"),
    "weighted": lambda pipe, name: (load(pipe, name, "mine"), pipe.set_adapters("mine", 0.5)),
    "two, weighted": lambda pipe, name: (
        load(pipe, name, "mine", "other"),
        pipe.set_adapters(["mine", "other"], [0.7, 1.3]),
    ),
    "one of two": lambda pipe, name: (load(pipe, name, "mine", "other"), pipe.set_adapters("mine")),
    "disabled": lambda pipe, name: (load(pipe, name, "mine"), pipe.disable_lora()),
    "unloaded": lambda pipe, name: (load(pipe, name, "mine"), pipe.unload_lora_weights()),
    "called as ours": lambda pipe, name: load(pipe, name, "hypernoise"),
    "fused": lambda pipe, name: (load(pipe, name, "mine"), pipe.fuse_lora()),
    "fused, unloaded": lambda pipe, name: (load(pipe, name, "mine"), fuse(pipe)),
    "fused, unfused": lambda pipe, name: (load(pipe, name, "mine"), pipe.fuse_lora(), pipe.unfuse_lora()),
}
FUSED = ("fused", "fused, unloaded")


def drawn(pipe, generator, x):
    call = {**generator.call(1), "output_type": "pt", "return_dict": False}
    return pipe(prompt="a ring", latents=x.clone(), **call)[0]


@pytest.mark.filterwarnings("ignore:.*differ", "ignore:Already found a `peft_config`", "ignore:Adapter")
@pytest.mark.parametrize("state", STATES)
def test_f_is_ours_alone_and_the_generator_is_as_the_user_set_it(build, folder, name, kind, state):
    bare, styled = generator_of(build(), name), build()
    x = torch.randn(1, *bare.noise_shape, generator=torch.Generator().manual_seed(0))
    if state in FUSED:
        load(bare.pipeline, name, "mine")
        fuse(bare.pipeline)
    STATES[state](styled, name)
    with torch.no_grad():
        f = load_adapter(bare, folder, check_base=False)(x, bare.encode(["a ring"]))
    plain, expected = drawn(styled, bare, x), drawn(styled, bare, x + f)
    assert (plain - expected).abs().max() > 1e-3
    if state not in ("disabled", "unloaded", "fused, unfused"):
        assert (plain - drawn(build(), bare, x)).abs().max() > 1e-4  # the style shows

    before = attach(styled, folder, check_base=state not in FUSED or kind == "spectral")
    assert (drawn(before, bare, x) - expected).abs().max() <= 1e-5
    after = attach(build(), folder)
    STATES[state](after, name)
    assert (drawn(after, bare, x) - expected).abs().max() <= 1e-5
    for pipe in (before, after):
        assert (drawn(detach(pipe), bare, x) - plain).abs().max() <= 1e-5


def test_a_fused_base_is_refused_with_advice_and_warned_about_unchecked(build, folder, name, kind):
    if kind == "spectral":
        return  # goes where LoRAs are fused
    pipe = build()
    load(pipe, name, "mine")
    fuse(pipe)
    with pytest.raises(InputError, match=r"other weights .* sampled weights; for a merge .* check_base=False"):
        attach(pipe, folder)
    with pytest.warns(
        UserWarning, match=r"made for other weights \('tiny'\) than those of .*: \d+ of \d+ sampled weights"
    ):
        attach(pipe, folder, check_base=False)


def test_other_layers_are_refused_even_unchecked(sd_pipeline, tmp_path):
    save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline()), rank=2), tmp_path / "adapter")
    with pytest.raises(InputError, match="differ in architecture"):
        attach(sd_pipeline(width=12), tmp_path / "adapter")
    with pytest.raises(InputError, match="in the adapter, "), pytest.warns(UserWarning, match="differ in architecture"):
        attach(sd_pipeline(width=12), tmp_path / "adapter", check_base=False)
