"""The ComfyUI nodes on stand-ins for its sampler and models: what they improve is what `attach` improves."""

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn

from hypernoise.adapters import adapter_folder, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach, detach
from integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from integrations.comfyui.nodes import LoRANoiseNode, SpectralNoiseNode, lora, plain_noise, spectral
from integrations.comfyui.unet_names import ldm_name
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
PROMPT = "a red ring"


def trained(family, folder):
    """A generator with its spectral network, and the directory where that is saved."""
    generator = DiffusionGenerator(build_pipeline(family, folder), size=size_of(family))
    network = spectral_noise(generator, Spectral(k=2, width=16, depth=2))
    disturb(network, scale=0.2)
    save_adapter(network, folder / "adapter", generator=generator)
    return generator, network


def conditioning_of(generator, prompt=PROMPT):
    """As ComfyUI's text encoders give it: always with a pooled embedding, whether the model reads it or not."""
    tensors = generator.encode([prompt]).tensors
    return [[tensors["prompt_embeds"], {"pooled_output": tensors.get("pooled_prompt_embeds", torch.ones(1, 5))}]]


def latent_of(generator, count=2):
    """An empty latent as ComfyUI hands it out: never packed."""
    rows, columns = (side * generator.family.patch for side in generator.cells)
    packed = generator.family.layout == "tokens"
    channels = generator.noise_shape[-1] // 4 if packed else generator.noise_shape[0]
    return {"samples": torch.zeros(count, channels, rows, columns)}


def as_the_pipeline_takes_it(generator, noise):
    if generator.family.layout == "grid":
        return noise
    return generator.pipeline._pack_latents(noise, *noise.shape)


def draw(generator, latents, steps=1):
    call = generator.call(steps)
    prompts = [PROMPT] * len(latents)
    return generator.pipeline(prompt=prompts, latents=latents, output_type="pt", return_dict=False, **call)[0]


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"])
def test_noise_of_the_node_draws_what_an_attached_pipeline_draws(family, tmp_path):
    generator, network = trained(family, tmp_path)
    latent = latent_of(generator)
    (noise,) = SpectralNoiseNode().noise(5, conditioning_of(generator), str(tmp_path / "adapter"), 1.0)
    assert noise.seed == 5
    better = noise.generate_noise(latent)
    assert better.shape == latent["samples"].shape
    plain = plain_noise(latent["samples"], 5, None)
    attach(generator.pipeline, network)
    expected = draw(generator, as_the_pipeline_takes_it(generator, plain))
    detach(generator.pipeline)
    assert (draw(generator, as_the_pipeline_takes_it(generator, better)) - expected).abs().max() <= 1e-5
    assert (draw(generator, as_the_pipeline_takes_it(generator, plain)) - expected).abs().max() > 1e-3


def test_strength_multiplies_f_and_0_is_the_seeds_own_noise(tmp_path):
    generator, _ = trained("StableDiffusionPipeline", tmp_path)
    latent, given = latent_of(generator), conditioning_of(generator)
    none, half, whole = (
        SpectralNoiseNode().noise(1, given, str(tmp_path / "adapter"), strength)[0].generate_noise(latent)
        for strength in (0.0, 0.5, 1.0)
    )
    assert torch.equal(none, torch.randn(none.shape, generator=torch.Generator().manual_seed(1)))
    assert (half - none - (whole - none) / 2).abs().max() <= 1e-6


def test_noise_of_a_part_of_a_batch_is_its_part_of_the_batchs():
    """As in ComfyUI's "Latent From Batch": each index has its own noise, whatever else is in the batch."""
    samples = torch.zeros(2, 4, 3, 3)
    draw_ = torch.Generator().manual_seed(7)
    drawn = [torch.randn(1, 4, 3, 3, generator=draw_) for _ in range(4)]
    assert torch.equal(plain_noise(samples, 7, [3, 1]), torch.cat([drawn[3], drawn[1]]))
    assert plain_noise(samples, 2**64 - 1, None).shape == samples.shape


class Aliased(nn.Module):
    """A diffusers UNet whose layers are found under ComfyUI's names, the very same modules."""

    def __init__(self, unet, res_blocks):
        super().__init__()
        self.unet = (unet,)
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                *path, leaf = ldm_name(name, res_blocks, ()).split(".")
                place = self
                for part in path:
                    if part not in dict(place.named_children()):
                        place.add_module(part, nn.Module())
                    place = place.get_submodule(part)
                place.add_module(leaf, module)

    def forward(self, x, t, context):
        return self.unet[0](x, t, encoder_hidden_states=context, return_dict=False)[0]


