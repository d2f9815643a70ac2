"""Adapters in the format of the paper's authors (github.com/ExplainableML/HyperNoise), on a tiny SANA-Sprint.

The adapter is made by PEFT's own calls, as their training code makes it, and drawn as their inference draws.
"""

import json
from contextlib import contextmanager
from types import MethodType, SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

import hypernoise.generators.hub as hub
from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.pipeline import attach
from tests.conftest import disturb
from tests.families import build_pipeline

PROMPT, NAME, ALPHA, RANK = "two blue rings", "hypernoise_adapter", 6, 3


def sana(tmp_path):
    return build_pipeline("SanaSprintPipeline", tmp_path)


@contextmanager
def _ungrouped(denoiser):
    """Inside the block every conv has one group, so that PEFT puts a full B·A on it, whatever the rank."""
    grouped = [(m, m.groups) for m in denoiser.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    for conv, _ in grouped:
        conv.groups = 1
    try:
        yield
    finally:
        for conv, groups in grouped:
            conv.groups = groups


def with_peft(transformer):
    """The authors' LoRA: every Linear and Conv2d, by `add_adapter`, under a PEFT that knew no groups."""
    layers = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=layers)
    with _ungrouped(transformer):
        transformer.add_adapter(config, adapter_name=NAME)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return config


def without_base(self, x):
    return (
        self.lora_B[NAME](self.lora_A[NAME](x)) * self.scaling[NAME]
        if not self.disable_adapters
        else self.base_layer(x)
    )


@torch.no_grad()
def drawn_as_released(pipe, noise, steps, switches=None):
    """What sana_inference.py computes, step by step. `switches` turn the adapter on and off."""
    on, off = switches or (pipe.transformer.enable_adapters, pipe.transformer.disable_adapters)
    pipe.transformer.proj_out.forward = MethodType(without_base, pipe.transformer.proj_out)
    embeds, mask = pipe.encode_prompt(prompt=[PROMPT], device="cpu")
    guidance = torch.full([1], 4.5) * pipe.transformer.config.guidance_embeds_scale
    on()
    residual = pipe.transformer(
        hidden_states=noise,
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        guidance=guidance,
        timestep=torch.tensor([1.0]),
    ).sample
    off()
    call = dict(height=32, width=32, use_resolution_binning=False, intermediate_timesteps=None, output_type="pt")
    embedded = dict(prompt_embeds=embeds, prompt_attention_mask=mask)
    pictures = pipe(
        latents=residual + noise,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(2),
        return_dict=False,
        **embedded,
        **call,
    )[0]
    return pictures, residual


@pytest.fixture
def released(tmp_path):
    """A released adapter's directory, by prefix of its names, and what the authors' code draws with it."""
    pipe = sana(tmp_path)
    config = with_peft(pipe.transformer)
    state = get_peft_model_state_dict(pipe.transformer, adapter_name=NAME)
    assert not any(name.startswith("base_model") for name in state)

    def write(prefix=""):
        folder = tmp_path / f"released{prefix}"
        config.save_pretrained(str(folder))
        named = {prefix + name: tensor.contiguous() for name, tensor in state.items()}
        save_file(named, folder / "adapter_model.safetensors")
        return folder

    return SimpleNamespace(write=write, pipe=pipe, state=state)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_released_adapter_draws_the_released_pictures(released, prefix, tmp_path):
    folder = released.write(prefix)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipe = attach(sana(tmp_path), folder)
    for steps in (1, 4):
        expected, residual = drawn_as_released(released.pipe, noise, steps)
        drawn = pipe(
            PROMPT,
            latents=noise,
            num_inference_steps=steps,
            intermediate_timesteps=None,
            complex_human_instruction=None,
            generator=torch.Generator().manual_seed(2),
            height=32,
            width=32,
            use_resolution_binning=False,
            output_type="pt",
            return_dict=False,
        )[0]
        assert (drawn - expected).abs().max() <= 1e-5
    assert residual.abs().max() > 1e-2


def test_ours_is_what_the_released_code_reads(tmp_path):
    """PEFT's own loader on our directory, with the authors' output layer, gives our residual."""
    generator = DiffusionGenerator(sana(tmp_path), size=(32, 32))
    network = LoRANoise(generator, rank=RANK, alpha=float(ALPHA))
    disturb(network, scale=0.2)
    save_adapter(network, tmp_path / "ours")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(noise, generator.encode([PROMPT]))
    pipe = sana(tmp_path)
    with _ungrouped(pipe.transformer):
        adapted = PeftModel.from_pretrained(pipe.transformer, str(tmp_path / "ours"), adapter_name=NAME)
    assert "lora_A" in dict(adapted.base_model.model.proj_out.named_children())
    switches = adapted.enable_adapter_layers, adapted.disable_adapter_layers
    _, residual = drawn_as_released(pipe, noise, 1, switches)
    assert (residual - expected).abs().max() <= 1e-4 * float(expected.abs().max())


