import json
import os

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from hypernoise.adapters import foreign_settings, load_adapter, read_about, save_adapter
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.noise.spectral import SpectralNoise
from tests.conftest import disturb

PROMPTS = ["a red circle", "two blue rings"]


def pictures(generator, network):
    noise = torch.randn(2, *generator.noise_shape, generator=torch.Generator().manual_seed(0)).to(generator.dtype)
    condition = generator.encode(PROMPTS)
    with torch.no_grad():
        return generator.sample(noise + network(noise, condition), condition)


@pytest.fixture
def saved(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = LoRANoise(generator, rank=4, alpha=6.0)
    disturb(network)
    save_adapter(network, tmp_path / "adapter", training={"steps": 7, "rewards": {"redness": 1.0}})
    return tmp_path / "adapter", pictures(generator, network)


def test_save_load_gives_the_same_pixels(saved, sd_pipeline):
    folder, expected = saved
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = load_adapter(generator, folder)
    assert network.settings == {"rank": 4, "alpha": 6.0}
    assert torch.equal(pictures(generator, network), expected)


def test_the_files_say_what_they_are(saved):
    folder, _ = saved
    assert {file.name for file in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "hypernoise.json",
    }
    about = json.loads((folder / "hypernoise.json").read_text())
    assert about["format"] == 1
    assert about["output_layer"] == "conv_out"
    assert about["training"] == {"steps": 7, "rewards": {"redness": 1.0}}
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", 4, 6.0)
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert "base_model.model.conv_out.lora_B.weight" in names


def test_peft_reads_the_files_it_names(saved, sd_pipeline):
    from peft import LoraConfig

    folder, _ = saved
    config = LoraConfig.from_pretrained(str(folder))
    assert config.r == 4
    assert "conv_out" in config.target_modules


def test_keys_without_pefts_prefix_load_too(saved, sd_pipeline):
    folder, expected = saved
    file = folder / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): t for name, t in load_file(file).items()}, file)
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    assert torch.equal(pictures(generator, load_adapter(generator, folder)), expected)


def test_saving_over_an_adapter_replaces_it_and_touches_nothing_else(saved, sd_pipeline):
    folder, _ = saved
    (folder / "notes.txt").write_text("mine")
    save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=2), folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 4
    assert load_adapter(DiffusionGenerator(sd_pipeline(), name="tiny"), folder).settings["rank"] == 2
    with pytest.raises(InputError, match="is a file"):
        save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline()), rank=2), folder / "notes.txt")


def test_a_partly_written_adapter_does_not_load(saved, sd_pipeline, monkeypatch):
    folder, _ = saved
    network = LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=2)
    replace = os.replace

    def die_at_the_second(source, target):
        if target == folder / "adapter_config.json":
            raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die_at_the_second)
        with pytest.raises(OSError, match="disk full"):
            save_adapter(network, folder)
    with pytest.raises(InputError, match=r"no hypernoise\.json"):
        load_adapter(DiffusionGenerator(sd_pipeline(), name="tiny"), folder)


def test_loading_in_the_session_that_saved(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline())
    network = LoRANoise(generator, rank=4)
    disturb(network)
    before = pictures(generator, network)
    save_adapter(network, tmp_path / "red")
    network = load_adapter(generator, tmp_path / "red")
    assert torch.equal(pictures(generator, network), before)


def test_another_architecture_is_refused(saved, sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(width=12), name="wider")
    with pytest.raises(InputError, match="was made for 'tiny' .* does not fit 'wider'"):
        load_adapter(generator, saved[0])


def test_other_weights_of_the_same_architecture_are_refused(saved, sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(seed=1), name="other")
    with pytest.raises(InputError, match="other weights"):
        load_adapter(generator, saved[0])