class FakePatcher:
    """ComfyUI's MODEL: `model`, and wrappers that a clone does not share."""

    def __init__(self, model, wrappers=()):
        self.model, self.wrappers = model, list(wrappers)

    def clone(self):
        return FakePatcher(self.model, self.wrappers)

    def add_wrapper_with_key(self, kind, key, wrapper):
        assert kind == "sampler_sample"
        self.wrappers.append(wrapper)


@pytest.fixture
def comfy(monkeypatch):
    """`comfy.samplers` with the one function that is used; it records the noise levels it was called with."""
    called = []

    def calc_cond_batch(model, conds, x, sigmas, options):
        ((cond,),) = conds
        called.append(sigmas)
        root = (sigmas**2 + 1).sqrt().view(-1, 1, 1, 1)
        context = cond["cross_attn"].expand(len(x), -1, -1)
        answer = model.diffusion_model(x / root, 999, context)
        return [x - sigmas.view(-1, 1, 1, 1) * answer]

    samplers = ModuleType("comfy.samplers")
    samplers.calc_cond_batch = calc_cond_batch
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    return called


def comfy_model(generator):
    generator.pipeline.scheduler.set_timesteps(1)
    sigma = torch.as_tensor(generator.pipeline.scheduler.init_noise_sigma)
    return SimpleNamespace(
        diffusion_model=Aliased(generator.denoiser, [1, 1]),
        model_sampling=SimpleNamespace(sigma_max=sigma),
        model_config=SimpleNamespace(unet_config={"num_res_blocks": [1, 1]}),
    )


def sampled(patcher, noise, embeddings, prompts=1):
    """The noise that ComfyUI's sampler receives in a run of `patcher`."""
    positive = [{"cross_attn": embeddings}] * prompts
    guider = SimpleNamespace(inner_model=patcher.model, conds={"positive": positive})
    (wrapper,) = patcher.wrappers
    received = []

    def executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
        received.append(noise)
        return "samples"

    rest = (torch.tensor([14.6, 0.0]), {"model_options": {}}, None, noise, torch.zeros_like(noise), None, True)
    assert wrapper(executor, guider, *rest) == "samples"
    return received[0]


def test_the_wrapped_model_starts_from_the_noise_of_attach(sd_pipeline, tmp_path, comfy):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = LoRANoise(generator, rank=3, alpha=5.0)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = generator.encode([PROMPT] * 2)
    with torch.no_grad():
        f = network(noise, condition)
    model = comfy_model(generator)
    before = model.diffusion_model(noise, 999, condition.tensors["prompt_embeds"])
    patcher = FakePatcher(model)
    (wrapped,) = LoRANoiseNode().wrap(patcher, str(tmp_path / "adapter"), 0.5)
    assert patcher.wrappers == []
    received = sampled(wrapped, noise, condition.tensors["prompt_embeds"][:1])
    assert (received - noise - 0.5 * f).abs().max() <= 1e-5
    assert f.abs().max() > 1e-3
    assert len(comfy) == 1
    assert torch.equal(model.diffusion_model(noise, 999, condition.tensors["prompt_embeds"]), before)  # hooks are gone
    with pytest.raises(InputError, match="combines 2"):
        sampled(wrapped, noise, condition.tensors["prompt_embeds"][:1], prompts=2)


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_layer_names_are_those_that_diffusers_converts_from(family, tmp_path):
    """Diffusers' own converter of original checkpoints takes our names back to its own."""
    unet = build_pipeline(family, tmp_path).unet
    own = {name for name, _ in unet.named_parameters()}
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    attended = {
        ldm_name(name, [1, 1], ()).split(".1.")[0] for name in layers if "up_blocks" in name and "attent" in name
    }
    modules = {f"{block}.2.conv" for block in attended}
    checkpoint = {}
    for name in layers:
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in own:
                checkpoint[f"model.diffusion_model.{ldm_name(name, [1, 1], modules)}.{kind}"] = f"{name}.{kind}"
    converted = convert_ldm_unet_checkpoint(checkpoint, unet.config)
    assert {name: value for name, value in converted.items() if value is not None} == {
        value: value for value in checkpoint.values()
    }
    assert len(checkpoint) > 60


def run_graph(workflow, classes):
    """ComfyUI's executor in small: each node once, when its inputs are there."""
    outputs = {}

    def output(name):
        if name not in outputs:
            node = workflow[name]
            cls = classes[node["class_type"]]
            links = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
            inputs = {key: output(value[0])[value[1]] for key, value in links.items()}
            inputs = {**{key: value for key, value in node["inputs"].items() if key not in links}, **inputs}
            outputs[name] = getattr(cls(), cls.FUNCTION)(**inputs) if hasattr(cls, "FUNCTION") else cls(**inputs)
        return outputs[name]

    return {name: output(name) for name in workflow}


