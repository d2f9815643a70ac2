"""The call that an adapter was trained under: recorded in it, documented, and named when a call differs."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from hypernoise.adapters import save_adapter
from hypernoise.commands.generate import Generate
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES, asked_otherwise
from hypernoise.generators.presets import PRESETS
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

SANA = "SanaSprintPipeline"


@pytest.mark.parametrize("kind", ["lora", "spectral"])
def test_a_call_with_another_instruction_length_or_guidance_warns_once(kind, tmp_path):
    generator = DiffusionGenerator(build_pipeline(SANA, tmp_path), size=size_of(SANA))
    network = LoRANoise(generator, rank=2) if kind == "lora" else spectral_noise(generator, Spectral(2, 16, 2))
    save_adapter(network, tmp_path / "adapter", generator=generator)
    noted = json.loads((tmp_path / "adapter" / "hypernoise.json").read_text())["call"]
    assert noted == {
        "guidance_scale": 4.5,
        "timesteps": None,
        "complex_human_instruction": None,
        "max_sequence_length": 300,
        "clean_caption": False,
    }
    pipe = attach(build_pipeline(SANA, tmp_path), tmp_path / "adapter")
    call = dict(height=32, width=32, num_inference_steps=1, intermediate_timesteps=None, use_resolution_binning=False)
    right = {**call, "complex_human_instruction": None}

    def said(**call):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe("a ring", output_type="latent", **call)
        return [str(w.message) for w in caught if "the adapter was trained with" in str(w.message)]

    assert said(**right) == []
    (message,) = said(**call)
    assert "pass complex_human_instruction=None" in message
    assert "\n" not in message
    assert said(**call) == []
    assert len(said(**right, guidance_scale=2.0, max_sequence_length=20)) == 2
    embeddings = generator.family.arguments(generator.encode(["a ring"]).tensors)
    again = attach(build_pipeline(SANA, tmp_path), tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again(**call, **embeddings, output_type="latent")  # the instruction is of prompts


def pipeline_of(family, *, guidance_embeds=False, **config):
    denoiser = SimpleNamespace(config=SimpleNamespace(guidance_embeds=guidance_embeds))
    return type(family, (), {FAMILIES[family].denoiser: denoiser, "config": config})()


@pytest.mark.parametrize(
    ("family", "own", "trained", "call", "differs"),
    [
        ("StableDiffusionPipeline", {}, {"guidance_scale": 0.0}, {"guidance_scale": 1.0}, []),
        ("StableDiffusionPipeline", {}, {"guidance_scale": 0.0}, {"guidance_scale": 7.5}, ["guidance_scale"]),
        ("StableDiffusionPipeline", {}, {"clip_skip": None}, {"clip_skip": 1, "prompt": "a"}, ["clip_skip"]),
        ("StableDiffusionPipeline", {}, {"clip_skip": None}, {"clip_skip": 1, "prompt": None}, []),
        ("ZImagePipeline", {}, {"guidance_scale": 0.0}, {"guidance_scale": 1.0}, ["guidance_scale"]),
        ("FluxPipeline", {}, {"guidance_scale": 0.0}, {"guidance_scale": 3.5}, []),
        ("FluxPipeline", {"guidance_embeds": True}, {"guidance_scale": 3.5}, {"guidance_scale": 1}, ["guidance_scale"]),
        ("FluxPipeline", {}, {"max_sequence_length": 256}, {"max_sequence_length": 512, "prompt": "a"}, ["max_seq"]),
        ("Flux2KleinPipeline", {"is_distilled": True}, {"guidance_scale": 1.0}, {"guidance_scale": 4.0}, []),
        ("Flux2KleinPipeline", {}, {"guidance_scale": 1.0}, {"guidance_scale": 4.0}, ["guidance_scale"]),
        ("Krea2Pipeline", {"is_distilled": True}, {"guidance_scale": 0.0}, {"guidance_scale": 4.5}, ["guidance_scale"]),
        ("QwenImagePipeline", {}, {"true_cfg_scale": 1.0}, {"true_cfg_scale": 4.0}, []),
        (
            "QwenImagePipeline",
            {},
            {"true_cfg_scale": 1.0},
            {"true_cfg_scale": 4.0, "negative_prompt": "a"},
            ["true_cfg_scale"],
        ),
        ("PixArtAlphaPipeline", {}, {"timesteps": [400]}, {"timesteps": None}, ["timesteps"]),
        ("PixArtAlphaPipeline", {}, {"timesteps": [400]}, {"timesteps": (400,)}, []),
        ("PixArtAlphaPipeline", {}, {"timesteps": "broken"}, {"guidance_scale": 4.5}, []),
    ],
)
def test_what_differs_is_what_has_an_effect(family, own, trained, call, differs):
    found = asked_otherwise(pipeline_of(family, **own), trained, call)
    assert [name[: len(word)] for name, word in zip(found, differs, strict=True)] == differs


def test_the_docs_have_the_call_of_every_generator():
    table = (Path(__file__).parents[1] / "docs" / "pipeline.md").read_text()
    documented = {}
    for names, line in re.findall(r"^\| (`.*?) \| `pipe\((.*?)\)` \|$", table, re.MULTILINE):
        call = eval(f"dict({line.replace('prompt=prompt', 'prompt=None').replace('prompt, ', '')})")
        call.pop("prompt", None)
        for name in re.findall(r"`(.*?)`", names):
            documented[name, call["num_inference_steps"]] = call
    assert {name for name, _ in documented} == set(PRESETS) - {"scenes"}
    for (name, steps), call in documented.items():
        preset = PRESETS[name]
        family = FAMILIES[preset.family]
        expected = {**family.call, **family.call_at(steps), **preset.call, "num_inference_steps": steps}
        expected.pop("use_resolution_binning", None)
        assert call == expected, name
        assert steps in (preset.steps, 2)


def test_generate_takes_a_strength_and_an_unchecked_base(sd_pipeline, tmp_path, capsys):
    network = LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=2)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    sd_pipeline().save_pretrained(tmp_path / "base")
    sd_pipeline(seed=5).save_pretrained(tmp_path / "other")

    def drawn(name, generator="base", adapter=True, **settings):
        settings |= {"adapter": tmp_path / "adapter"} if adapter else {}
        place = tmp_path / name
        Generate(
            prompts=("a ring",), generator=str(tmp_path / generator), device="cpu", output_dir=place, **settings
        ).run()
        return (place / "000-seed0.png").read_bytes()

    plain = drawn("plain", adapter=False)
    assert drawn("none", strength=0.0) == plain
    assert len({plain, drawn("half", strength=0.5), drawn("whole")}) == 3
    with pytest.raises(InputError, match=r"strength must be a number from 0 to 1\.5, not 2\.0"):
        drawn("much", strength=2.0)
    with pytest.raises(InputError, match="--strength needs an adapter"):
        drawn("lonely", adapter=False, strength=0.5)
    with pytest.raises(InputError, match="other weights .* --no-check-base"):
        drawn("refused", "other")
    with pytest.warns(UserWarning, match="made for other weights"):
        drawn("unchecked", "other", check_base=False)
