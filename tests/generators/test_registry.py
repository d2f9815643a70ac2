import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from hypernoise.errors import InputError
from hypernoise.generators import hub, registry
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.generators.loading import Loading
from hypernoise.generators.memory import Memory
from hypernoise.generators.presets import PRESETS, Part
from hypernoise.generators.registry import load_as, load_generator, pick_device
from hypernoise.noise.residual import ResidualNoise
from hypernoise.plan.models import WithoutText
from hypernoise.training.config import read_recipe
from tests.families import build_pipeline, size_of

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_whole(name):
    preset = PRESETS[name]
    assert preset.family in FAMILIES
    assert (preset.repository is None) != (preset.packaged is None)
    if preset.repository:
        assert preset.revision is None or re.fullmatch("[0-9a-f]{40}", preset.revision)
        assert preset.size is not None
        recipe = read_recipe(RECIPES / f"{name}.yaml")
        assert recipe.generator == name


@pytest.mark.parametrize("name", ["sd-turbo", "sana-sprint-0.6b", "sana-sprint-1.6b", "flux-schnell"])
def test_recipes_weigh_the_kl_as_the_released_code_does(name):
    """0.5·mean(f²) is ½‖f‖² / d."""
    d = {"sd-turbo": 4 * 64 * 64, "flux-schnell": 1024 * 64}.get(name, 32 * 32 * 32)
    assert read_recipe(RECIPES / f"{name}.yaml").kl_weight == pytest.approx(1 / d, rel=5e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_users_own_pipeline_directory_works_by_path(family, tmp_path):
    pipeline = build_pipeline(family, tmp_path)
    pipeline.save_pretrained(tmp_path / "mine")
    expected = DiffusionGenerator(pipeline, size=size_of(family))
    generator = load_generator(tmp_path / "mine", device="cpu", size=size_of(family))
    assert type(generator.pipeline) is type(pipeline)
    noise = torch.randn(1, *generator.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = generator.sample(noise, generator.encode(["a ring"]), seed=0)
        wanted = expected.sample(noise, expected.encode(["a ring"]), seed=0)
    assert (drawn - wanted).abs().max() <= 1e-5


def test_a_recipes_fields_reach_the_generator(tmp_path, monkeypatch):
    file = tmp_path / "r.yaml"
    file.write_text("height: 32\nwidth: 64\nmemory: {gradient_checkpointing: true, decode_slice: 2}\nrevision: abc\n")
    seen = {}
    monkeypatch.setattr(registry, "load_generator", lambda source, **keywords: seen.update(keywords, source=source))
    load_as(read_recipe(file), device="cpu")
    assert (seen["source"], seen["size"], seen["dtype"]) == ("scenes", (32, 64), torch.float32)
    assert seen["memory"] == Memory(gradient_checkpointing=True, decode_slice=2)
    assert seen["revision"] == "abc"


def hub_says(error, status):
    def refuse(*arguments, **keywords):
        raise error("no", response=SimpleNamespace(headers={}, request=None, status_code=status))  # type: ignore[arg-type]

    return refuse


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "FLUX.1-schnell is gated: accept its licence at https://huggingface.co/black-forest-labs/"),
        (RepositoryNotFoundError, "no repository black-forest-labs/FLUX.1-schnell on the Hub, or it is private"),
        (RevisionNotFoundError, "has no revision 'abc'"),
    ],
)
def test_what_the_hub_refuses_comes_with_advice(error, message, monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", hub_says(error, 403))
    with pytest.raises(InputError, match=message):
        load_generator("flux-schnell", device="cpu", revision="abc")


def test_offline_and_not_cached_names_the_file_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        "model_index.json is not in the local cache and HF_HUB_OFFLINE is set; .* hf download stabilityai/sd-turbo"
    )
    with pytest.raises(InputError, match=message):
        load_generator("sd-turbo", device="cpu")


def test_an_unknown_pipeline_class_says_how_to_register_one(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(InputError, match="KandinskyPipeline, which is not supported.* output layer and embeddings to"):
        load_generator(tmp_path, device="cpu")


def test_a_scheduler_that_starts_elsewhere_is_warned_about(sd_pipeline):
    pipeline = sd_pipeline()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing="leading")
    with pytest.warns(UserWarning, match=r"starts a single step at t = 1, not at 999 .*'leading'; few-step models"):
        DiffusionGenerator(pipeline, name="slow")