def test_a_stock_lora_loader_does_not_take_ours_for_one(tmp_path):
    """diffusers finds no LoRA under our names, and says so, rather than adding it to the generator."""
    generator = DiffusionGenerator(sana(tmp_path), size=(32, 32))
    save_adapter(LoRANoise(generator, rank=RANK), tmp_path / "ours")
    pipe = sana(tmp_path)
    pipe.load_lora_weights(str(tmp_path / "ours"), weight_name="adapter_model.safetensors")
    assert not any("lora" in name for name, _ in pipe.transformer.named_modules())
    header = (tmp_path / "ours" / "adapter_model.safetensors").read_bytes()[:400]
    assert b"not an ordinary LoRA" in header


def test_fewer_layers_load_if_the_output_layer_is_among_them(released, tmp_path):
    folder = released.write()
    some = {n: t for n, t in released.state.items() if n.startswith(("proj_out", "transformer_blocks.0.attn1"))}
    save_file(some, folder / "adapter_model.safetensors")
    generator = DiffusionGenerator(sana(tmp_path), size=(32, 32))
    network = load_adapter(generator, folder)
    assert len(network.layers) == len(some) // 2
    save_adapter(network, tmp_path / "again")
    assert set(load_adapter(generator, tmp_path / "again").layers) == set(network.layers)
    del some["proj_out.lora_A.weight"], some["proj_out.lora_B.weight"]
    save_file(some, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="layers leave out 'proj_out'"):
        load_adapter(generator, folder)


def test_mismatches_are_refused(released, tmp_path):
    folder = released.write()
    other = DiffusionGenerator(build_pipeline("FluxPipeline", tmp_path), size=(16, 16), name="flux")
    with pytest.raises(InputError, match="no Linear or Conv layer"):
        load_adapter(other, folder)
    generator = DiffusionGenerator(sana(tmp_path), size=(32, 32), name="sana")
    save_file({"elsewhere.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="matches no weight of 'sana': made for another architecture"):
        load_adapter(generator, folder)
    name = "proj_out.lora_A.weight"
    save_file({**released.state, name: torch.zeros(RANK, 99)}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="proj_out.lora_A.weight: .* in the adapter"):
        load_adapter(generator, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in [({"use_dora": True}, "use_dora = True"), ({"peft_type": "IA3"}, "peft_type = 'IA3'")]:
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            load_adapter(generator, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is not a LoRA's configuration"):
        load_adapter(generator, folder)


class FakeHub:
    """A repository in memory, behind the call that fetches an adapter."""

    def __init__(self, folder, monkeypatch, extra=()):
        self.folder, self.asked = folder, []
        self.names = [*(file.name for file in folder.iterdir()), *extra]
        monkeypatch.setattr(hub, "snapshot_download", self.download)

    def download(self, repository, *, revision, **patterns):
        self.asked.append((repository, revision, sorted(filter_repo_objects(self.names, **patterns))))
        return str(self.folder)


def test_from_the_hub_by_id_and_revision(released, tmp_path, monkeypatch):
    fake = FakeHub(released.write(), monkeypatch, extra=["training.py", "optimizer.pt", "sub/more.safetensors"])
    network = load_adapter(DiffusionGenerator(sana(tmp_path), size=(32, 32)), "lucaeyring/HyperNoise@abc")
    assert network.settings == {"rank": RANK, "alpha": float(ALPHA)}
    assert fake.asked == [("lucaeyring/HyperNoise", "abc", ["adapter_config.json", "adapter_model.safetensors"])]


def test_from_the_hub_never_a_pickle(released, tmp_path, monkeypatch):
    folder = released.write()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    fake = FakeHub(folder, monkeypatch)
    with pytest.raises(InputError, match="holds no safetensors adapter; a pickled one is not read"):
        load_adapter(DiffusionGenerator(sana(tmp_path), size=(32, 32)), "someone/adapter")
    assert fake.asked == [("someone/adapter", None, ["adapter_config.json"])]


def test_offline_and_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="no adapter at a/b: it is not a directory, and as a Hub repository: a/b: an"):
        load_adapter(DiffusionGenerator(sana(tmp_path), size=(32, 32)), "a/b")
