"""The plan's memory against what torch's CPU allocator really allocated."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.generators.loading import Loading, Memory
from hypernoise.generators.presets import PRESETS
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import spectral_noise
from hypernoise.plan import smoke
from hypernoise.plan.models import META, WithoutText, build, configurations, count, meta_network, planned_rewards
from hypernoise.plan.plan import _traced, fitted, plan
from hypernoise.plan.trace import _SEEN, Live, tracing
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, ClipReward
from hypernoise.training.config import LoRA, Recipe, TrainConfig, read_recipe
from hypernoise.training.loop import train
from tests.families import build_pipeline


def allocated_peak(run):
    """Peak bytes allocated by torch's CPU allocator during `run`, according to its profiler."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def redder(pixels, prompts):
    return pixels[:, 0].mean((1, 2))


@pytest.mark.parametrize(
    "memory", [Memory(), Memory(gradient_checkpointing=True, decode_slice=2)], ids=["plain", "saving"]
)
def test_training_peak_is_within_15_percent_of_the_measured_one(memory):
    """Beyond the frozen weights, which would hide an error; the second step, when the optimiser's state is there."""
    batch, rank = 8, 16
    generator = load_generator("scenes", device="cpu", memory=memory)
    network = LoRANoise(generator, rank=rank)
    config = TrainConfig(max_train_steps=2, train_batch_size=batch, lr_warmup_steps=0)
    prompts = ["a ring", "two squares"]
    train(generator, network, redder, prompts, config, progress=False)  # the tokenizer's and the kernels' first time
    measured = allocated_peak(lambda: train(generator, network, redder, prompts, config, progress=False))
    recipe = Recipe(train_batch_size=batch, lora=LoRA(rank), memory=memory, mixed_precision="no")
    found = plan(recipe)
    assert found.parts["trained: weights"] == sum(p.nbytes for p in network.trainable_parameters())
    expected = sum(found.parts[part] for part in ("activations", "trained: gradients", "trained: optimiser"))
    print(f"planned {expected / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert expected == pytest.approx(measured, rel=0.15)


TINY_CLIP = {
    "projection_dim": 32,
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "vision_config": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 14,
    },
}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_with_a_reward_is_within_15_percent_too(checkpointing, monkeypatch):
    settings = RewardSettings(checkpointing=checkpointing)
    monkeypatch.setitem(CLIPS, "clip", dataclasses.replace(CLIPS["clip"], config=TINY_CLIP))
    generator = load_generator("scenes", device="cpu")
    network = LoRANoise(generator, rank=4)
    clip = ClipReward("clip", CLIPModel(CLIPConfig(**TINY_CLIP)), None, settings, scale=1.0)
    config = TrainConfig(max_train_steps=2, train_batch_size=8, lr_warmup_steps=0)

    def similarity(pixels, prompts):
        return clip.pictures(clip.resize(pixels)).sum(-1)

    def run():
        train(generator, network, similarity, ["a ring"], config, progress=False)

    run()
    measured = allocated_peak(run)
    recipe = Recipe(train_batch_size=8, lora=LoRA(4), mixed_precision="no")
    _traced.cache_clear()  # of CLIPs as they are
    rewards = {"rewards": {"clip": 1.0}, "reward_checkpointing": checkpointing}
    with_clip = plan(dataclasses.replace(recipe, **rewards))
    _traced.cache_clear()
    found, without = with_clip, plan(recipe)
    assert with_clip.frozen["autoencoder"] == sum(p.numel() for p in generator.pipeline.vae.parameters())
    expected = sum(found.parts[part] for part in ("activations", "trained: gradients", "trained: optimiser"))
    print(f"planned {expected / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert expected == pytest.approx(measured, rel=0.15)
    assert found.parts["activations"] - without.parts["activations"] > (0.08 if checkpointing else 0.2) * measured
    assert found.parts["rewards"] == 4 * (with_clip.rewards["clip"] or 0)


def test_image_reward_and_the_clips_are_planned_by_their_own_networks():
    found = planned_rewards(["human-preference", "redness"], ["aesthetic-v2"], RewardSettings())
    blip = 303_301_632 + 141_977_088  # ViT-L and its text encoder, as counted on the published weights
    parameters = {name: network and count(network) for name, network in found.networks.items()}
    assert parameters["imagereward"] == pytest.approx(blip, rel=0.003)
    assert parameters["clip"] == parameters["pickscore"] == 986_109_441  # as the model cards count it
    assert parameters["aesthetic-v2"] is None
    assert "redness" not in parameters
    held = sum(weight.nbytes for network in found.parts for weight in network.parameters())
    assert held == 4 * sum(number for number in parameters.values() if number)
    assert planned_rewards(["my.module:reward"], [], RewardSettings()).networks == {"my.module:reward": None}
    with pytest.raises(InputError, match="unknown reward 'rednes'; did you mean 'redness'"):
        planned_rewards(["rednes"], [], RewardSettings())
    with Live() as live:
        pixels = torch.empty(2, 3, 512, 512, device="meta", requires_grad=True)
        assert found.scores
        scores = found.total(pixels)
        assert scores.shape == (2,)
        (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    assert gradient.shape == pixels.shape
    h14 = 2 * 2 * 257 * 630_766_080  # a multiply-add per weight and patch of ViT-H/14's 32 blocks, two pictures
    assert live.flops > 3 * 3 * h14 * 0.66  # three of them, forward and back (for the pictures alone)


def test_frozen_parameters_are_the_real_ones():
    generator = load_generator("scenes", device="cpu")
    planned = WithoutText(Loading("scenes"), torch.float32)
    real = {n: p.shape for n, p in generator.denoiser.named_parameters()}
    assert {n: p.shape for n, p in planned.denoiser.named_parameters()} == real
    assert planned.text_parameters == sum(p.numel() for p in generator.pipeline.text_encoder.parameters())
    assert planned.noise_shape == generator.noise_shape
    condition, wanted = planned.encode(["a", "b"]).tensors, generator.encode(["a ring", "a cross"]).tensors
    assert {n: t.shape for n, t in condition.items()} == {n: t.shape for n, t in wanted.items()}


def test_a_saved_pipeline_is_planned_at_the_length_its_prompts_are_padded_to(tmp_path):
    build_pipeline("FluxPipeline", tmp_path).save_pretrained(tmp_path / "flux")
    for tokens, length in ((0, 512), (64, 64)):
        real = load_generator(tmp_path / "flux", device="cpu", size=(16, 16), max_sequence_length=tokens)
        planned = WithoutText(Loading(str(tmp_path / "flux"), height=16, max_sequence_length=tokens), torch.float32)
        shapes = [{n: t.shape for n, t in c.tensors.items()} for c in (real.encode(["a"]), planned.encode(["a"]))]
        assert shapes[0] == shapes[1]
        assert shapes[0]["prompt_embeds"][1] == real.call_settings()["max_sequence_length"] == length
    with pytest.raises(InputError, match="scenes is a StableDiffusionPipeline, which takes no max_sequence_length"):
        plan(Recipe(max_sequence_length=64))


def test_a_saved_pipeline_with_other_lists_in_its_index_is_planned(tmp_path):
    build_pipeline("Krea2Pipeline", tmp_path).save_pretrained(tmp_path / "krea")
    assert "text_encoder_select_layers" in json.loads((tmp_path / "krea" / "model_index.json").read_text())
    assert len(WithoutText(Loading(str(tmp_path / "krea")), torch.float32).configuration["text_encoders"]) == 1


def test_options_save_what_they_are_for():
    def kept(**memory):
        recipe = Recipe(train_batch_size=4, lora=LoRA(4), memory=Memory(**memory), mixed_precision="no")
        asked = Loading(memory=dataclasses.replace(recipe.memory, decode_slice=0))
        *_, parts = _traced(asked, torch.float32, recipe.lora, 1, (("redness",), (), RewardSettings()))
        return {name: part.kept for name, part in parts.items()}, plan(recipe).peak

    (plain, most), (saving, less) = kept(), kept(gradient_checkpointing=True, decode_slice=1)
    assert saving["noise network"] < 0.5 * plain["noise network"]
    assert saving["decoder"] < 0.1 * plain["decoder"]
    assert less < most


def test_live_follows_storages_until_they_are_dropped():
    with Live() as live:
        a = torch.empty(1000, device="meta")
        b = a + 1
        c = b.view(10, 100)
        assert live.bytes == 8000
        del a
        assert live.bytes == 4000
        del b
        assert live.bytes == 4000
        del c
    assert (live.bytes, live.peak) == (0, 8000)


def test_a_remembered_operation_answers_and_takes_as_it_did_at_first():
    def run():
        x = torch.empty(8, 16, device="meta")
        with Live() as live:
            values, places = torch.cat([x, x.t().reshape(8, 16)]).max(1)
            layer = nn.functional.layer_norm(values.add_(1)[None], (16,))
            kinds = [(t.shape, t.stride(), t.dtype) for t in (values, places, layer @ layer.t(), x.t() + 1)]
            return kinds, live.bytes, live.peak, live.flops

    _SEEN.clear()
    first = run()
    assert _SEEN
    assert run() == first


def test_attention_of_three_dimensions_is_traced():
    query = torch.empty(4, 32, 16, device="meta", requires_grad=True)
    flops = []
    for inputs in (query, query[None]):
        with tracing() as live:
            output = nn.functional.scaled_dot_product_attention(inputs, inputs, inputs)
            assert output.shape == inputs.shape
            output.sum().backward()
        flops.append(live.flops)
    assert flops[0] == flops[1] > 0


def test_fewer_layers_are_fewer_parameters_to_train():
    planned = WithoutText(Loading("scenes"), torch.float32)
    some = meta_network(planned, LoRA(4, layers=("conv_out",)))
    assert count(some) == 4 * (32 * 9 + 4)


def test_flops_count_a_multiply_add_as_two():
    with torch.device("meta"):
        layer = nn.Linear(30, 50, bias=False)
    with Live() as live:
        layer(torch.empty(7, 30, device="meta"))
    assert live.flops == 2 * 7 * 30 * 50


def test_the_command_prints_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("generator: scenes\ntrain_batch_size: 4\nlora: {rank: 2}\nrewards: {redness: 1}\n")
    assert main(["train", "r.yaml", "--dry-run", "--output-dir", "out"]) == 0
    page = capsys.readouterr().out
    assert "trained: 0.1 M; frozen: denoiser 1.8 M, autoencoder 0.3 M" in page
    assert "mixed precision: bf16 (as on an Ampere or newer GPU)" in page
    assert (tmp_path / "out" / "plan" / "summary.json").is_file()
    assert "licence" not in page
    assert main(["train", "r.yaml", "--dry-run", "--generator", "sd-trubo"]) == 2


def test_a_gated_generator_is_named_before_the_download(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "generator: flux-schnell\ntrain_batch_size: 1\nlora: {rank: 2}\nrewards: {redness: 1}\n"
    )
    assert main(["train", str(tmp_path / "r.yaml"), "--dry-run", "--output-dir", str(tmp_path / "out")]) == 0
    asked = "licence      accept it first at https://huggingface.co/black-forest-labs/FLUX.1-schnell"
    assert asked in capsys.readouterr().out


def test_every_optimizer_can_be_planned():
    names = typing.get_args(typing.get_type_hints(Recipe)["optimizer"])
    plans: dict[str, Any] = {name: plan(Recipe(optimizer=name)).parts for name in names}
    state = {name: parts["trained: optimiser"] for name, parts in plans.items()}
    trained = plans["sgd"]["trained: gradients"]
    assert state == {"adamw": 2 * trained, "sgd": trained}


PUBLISHED = {  # denoisers, in millions, as their papers and model cards say
    "sd-turbo": 866,  # Stable Diffusion 2.1's UNet
    "sdxl-turbo": 2_600,  # SDXL, table 1
    "sdxl-lightning": 2_600,
    "sana-sprint-0.6b": 600,
    "sana-sprint-1.6b": 1_600,
    "flux-schnell": 12_000,
    "sd3.5-large-turbo": 8_100,
    "pixart-dmd": 610,  # PixArt-α, section 3
    "z-image-turbo": 6_000,
    "flux2-klein-4b": 4_000,
    "flux2-klein-9b": 9_000,
    "krea-2-turbo": 12_820,  # of no card: as the class's defaults count in diffusers 0.42.1
    "qwen-image-lightning": 20_000,
}


def test_every_preset_from_the_hub_can_be_planned():
    assert set(configurations()) == set(PUBLISHED) == {name for name, preset in PRESETS.items() if preset.repository}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_denoisers_have_their_published_size(name):
    denoiser = build(configurations()[name]["denoiser"], torch.bfloat16)
    assert sum(p.numel() for p in denoiser.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], rel=0.04)


def test_lora_on_sana_sprint_is_mostly_on_depthwise_convs():
    """As counted on the released adapter: 206 of 315 million at rank 128."""
    planned = WithoutText(Loading("sana-sprint-0.6b"), torch.bfloat16)
    whole, dense = (count(meta_network(planned, LoRA(128, 256.0, few))) for few in ((), ("without-depthwise",)))
    assert (whole - dense) / 1e6 == pytest.approx(206, abs=0.5)
    assert whole / 1e6 == pytest.approx(315, abs=0.5)


def test_a_step_of_a_published_model_runs_without_data():
    found = plan(Recipe(generator="pixart-dmd", train_batch_size=1, lora=LoRA(4)))
    denoiser = build(configurations()["pixart-dmd"]["denoiser"], torch.bfloat16)
    assert found.parts["denoiser"] == 2 * sum(p.numel() for p in denoiser.parameters())
    # a multiply-add per weight and token is 2 FLOP: 256·2 patches of 32 x 32 tokens
    assert found.flops["generator"] == pytest.approx(2 * 611e6 * 1024, rel=0.25)
    assert found.flops["backward"] > 1.5 * found.flops["generator"]


def test_a_spectral_network_trains_no_denoiser_and_is_counted_whole():
    recipe = Recipe(train_batch_size=2, mixed_precision="no")
    lora, spectral = plan(recipe), plan(dataclasses.replace(recipe, noise_network="spectral"))
    network = spectral_noise(load_generator("scenes", device="cpu"), recipe.spectral)
    assert spectral.trained == sum(p.numel() for p in network.parameters())
    assert spectral.flops["noise network"] < 0.03 * lora.flops["noise network"]
    assert spectral.flops["generator"] == lora.flops["generator"]
    assert spectral.peak < lora.peak


def test_what_a_batch_takes_grows_with_it_and_slices_hold_the_decoder_down():
    def planned(batch, **memory):
        memory = Memory(gradient_checkpointing=True, **memory)
        return plan(Recipe(train_batch_size=batch, memory=memory, mixed_precision="no")).parts["activations"]

    assert planned(8) == pytest.approx(8 * planned(1), rel=1e-3)
    assert planned(8, decode_slice=1) < 0.6 * planned(8)
    assert planned(8, decode_slice=8) == planned(8)


def test_fit_takes_what_costs_the_least_time_first():
    asked = Recipe(train_batch_size=8, mixed_precision="no")
    whole, halves = (plan(dataclasses.replace(asked, gradient_accumulation_steps=n)).peak for n in (1, 2))

    def fit(bytes_allowed):
        memory = Memory(fit=f"{bytes_allowed * 16 / 15 / 1e9:.6f}GB")
        return fitted(dataclasses.replace(asked, memory=memory), META)

    untouched, line = fit(whole * 1.001)
    assert untouched.gradient_accumulation_steps == 1
    assert "nothing changed" in line
    split, line = fit(halves * 1.001)
    assert split.gradient_accumulation_steps == 2
    assert not split.memory.gradient_checkpointing
    assert "gradient_accumulation_steps 2" in line
    alone = plan(dataclasses.replace(asked, gradient_accumulation_steps=8)).peak
    saving, line = fit(alone * 0.95)
    assert saving.memory.gradient_checkpointing
    assert "memory.gradient_checkpointing True" in line
    assert plan(saving).peak <= alone * 0.95
    with pytest.raises(InputError, match="leaves 1.0 MB .* but scenes needs [0-9.]+ MB"):
        fit(1e6)
    with pytest.raises(InputError, match="memory.fit must be auto or a size such as 24GB, not 'big'"):
        fitted(Recipe(memory=Memory(fit="big")), META)
    assert fitted(Recipe(memory=Memory(fit="auto")), torch.device("cpu"))[0].gradient_accumulation_steps == 1


def test_only_a_plan_for_a_size_needs_no_such_device(tmp_path, capsys):
    call = ["train", "--dry-run", "--device", "cuda:99", "--output-dir", str(tmp_path)]
    assert main([*call, "--fit", "24GB"]) == 0
    assert "fit 24GB: nothing changed; planned at" in capsys.readouterr().out
    assert main([*call, "--fit", "auto"]) == 2
    assert "device 'cuda:99' does not exist here" in capsys.readouterr().err


FOLDER = Path(__file__).parents[1] / "recipes"
CARD = [file for file in sorted(FOLDER.glob("**/*.yaml")) if not file.stem.startswith("scenes")]
SMALL = {"sd-turbo", "sdxl-turbo", "sana-sprint-0.6b"}  # also for 24 GB


@pytest.mark.slow
@pytest.mark.parametrize("file", CARD, ids=lambda file: str(file.relative_to(FOLDER)))
def test_every_recipe_fits_one_80_gb_card_and_says_what_it_takes(file):
    """75 of 80 GB may be planned, and 22.5 of 24."""
    recipe, head = read_recipe(file), file.read_text()
    said = re.search(r"# One 80 GB card: ([\d.]+) GB planned", head)
    assert said is not None
    peak = plan(recipe).peak / 1e9
    assert peak <= 75
    assert peak == pytest.approx(float(said[1]), abs=0.06)
    spectral = dataclasses.replace(recipe, noise_network="spectral")
    assert plan(spectral).peak / 1e9 < peak
    if file.parent == FOLDER and file.stem in SMALL:
        said = re.search(r"--fit 24GB: ([\d.]+) GB", head)
        assert said is not None
        small = dataclasses.replace(recipe, memory=dataclasses.replace(recipe.memory, fit="24GB"))
        chosen, _ = fitted(small, META)
        peak = plan(chosen).peak / 1e9
        assert peak <= 22.5
        assert peak == pytest.approx(float(said[1]), abs=0.06)


def test_the_smoke_test_trains_and_draws_with_random_weights_and_says_what_would_fail(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "generator: scenes\nprompts: nowhere.txt\nlora: {rank: 2}\nrewards: {redness: 1}\n"
    )
    flags = ["--smoke-test", "--train-batch-size", "2", "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert main(["train", str(tmp_path / "r.yaml"), *flags]) == 0
    page = capsys.readouterr().out
    assert re.search(r"trained  2 steps in [\d.]+, [\d.]+ s, [\d.e+]+ images/s\n", page)
    assert re.search(r"memory   [\d.]+ [GM]B at the peak, planned [\d.]+ [GM]B", page)
    assert "drew     (3, 64, 64) in" in page
    assert "would fail: " in page
    assert "nowhere.txt" in page
    summary = json.loads((tmp_path / "out" / "smoke-test" / "summary.json").read_text())
    (row,) = summary["results"]
    assert row["planned_bytes"] == plan(Recipe(train_batch_size=2, lora=LoRA(2)), torch.device("cpu")).peak
    assert len(row["step_seconds"]) == 2
    assert not (tmp_path / "out" / "adapter").exists()
    assert main(["train", str(tmp_path / "r.yaml"), *flags, "--device", "xpu"]) == 2
    assert "device 'xpu' does not exist here" in capsys.readouterr().err


def test_random_weights_keep_the_scale_of_what_goes_through_them():
    with smoke.empty():
        network = nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Conv1d(200, 50, 1))
    smoke.fill(network, torch.device("cpu"))
    drawn = torch.randn(400, 300)
    assert network[0](drawn).std().item() == pytest.approx(1, rel=0.1)
    assert network[2](torch.randn(4, 200, 99)).std().item() == pytest.approx(1, rel=0.1)
    assert torch.equal(network[1].weight, torch.ones(200))
    assert torch.equal(network[2].bias, torch.zeros(50))


def test_an_encoder_without_a_class_is_one_line(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    config = tmp_path / "tiny" / "text_encoder" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "architectures"}))
    with pytest.raises(InputError, match="a text encoder's config.json names no transformers class"):
        plan(Recipe(generator=str(tmp_path / "tiny")))