def test_a_scheduler_that_cannot_take_a_single_step_is_warned_about(sd_pipeline):
    pipeline = sd_pipeline()
    pipeline.scheduler = PNDMScheduler()
    with pytest.warns(UserWarning, match="cannot take a single step"):
        DiffusionGenerator(pipeline, size=(16, 16))


def lora_file(folder, pipeline):
    """A LoRA on the UNet's attention as diffusers writes it, and the weights it stands for."""
    names = [n for n, m in pipeline.unet.named_modules() if n.endswith("to_q") and isinstance(m, torch.nn.Linear)]
    draw, state, change = torch.Generator().manual_seed(3), {}, {}
    for name in names:
        layer = pipeline.unet.get_submodule(name)
        a = torch.randn(2, layer.in_features, generator=draw)
        b = torch.randn(layer.out_features, 2, generator=draw)
        state |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        change[name] = layer.weight + b @ a
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
    return folder / "pytorch_lora_weights.safetensors", change


@pytest.fixture
def preset_with_a_lora(sd_pipeline, tmp_path, monkeypatch):
    """As Qwen-Image-Lightning's: its file, and the weights it stands for."""
    pipeline = sd_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    file, change = lora_file(tmp_path / "lora", pipeline)
    monkeypatch.setattr(registry, "fetch", lambda repository, name, **more: file)
    settings = dict(repository=str(tmp_path / "base"), revision=None, variant=None, lora="owner/name/file.safetensors")
    monkeypatch.setitem(PRESETS, "sd-turbo", dataclasses.replace(PRESETS["sd-turbo"], **settings))
    return file, change


def test_the_lora_of_a_preset_is_fused(preset_with_a_lora):
    _, change = preset_with_a_lora
    denoiser = load_generator("sd-turbo", device="cpu", size=(16, 16)).denoiser
    for name, weight in change.items():
        assert torch.allclose(denoiser.get_submodule(name).weight, weight, atol=1e-5)
    assert not any("lora" in name for name, _ in denoiser.named_modules())


def test_a_lora_of_other_layers_is_refused(preset_with_a_lora):
    file, _ = preset_with_a_lora
    save_file({name.replace("unet.", "other."): weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(InputError, match="^owner/name/file.safetensors changes no weight of this StableDiffusionP"):
        load_generator("sd-turbo", device="cpu", size=(16, 16))


def test_a_part_may_be_a_file_of_weights(tmp_path, monkeypatch):
    """As SDXL-Lightning's UNet; a file of another network is one line."""
    other, base = (build_pipeline("StableDiffusionXLPipeline", tmp_path, seed=seed) for seed in (1, 0))
    base.save_pretrained(tmp_path / "base")
    weights = {"unet.safetensors": other.unet.state_dict(), "vae.safetensors": other.vae.state_dict()}
    for file, state in weights.items():
        save_file(state, tmp_path / file)
    monkeypatch.setattr(registry, "fetch", lambda repository, file, **more: tmp_path / file)
    for file in weights:
        parts = {"unet": Part("UNet2DConditionModel", "owner/name", file)}
        preset = dataclasses.replace(PRESETS["sdxl-lightning"], repository=str(tmp_path / "base"), parts=parts)
        monkeypatch.setitem(PRESETS, "sdxl-lightning", dataclasses.replace(preset, variant=None))
        if file == "vae.safetensors":
            with pytest.raises(InputError, match="could not be loaded from owner/name: Error.* UNet2D"):
                load_generator("sdxl-lightning", device="cpu")
            continue
        unet = load_generator("sdxl-lightning", device="cpu", size=(16, 16), dtype=torch.bfloat16).denoiser
        expected = {name: weight.bfloat16() for name, weight in weights[file].items()}
        assert all(torch.equal(weight, expected[name]) for name, weight in unet.state_dict().items())


def test_a_known_repository_is_named_by_its_own_name():
    with pytest.raises(InputError, match="stabilityai/sd-turbo is called 'sd-turbo' here"):
        load_generator("stabilityai/sd-turbo")


def test_a_pinned_revision_is_requested_unless_another_is_named(monkeypatch):
    asked = []

    def note(repository, file, revision):
        asked.append(revision)
        raise InputError("seen")

    monkeypatch.setattr(registry, "fetch", note)
    for revision in (None, "main"):
        with pytest.raises(InputError, match="seen"):
            load_generator("sd-turbo", device="cpu", revision=revision)
    assert asked == [PRESETS["sd-turbo"].revision, "main"]


def test_a_pipeline_cached_in_part_names_the_command(tmp_path, monkeypatch):
    preset = PRESETS["sd-turbo"]
    cached = tmp_path / "models--stabilityai--sd-turbo" / "snapshots" / str(preset.revision)
    build_pipeline("StableDiffusionPipeline", tmp_path).save_pretrained(cached)
    (cached / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "fetch", lambda *arguments, **more: None)
    with pytest.raises(InputError, match=f"hf download stabilityai/sd-turbo --revision {preset.revision}"):
        load_generator("sd-turbo", device="cpu")


def test_the_hubs_error_behind_a_loaders_is_reported(monkeypatch):
    def refuse(*arguments, **keywords):
        try:
            raise LocalEntryNotFoundError("not there")
        except LocalEntryNotFoundError as error:
            raise OSError("we could not connect to load this model") from error

    monkeypatch.setattr(registry, "fetch", lambda *arguments, **more: None)
    monkeypatch.setattr("diffusers.PixArtTransformer2DModel.from_pretrained", refuse)
    with pytest.raises(InputError, match=r"Alpha-DMD\S*: transformer is not in the local cache .* run: hf download"):
        load_generator("pixart-dmd", device="cpu")


def test_a_cached_adapter_loads_when_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    commit = "0" * 40
    folder = tmp_path / "models--some--adapter"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / "snapshots" / commit / "adapter.safetensors")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # which refuses to connect
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert hub.fetch_adapter("some/adapter") == folder / "snapshots" / commit


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def unreachable(*arguments, **keywords):
        raise hub.TRANSPORT("Temporary failure in name resolution")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="some/adapter cannot be downloaded: Temporary failure"):
        hub.fetch_adapter("some/adapter")