def test_the_workflow_runs_from_end_to_end(tmp_path):
    """The example's own graph, with stand-ins for ComfyUI's nodes around a tiny pipeline."""
    generator, network = trained("StableDiffusionPipeline", tmp_path)
    workflow = json.loads((FOLDER / "sd_turbo.json").read_text())
    workflow["4"]["inputs"]["adapter"] = str(tmp_path / "adapter")
    saved = []

    def sampler(noise, guider, sampler, sigmas, latent_image):
        assert noise.seed == 0
        return (draw(generator, noise.generate_noise(latent_image)),)

    nodes = {
        **NODE_CLASS_MAPPINGS,
        "CheckpointLoaderSimple": lambda ckpt_name: ("model", "clip", "vae"),
        "CLIPTextEncode": lambda text, clip: (conditioning_of(generator),),
        "EmptyLatentImage": lambda width, height, batch_size: (latent_of(generator, batch_size),),
        "BasicGuider": lambda model, conditioning: ("guider",),
        "KSamplerSelect": lambda sampler_name: ("sampler",),
        "SDTurboScheduler": lambda model, steps, denoise: (torch.tensor([14.6, 0.0]),),
        "SamplerCustomAdvanced": sampler,
        "VAEDecode": lambda samples, vae: (samples,),
        "SaveImage": lambda images, filename_prefix: saved.append(images) or (),
    }
    run_graph(workflow, nodes)
    attach(generator.pipeline, network)
    expected = draw(generator, plain_noise(latent_of(generator, 1)["samples"], 0, None))
    assert (saved[0] - expected).abs().max() <= 1e-5


def test_declarations_are_what_comfyui_reads():
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for cls in NODE_CLASS_MAPPINGS.values():
        names = cls.INPUT_TYPES()["required"].keys()
        code = getattr(cls, cls.FUNCTION).__code__
        assert set(code.co_varnames[1 : code.co_argcount]) == set(names)
        assert isinstance(cls.RETURN_TYPES, tuple)
    workflow = json.loads((FOLDER / "sd_turbo.json").read_text())
    links = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert {name for name, _ in links} <= workflow.keys()
    required = NODE_CLASS_MAPPINGS["HyperNoiseSpectral"].INPUT_TYPES()["required"]
    assert workflow["4"]["inputs"].keys() == required.keys()
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()
    assert project["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split()


def test_what_does_not_fit_is_one_line(sd_pipeline, tmp_path):
    generator, _ = trained("StableDiffusionPipeline", tmp_path)
    given, adapter = conditioning_of(generator), str(tmp_path / "adapter")
    noise = SpectralNoiseNode().noise
    for strength in (-0.1, 1.6, float("nan")):
        with pytest.raises(InputError, match="strength must be from 0 to 1.5"):
            noise(0, given, adapter, strength)
        with pytest.raises(InputError, match="strength must be from 0 to 1.5"):
            LoRANoiseNode().wrap(FakePatcher(None), adapter, strength)
    with pytest.raises(InputError, match="combines 2"):
        noise(0, given * 2, adapter, 1.0)
    with pytest.raises(InputError, match="name an adapter"):
        noise(0, given, " ", 1.0)
    with pytest.raises(InputError, match="holds a lora noise network: take 'HyperNoise: model'"):
        noise(0, given, "scenes", 1.0)
    with pytest.raises(InputError, match="holds a spectral noise network: take 'HyperNoise: noise'"):
        lora(adapter, None)
    with pytest.raises(InputError, match="for 4 latent channels; this noise has 16"):
        noise(0, given, adapter, 1.0)[0].generate_noise({"samples": torch.zeros(1, 16, 8, 8)})
    with pytest.raises(InputError, match="text width 8; these have"):
        noise(0, [[torch.zeros(1, 4, 6), {}]], adapter, 1.0)[0].generate_noise({"samples": torch.zeros(1, 4, 8, 8)})
    sana = tmp_path / "sana"
    sana.mkdir()
    trained("SanaSprintPipeline", sana)
    with pytest.raises(InputError, match="SanaTransformer2DModel, whose prompts ComfyUI encodes differently"):
        spectral(str(sana / "adapter"))
    with pytest.raises(InputError, match="does not fit this model: it has no layer"):
        lora("scenes", comfy_model(DiffusionGenerator(sd_pipeline(), name="tiny")))
    with pytest.raises(InputError, match="is for SD or SDXL here; this model is a Linear"):
        lora("scenes", SimpleNamespace(diffusion_model=nn.Linear(1, 1)))
    own = SimpleNamespace(describe=lambda: {"name": "own"}, call_settings=dict)
    save_adapter(ResidualNoise((4,)), tmp_path / "residual", generator=own)
    with pytest.raises(InputError, match=r"holds a residual noise network$"):
        spectral(str(tmp_path / "residual"))
    assert adapter_folder("scenes").is_dir()
