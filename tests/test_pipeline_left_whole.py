"""Whatever is done to an attached pipeline, it draws the right picture or says in one line why not.

Right is x + f(x) by hand, on a tiny Stable Diffusion whose f moves pictures by 0.3 and more; `detach` leaves it plain.
"""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event

import pytest
import torch
from accelerate import cpu_offload
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach, detach, disabled, set_strength
from tests.conftest import build_sd_pipeline, disturb

CALL = dict(
    prompt="a ring", height=16, width=16, num_inference_steps=1, guidance_scale=0.0, output_type="pt", return_dict=False
)


def drawn(pipe, **call):
    return pipe(**{**CALL, "generator": torch.Generator().manual_seed(0), **call})[0]


def apart(a, b):
    return (a - b).abs().max().item()


def made(kind, generator):
    network = LoRANoise(generator, rank=4) if kind == "lora" else spectral_noise(generator, Spectral(2, 16, 2))
    disturb(network)
    return network


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Makes tiny pipelines: copies of the first with these settings."""
    folder = tmp_path_factory.mktemp("pipelines")
    first = cache(lambda **settings: build_sd_pipeline(folder, **settings))
    return lambda **settings: copy.deepcopy(first(**settings))


@pytest.fixture(scope="module", params=["lora", "spectral"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(build, kind, tmp_path_factory):
    generator, folder = DiffusionGenerator(build(), name="tiny"), tmp_path_factory.mktemp("adapter")
    save_adapter(made(kind, generator), folder, generator=generator)
    return folder


def by_hand(pipe, kind, strength=1.0):
    """The pictures of a plain pipeline and of the noise plus f on it."""
    generator = DiffusionGenerator(pipe)
    network, noise = made(kind, generator), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        better = noise + strength * network(noise, generator.encode(["a ring"]))
    plain, improved = drawn(pipe), drawn(pipe, latents=better)
    assert apart(plain, improved) > 0.1
    return plain, improved


@pytest.fixture(scope="module")
def pictures(build, kind):
    """Plain and improved."""
    return by_hand(build(), kind)


def pipeline_is_plain(pipe, plain):
    assert type(detach(pipe)) is StableDiffusionPipeline
    assert not any(hasattr(module, "base_layer") or "forward" in vars(module) for module in pipe.unet.modules())
    assert torch.equal(drawn(pipe), plain)


DEEDS = {
    "nothing": lambda pipe: None,
    "unload_lora_weights": lambda pipe: pipe.unload_lora_weights(),
    "fuse_lora": lambda pipe: pipe.fuse_lora(),
    "unfuse_lora": lambda pipe: pipe.unfuse_lora(),
    "disable_lora": lambda pipe: pipe.disable_lora(),
    "enable_lora": lambda pipe: pipe.enable_lora(),
    "delete_adapters": lambda pipe: pipe.delete_adapters("hypernoise"),
    "set_adapters": lambda pipe: pipe.set_adapters(["hypernoise"]),
    "unet.disable_adapters": lambda pipe: pipe.unet.disable_adapters(),
    "load_state_dict": lambda pipe: pipe.unet.load_state_dict(pipe.unet.state_dict()),
    "deepcopied denoiser": lambda pipe: setattr(pipe, "unet", copy.deepcopy(pipe.unet)),
    "to": lambda pipe: pipe.to("cpu", torch.float32),
    "garbage": lambda pipe: gc.collect(),
    "requires_grad": lambda pipe: pipe.unet.requires_grad_(True),
    "fuse and unfuse projections": lambda pipe: (pipe.fuse_qkv_projections(), pipe.unfuse_qkv_projections()),
    "scheduler": lambda pipe: setattr(
        pipe, "scheduler", EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "a plain sibling is drawn": lambda pipe: drawn(StableDiffusionPipeline(**pipe.components)),
    "a copy is detached": lambda pipe: detach(copy.copy(pipe)),
    "a copy's strength": lambda pipe: set_strength(copy.copy(pipe), 0.0),
    "a deep copy is detached": lambda pipe: detach(copy.deepcopy(pipe)),
    "a second network": lambda pipe: disturb(LoRANoise(getattr(pipe._hypernoise.network, "generator", None) or
        DiffusionGenerator(StableDiffusionPipeline(**pipe.components)), rank=2)),
}  # fmt: skip


REFUSED = {"set_adapters", "unet.disable_adapters"}  # by diffusers itself, where there is no LoRA to do this to


OWN = ("nothing", "a second network")  # tried on a network of the user's own, too


@pytest.mark.parametrize(("name", "source"), [(name, "folder") for name in DEEDS] + [(name, "network") for name in OWN])
def test_it_still_draws_from_the_noise_plus_f(build, folder, kind, source, name, pictures):
    plain, improved = pictures
    pipe = build()
    attach(pipe, folder if source == "folder" else made(kind, DiffusionGenerator(pipe)))
    try:
        DEEDS[name](pipe)
    except (ValueError, AttributeError):
        assert name in REFUSED
    else:
        assert name not in REFUSED
    assert apart(drawn(pipe), improved) < 1e-5
    with disabled(pipe):
        assert torch.equal(drawn(pipe), plain)
    pipeline_is_plain(pipe, plain)


def test_copies_are_attached_and_apart(build, folder, kind, pictures):
    plain, improved = pictures
    pipe = attach(build(), folder)
    for other in (copy.copy(pipe), copy.deepcopy(pipe)):
        assert apart(drawn(other), improved) < 1e-5
        set_strength(other, 0.0)
        assert torch.equal(drawn(other), plain)
        assert apart(drawn(pipe), improved) < 1e-5
        pipeline_is_plain(other, plain)
    again = attach(detach(copy.copy(pipe)), folder)
    assert apart(drawn(again), improved) < 1e-5


def test_threads_may_draw_with_one_denoiser_at_once(build, folder, pictures):
    """While one thread evaluates f, a plain pipeline with the same denoiser draws plain; an attached one waits."""
    plain, improved = pictures
    attached, bare, second = (StableDiffusionPipeline(**build().components) for _ in range(3))
    bare.unet = second.unet = attached.unet
    attach(attached, folder), attach(second, folder)
    inside, go_on = Event(), Event()
    attached.unet.mid_block.register_forward_hook(
        lambda *_: None if inside.is_set() else (inside.set(), go_on.wait(30))[0]
    )
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(drawn, attached)
        assert inside.wait(30)
        beside, after = threads.submit(drawn, bare), threads.submit(drawn, second)
        try:
            assert torch.equal(beside.result(20), plain)
        finally:
            go_on.set()
        assert apart(first.result(), improved) < 1e-5
        assert apart(after.result(), improved) < 1e-5
    pipeline_is_plain(attached, plain)


def test_a_callback_that_draws_with_its_own_pipeline_is_refused(build, folder, pictures):
    plain, improved = pictures
    pipe = attach(build(), folder)
    with pytest.raises(InputError, match="a callback cannot draw with the pipeline that calls it"):
        drawn(pipe, callback_on_step_end=lambda *_: drawn(pipe))
    assert apart(drawn(pipe), improved) < 1e-5
    pipeline_is_plain(pipe, plain)


def test_a_new_pipeline_of_an_attached_ones_parts_is_plain(build, folder):
    pipe = attach(build(), folder)
    plain = drawn(build())
    assert torch.equal(drawn(StableDiffusionPipeline.from_pipe(pipe)), plain)
    assert torch.equal(drawn(type(pipe)(**pipe.components, requires_safety_checker=False)), plain)


def test_another_denoiser_is_refused_or_warned_about(build, folder, kind, pictures):
    plain, improved = pictures
    pipe, other = attach(build(), folder), build(seed=5)
    own, pipe.unet = pipe.unet, other.unet
    with pytest.raises(InputError, match=r"unet was replaced by another \(\d+ of \d+ sampled weights differ\)"):
        drawn(pipe)
    pipe.unet = None
    with pytest.raises(InputError, match="this pipeline has no unet; restore it"):
        drawn(pipe)
    pipe.unet = build(width=16).unet
    with pytest.raises(InputError, match="unet was replaced|has another size"):
        drawn(pipe)
    pipe.unet = own
    assert apart(drawn(pipe), improved) < 1e-5
    pipe.unet = build(width=16).unet
    assert type(detach(pipe)) is StableDiffusionPipeline
    pipe.unet = own
    assert torch.equal(drawn(pipe), plain)


def test_other_weights_in_the_same_denoiser_warn_once(build, folder, kind, recwarn):
    other = StableDiffusionPipeline(**{**build().components, "unet": build(seed=5).unet})
    other.set_progress_bar_config(disable=True)
    pipe = attach(build(), folder)
    pipe.unet.load_state_dict(other.unet.state_dict())
    recwarn.clear()
    found = [drawn(pipe), drawn(pipe)]
    said = [str(warning.message) for warning in recwarn if "have changed since attach" in str(warning.message)]
    assert len(said) == 1
    _, improved = by_hand(other, kind)
    assert apart(found[0], improved) < 1e-5
    assert torch.equal(*found)


def test_a_fused_attention_is_one_line(build, folder, kind, pictures):
    pipe = attach(build(), folder)
    _, improved = pictures
    pipe.fuse_qkv_projections()
    if kind == "lora":
        with pytest.raises(InputError, match="unfuse_qkv_projections"):
            drawn(pipe)
        pipe.unfuse_qkv_projections()
    assert apart(drawn(pipe), improved) < 1e-5
    assert type(detach(pipe)) is StableDiffusionPipeline
    with pytest.raises(InputError, match="no adapter attached"):
        detach(pipe)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_order_of_offloading_and_attaching_does_not_matter(build, folder, kind, when, pictures):
    _, improved = pictures
    pipe = build()
    if when == "after":
        attach(pipe, folder)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    if when == "before":
        attach(pipe, folder)
    assert apart(drawn(pipe), improved) < 1e-5
    assert all(weight.is_meta for weight in pipe.unet.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_order_of_casting_to_fp8_and_attaching_does_not_matter(build, folder, kind, when):
    cast = dict(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    fp8 = build()
    fp8.unet.enable_layerwise_casting(**cast)
    plain, improved = by_hand(fp8, kind)
    pipe = build()
    if when == "after":
        attach(pipe, folder)
    pipe.unet.enable_layerwise_casting(**cast)
    if when == "before":
        attach(pipe, folder)
    assert apart(drawn(pipe), improved) < 1e-5
    assert torch.equal(drawn(detach(pipe)), plain)


@pytest.mark.parametrize(
    ("way", "when"), [("in place", "before"), ("in place", "after"), ("wrapped", "after"), ("blocks", "before")]
)
def test_the_order_of_compiling_and_attaching_does_not_matter(build, folder, kind, way, when, pictures):
    if kind == "spectral" and way != "in place":
        return  # it calls no denoiser
    plain, improved = pictures
    pipe, settings = build(), dict(backend="eager", fullgraph=True)
    if when == "after":
        attach(pipe, folder)
    if way == "in place":
        pipe.unet.compile(**settings)
    elif way == "wrapped":
        pipe.unet = torch.compile(pipe.unet, **settings)
    else:
        pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    if when == "before":
        attach(pipe, folder)
    assert apart(drawn(pipe), improved) < 1e-5
    set_strength(pipe, 0.0)
    assert apart(drawn(pipe), plain) < 1e-5
    set_strength(pipe, 1.0)
    assert apart(drawn(pipe), improved) < 1e-5
    torch._dynamo.reset()


def test_strengths(build, folder, kind, pictures):
    plain, _ = pictures
    pipe = attach(build(), folder, strength=0.5)
    assert apart(drawn(pipe), by_hand(build(), kind, 0.5)[1]) < 1e-5
    set_strength(pipe, 1.5)
    assert apart(drawn(pipe), by_hand(build(), kind, 1.5)[1]) < 1e-5
    with disabled(pipe):
        assert torch.equal(drawn(pipe), plain)
        with disabled(pipe):
            set_strength(pipe, 1)
        assert torch.equal(drawn(pipe), plain)
    assert apart(drawn(pipe), pictures[1]) < 1e-5
    set_strength(pipe, 0)
    assert torch.equal(drawn(pipe), plain)
    with pytest.raises(ZeroDivisionError), disabled(pipe):
        1 / 0  # noqa: B018
    with disabled(pipe):
        detach(pipe)
    assert type(pipe) is StableDiffusionPipeline
    for wrong in (-0.1, 1.6, float("nan"), float("inf"), "1", True, None):
        with pytest.raises(InputError, match=r"strength must be a number from 0 to 1\.5"):
            attach(pipe, folder, strength=wrong)
    with pytest.raises(InputError, match="no adapter attached"):
        set_strength(pipe, 1.0)
    with pytest.raises(InputError, match="no adapter attached"), disabled(pipe):
        pass
    attach(pipe, folder)
    with pytest.raises(InputError, match=r"strength must be a number from 0 to 1\.5, not 2"):
        set_strength(pipe, 2)


def test_the_lora_follows_the_pipeline(build, tmp_path):
    """To another dtype, as `to` and offloading take it elsewhere."""
    network = made("lora", DiffusionGenerator(build()))
    save_adapter(network, tmp_path / "adapter")
    pipe = attach(build(), tmp_path / "adapter").to(torch.float64)
    generator = DiffusionGenerator(build().to(torch.float64))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = load_adapter(generator, tmp_path / "adapter")
    better = noise + network(noise, generator.encode(["a ring"])).detach()
    expected = drawn(generator.pipeline, latents=better)
    assert apart(drawn(pipe, latents=noise.clone()), expected) < 1e-5