def test_a_registered_class_that_diffusers_lacks_is_refused_by_directory(tmp_path, monkeypatch):
    pipeline = build_pipeline("SanaSprintPipeline", tmp_path)
    pipeline.save_pretrained(tmp_path / "mine")
    index = tmp_path / "mine" / "model_index.json"
    index.write_text(index.read_text().replace("SanaSprintPipeline", "MySanaPipeline"))
    monkeypatch.setitem(FAMILIES, "MySanaPipeline", FAMILIES["SanaSprintPipeline"])
    with pytest.raises(InputError, match="has no MySanaPipeline.* pass the object to load_generator"):
        load_generator(tmp_path / "mine", device="cpu")
    with pytest.raises(InputError, match="has no MySanaPipeline"):
        WithoutText(Loading(str(tmp_path / "mine")), torch.float32)
    pipeline.__class__ = type("MySanaPipeline", (type(pipeline),), {})
    assert load_generator(pipeline, size=(32, 32)).family is FAMILIES["MySanaPipeline"]


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("read", [load_generator, lambda place: WithoutText(Loading(str(place)), torch.float32)])
def test_a_pipe_among_the_files_of_a_pipeline_hangs_neither_loading_nor_planning(file, read, sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    with pytest.raises(InputError, match="is not a file|it has no model_index.json"):
        read(tmp_path)


@pytest.mark.parametrize("read", [load_generator, lambda place: WithoutText(Loading(str(place)), torch.float32)])
def test_settings_of_a_part_are_a_mapping(read, sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json must be a JSON object of settings"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": None}, "the generator is a NoneType; pass a name"),
        ({"size": 16}, r"size is height and width in pixels, such as \(512, 512\), not 16"),
        ({"size": ("16", 16)}, "a side of size must be a whole number, not '16'"),
        ({"memory": {}}, r"memory is a dict; pass a Memory"),
    ],
)
def test_arguments_of_another_type_are_named(given, message, sd_pipeline):
    with pytest.raises(InputError, match=message):
        load_generator(**{"source": sd_pipeline(), **given})


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2", None])
def test_steps_are_a_whole_number(steps, generator):
    with pytest.raises(InputError, match="num_inference_steps must be"):
        generator.sample(torch.zeros(1, 4, 8, 8), generator.encode(["a ring"]), num_inference_steps=steps)


@pytest.mark.parametrize("shape", [8, (0,), ("a",)])
def test_a_noise_shape_is_a_sequence_of_sizes(shape):
    with pytest.raises(InputError, match="noise_shape must be one sample's shape"):
        ResidualNoise(shape)


def test_each_process_takes_its_own_gpu(monkeypatch):
    one = torch.ones(1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", lambda *arguments, **keywords: one)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:3")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(InputError, match="LOCAL_RANK.*x.* in the environment is not a launcher's; unset"):
        pick_device("auto")