def test_a_base_changed_in_an_inner_layer_is_refused(saved, sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(), name="tuned")
    with torch.no_grad():
        for name, parameter in generator.denoiser.named_parameters():
            if "to_q" in name:
                parameter.mul_(1.1)
    with pytest.raises(InputError, match="other weights"):
        load_adapter(generator, saved[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_base_is_recognised_at_other_precisions(saved, sd_pipeline, dtype):
    assert load_adapter(DiffusionGenerator(sd_pipeline(dtype=dtype), name="tiny"), saved[0]).kind == "lora"


def test_an_adapter_that_matches_no_weight_is_refused_and_leaves_no_lora(saved, sd_pipeline):
    folder, _ = saved
    save_file({"elsewhere.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    with pytest.raises(InputError, match="does not fit this generator .*made for another architecture"):
        load_adapter(generator, folder)
    LoRANoise(generator, rank=2)  # the refused one left the denoiser free


def test_a_missing_or_misshapen_weight_is_named(saved, sd_pipeline):
    folder, _ = saved
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = "base_model.model.conv_out.lora_A.weight"
    save_file({k: v for k, v in state.items() if k != name}, file)
    with pytest.raises(InputError, match="1 weights differ, such as conv_out.lora_A.weight: missing in the adapter"):
        load_adapter(DiffusionGenerator(sd_pipeline(), name="tiny"), folder)
    save_file({**state, name: torch.zeros(1, 2)}, file)
    with pytest.raises(InputError, match=r"conv_out.lora_A.weight: \[1, 2\] in the adapter, \["):
        load_adapter(DiffusionGenerator(sd_pipeline(), name="tiny"), folder)


def test_broken_files_are_refused_in_one_line(saved, sd_pipeline):
    folder, _ = saved
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], b"\x80\x04pickle", b""):
        weights.write_bytes(broken)
        with pytest.raises(InputError, match="not a complete file of tensors"):
            load_adapter(generator, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickled adapter_model.bin is not read"):
        load_adapter(generator, folder)
    about = folder / "hypernoise.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match="has format 99"):
        load_adapter(generator, folder)
    about.write_text(json.dumps({"format": 1, "kind": "lora", "settings": {"rnk": 4}, "base": None}))
    (folder / "adapter_model.bin").rename(weights)
    weights.write_bytes(whole)
    with pytest.raises(InputError, match="settings that a 'lora' network does not take"):
        load_adapter(generator, folder)
    about.write_text(json.dumps({"format": 1, "kind": "magic", "settings": {}, "base": None}))
    with pytest.raises(InputError, match="holds a 'magic' network, not lora or spectral for 'tiny'"):
        load_adapter(generator, folder)
    about.write_text(json.dumps({"format": 1, "kind": "lora", "settings": {}, "base": "x"}))
    with pytest.raises(InputError, match="base null or a mapping"):
        load_adapter(generator, folder)
    network = LoRANoise(generator, rank=2)
    for wrong, message in (
        ({"folder": 3}, "the output directory is a int; pass its path"),
        ({"training": {"x": torch.ones(1)}}, "training must hold JSON values: TypeError"),
        ({"training": {"x": "\ud800"}}, "training has a lone surrogate"),
    ):
        with pytest.raises(InputError, match=message):
            save_adapter(network, **{"folder": folder / "other", **wrong})
    for wrong in (3, None, "a" * 5000):
        with pytest.raises(InputError, match="the adapter is a|no adapter at"):
            load_adapter(generator, wrong)
    about.write_text('{"format": 1, "format": 1}')
    with pytest.raises(InputError, match=r"hypernoise\.json has a duplicate name 'format'"):
        load_adapter(generator, folder)
    about.write_text("{")
    with pytest.raises(InputError, match=r"hypernoise\.json is not JSON"):
        load_adapter(generator, folder)
    about.unlink()
    with pytest.raises(InputError, match=r"no hypernoise\.json"):
        load_adapter(generator, folder)
    with pytest.raises(InputError, match="no adapter at"):
        load_adapter(generator, folder / "nowhere")


@pytest.mark.parametrize("network", [ResidualNoise((4,), width=8, depth=1), SpectralNoise(4, 1, k=1, width=8)])
def test_a_stand_alone_network_round_trips_on_its_module(network, tmp_path):
    generator = ModuleGenerator(torch.nn.Linear(4, 4), noise_shape=(4,))
    disturb(network)
    save_adapter(network, tmp_path / "f", generator=generator)
    again = load_adapter(generator, tmp_path / "f")
    noise = torch.randn(3, 4)
    condition = generator.encode(["", "", ""])
    assert torch.equal(again(noise, condition), network(noise, condition))
    assert network(noise, condition).abs().max() > 0


class Buffer(torch.nn.Module):
    """A module whose only weight is a buffer of one dimension."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("weight", torch.full((4,), value))

    def forward(self, noise):
        return noise * self.weight


OTHERS = {
    "shapes": (lambda: torch.nn.Linear(4, 4), lambda: torch.nn.Linear(4, 5), "differ in architecture"),
    "weights": (lambda: torch.nn.Linear(4, 4), lambda: torch.nn.Linear(4, 4), "made for other weights"),
    "buffers": (lambda: Buffer(1.0), lambda: Buffer(2.0), "made for other weights"),
    "class": (torch.nn.Sigmoid, torch.nn.LogSigmoid, "differ in architecture"),
}


@pytest.mark.parametrize(("own", "other", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_a_residual_network_is_refused_on_another_module(own, other, message, tmp_path):
    torch.manual_seed(0)
    generator = ModuleGenerator(own(), noise_shape=(4,))
    save_adapter(ResidualNoise((4,)), tmp_path / "f", generator=generator)
    load_adapter(generator, tmp_path / "f")
    with pytest.raises(InputError, match=message):
        load_adapter(ModuleGenerator(other(), noise_shape=(4,)), tmp_path / "f")


def test_a_residual_network_is_not_saved_without_its_generator(tmp_path):
    with pytest.raises(InputError, match="name the generator it was trained on"):
        save_adapter(ResidualNoise((4,)), tmp_path / "f")


def test_a_residual_network_fits_only_its_own_kind_of_generator(tmp_path, sd_pipeline):
    save_adapter(
        ResidualNoise((4,), width=8), tmp_path / "f", generator=ModuleGenerator(torch.nn.Identity(), noise_shape=(4,))
    )
    with pytest.raises(InputError, match=r"takes noise of \(4,\)"):
        load_adapter(ModuleGenerator(torch.nn.Identity(), noise_shape=(8,)), tmp_path / "f")
    with pytest.raises(InputError, match="does not fit 'pipeline'"):
        load_adapter(DiffusionGenerator(sd_pipeline()), tmp_path / "f")


# --- damaged, changed and foreign files -------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A module's generator, and the folder of an adapter on it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 2, 2)))
    generator = ModuleGenerator(module, noise_shape=(4,))
    network = ResidualNoise((4,), width=3, depth=1)
    torch.nn.init.normal_(network.network[-1].weight)
    save_adapter(network, tmp_path / "small", generator=generator, training={"steps": 3})
    return generator, tmp_path / "small"


def say(folder, **changes):
    """Changes values in hypernoise.json; names with __ reach into its mappings; ... deletes a name."""
    about = json.loads((folder / "hypernoise.json").read_text())
    for path, value in changes.items():
        *outer, name = path.split("__")
        place = about
        for part in outer:
            place = place[part]
        place[name] = value
        if value is ...:
            del place[name]
    (folder / "hypernoise.json").write_text(json.dumps(about))


def test_the_same_weights_are_the_same_bytes(small, tmp_path):
    generator, folder = small
    network = load_adapter(generator, folder)
    for number in range(8):  # of two entries of metadata half of the files would differ
        save_adapter(network, tmp_path / f"{number}", generator=generator, training={"steps": 3})
        for file in folder.iterdir():
            assert (tmp_path / f"{number}" / file.name).read_bytes() == file.read_bytes()


def test_the_next_save_removes_what_a_killed_one_left(small):
    generator, folder = small
    (folder / ".adapter-abc").mkdir()
    (folder / ".adapter-abc" / "adapter_model.safetensors").write_text("half")
    save_adapter(load_adapter(generator, folder), folder, generator=generator)
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "hypernoise.json"
    ]  # fmt: skip


def test_weights_or_settings_that_were_changed_are_refused_unless_the_digest_is_taken_out(small):
    generator, folder = small
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith("2.weight") or name.endswith("1.weight"))
    save_file({**state, name: state[name] + 1e-6}, file)
    with pytest.raises(InputError, match="was changed or damaged .*remove `digest` from hypernoise.json"):
        load_adapter(generator, folder)
    save_file(dict(reversed(state.items())), file, metadata={"other": "order"})
    load_adapter(generator, folder)
    say(folder, training__steps=4)
    with pytest.raises(InputError, match="was changed or damaged"):
        load_adapter(generator, folder)
    say(folder, digest=...)
    load_adapter(generator, folder)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("alpha", 7.0, "was changed or damaged"),
        ("alpha", 10**400, "the setting alpha cannot be inf"),
        ("rank", 2**63, "the setting rank cannot be 9223"),
        ("rank", 2000, "the settings have rank 2000, the weights 4"),
        ("rank", [4], "rank must be a whole number"),
        ("rank", "4", "rank must be a whole number"),
    ],
)
def test_changed_settings_of_a_lora_are_refused_and_leave_no_lora(saved, sd_pipeline, setting, value, message):
    folder, _ = saved
    say(folder, **{f"settings__{setting}": value})
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    with pytest.raises(InputError, match=message):
        load_adapter(generator, folder)
    assert not any(".lora_" in name for name, _ in generator.denoiser.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * torch.nan, "holds NaN or inf"),
        (lambda w: w / 0, "holds NaN or inf"),
        (lambda w: w > 0, "is torch.bool, not floating-point"),
        (lambda w: w.to(torch.int8), "is torch.int8"),
        (lambda w: w.to(torch.complex64), "is torch.complex64"),
        (lambda w: w.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
    ],
    ids=["NaN", "inf", "bool", "int8", "complex", "fp8"],
)
def test_weights_that_no_training_gives_are_refused(small, change, message):
    generator, folder = small
    file = folder / "adapter_model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
    say(folder, digest=...)  # as of an earlier version
    with pytest.raises(InputError, match=message):
        load_adapter(generator, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"base__name": ...}, {"base": [1]}, {"base__name": 5}, {"base__probe": 3}, {"base__probe": ["a"]},
        {"base__probe": [10**400]}, {"base__probe": [[1]]}, {"kind": [1]}, {"kind": None}, {"settings": [1]},
        {"settings__depth": 2**31}, {"settings__depth": 4096}, {"settings__width": 2**63}, {"settings__width": [3]},
        {"settings__width": -1}, {"settings__width": 10**400}, {"settings__width": "3"}, {"settings__noise_shape": 4},
        {"settings__noise_shape": [4096] * 20}, {"settings__noise_shape": {"a": 1}}, {"settings__condition_size": 4000},
        {"settings__other": 1}, {"format": [1]}, {"format": None}, {"settings__width": "w" * 5000},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_any_content_of_hypernoise_json_gives_one_short_line(small, change):
    generator, folder = small
    say(folder, digest=..., **change)
    with pytest.raises(InputError) as refused:
        load_adapter(generator, folder)
    assert len(str(refused.value)) <= 1010
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, '{"a": ' * 100_000, "", "null", "3", '"a"', "\0"])
def test_json_of_any_kind_gets_one_line(small, text):
    generator, folder = small
    (folder / "hypernoise.json").write_text(text)
    with pytest.raises(InputError, match="hypernoise.json"):
        load_adapter(generator, folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"}, {"init_lora_weights": "corda"}, {"lora_bias": True}, {"bias": "all"},
        {"modules_to_save": ["conv_in"]}, {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"conv": 2}},
        {"alpha_pattern": {"conv": 2}}, {"fan_in_fan_out": True}, {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [1]}, {"target_parameters": ["weight"]}, {"use_qalora": True},
        {"peft_type": "LOHA"}, {"something_of_a_later_peft": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_peft_that_a_noise_network_cannot_have_are_refused(tmp_path, fields):
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "bias": "none", "init_lora_weights": "gaussian"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**peft, **fields, "lora_dropout": 0.1}))
    (name,) = fields
    with pytest.raises(InputError, match=f"has {name} = .*, which a noise network cannot have"):
        foreign_settings(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**LoraConfig().to_dict(), **peft}))
    assert foreign_settings(tmp_path) == {"rank": 4, "alpha": 4.0}


def test_a_folder_that_diffusers_saved_is_named(sd_pipeline, tmp_path):
    pipeline = sd_pipeline()
    pipeline.unet.add_adapter(LoraConfig(target_modules=["conv_in"]), adapter_name="f")
    pipeline.unet.save_lora_adapter(tmp_path, adapter_name="f")
    with pytest.raises(InputError, match="a LoRA's pytorch_lora_weights.safetensors needs PEFT's adapter_config.json"):
        read_about(tmp_path)
