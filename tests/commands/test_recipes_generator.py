"""Commands that draw take a generator as a recipe loads it for training, with the recipe's ways to need less memory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.commands.diagnose import Diagnose
from hypernoise.commands.evaluate import Evaluate
from hypernoise.commands.flags import parse
from hypernoise.commands.generate import Generate
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb

MEMORY = ("gradient_checkpointing", "decode_slice", "text_encoders")


@pytest.fixture
def base(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def recipe(base, tmp_path):
    def write(**fields):
        file = tmp_path / "recipe.yaml"
        saving = {name: fields.pop(name) for name in MEMORY if name in fields}
        file.write_text(json.dumps({"generator": str(base), "memory": saving, **fields}))  # JSON is YAML
        return str(file)

    return write


def drawn(folder):
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]).astype(int)


def generate(output, *flags):
    assert main(["generate", "a ring", "two crosses", "--device", "cpu", "--output-dir", str(output), *flags]) == 0
    return drawn(output)


def test_every_field_comes_from_the_recipe_and_flags_override_it(recipe):
    fields = dict(mixed_precision="bf16", height=32, decode_slice=2, text_encoders="offload")
    file = recipe(gradient_checkpointing=True, revision="abc", **fields)
    for command in (Generate, Evaluate):
        asked = parse(command, ["--recipe", file, "--width", "64"])
        assert (asked.generator[-4:], asked.size) == ("base", (32, 64))
        assert {n: getattr(asked.memory if n in MEMORY else asked, n) for n in fields} == fields
        assert (asked.memory.gradient_checkpointing, asked.revision) == (True, "abc")
        assert parse(command, []).generator == "scenes"


def test_generate_draws_what_the_recipe_loads(recipe, sd_pipeline, tmp_path):
    """At another size, against the pipeline's own call."""
    asked = recipe(height=32, width=16)
    pictures = generate(tmp_path / "out", "--recipe", asked)
    assert pictures.shape == (2, 32, 16, 3)
    call = dict(num_inference_steps=1, guidance_scale=0.0, height=32, width=16)
    expected = sd_pipeline()("a ring", generator=torch.Generator().manual_seed(0), **call).images[0]
    assert np.abs(pictures[0] - np.asarray(expected).astype(int)).max() <= 1


def test_saving_memory_changes_no_picture(recipe, base, sd_pipeline, tmp_path, monkeypatch):
    network = LoRANoise(DiffusionGenerator(sd_pipeline()), rank=4)
    disturb(network)
    save_adapter(network, tmp_path / "adapter")
    flags = ["--adapter", str(tmp_path / "adapter"), "--num-images-per-prompt", "3", "--num-inference-steps", "2"]
    expected = generate(tmp_path / "plain", "--generator", str(base), *flags)
    sizes = []
    own = type(network.generator.pipeline.vae).decode
    monkeypatch.setattr(
        type(network.generator.pipeline.vae),
        "decode",
        lambda vae, latents, *more, **keywords: sizes.append(len(latents)) or own(vae, latents, *more, **keywords),
    )
    saving = recipe(gradient_checkpointing=True, decode_slice=2, text_encoders="offload")
    assert np.abs(generate(tmp_path / "saving", "--recipe", saving, *flags) - expected).max() <= 1
    assert sizes == [2, 1, 2, 1]


def test_evaluate_takes_the_recipe_and_redraws_at_another_size(recipe, tmp_path):
    (tmp_path / "prompts.txt").write_text("a ring\na cross\n")
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--methods", "best-of-2", "--rewards", "redness=10"]
    flags += ["--num-images-per-prompt", "1", "--output-dir", str(tmp_path / "out"), "--device", "cpu"]

    def rewards(**fields):
        assert main(["evaluate", "--recipe", recipe(text_encoders="offload", decode_slice=1, **fields), *flags]) == 0
        rows = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
        assert [row["method"] for row in rows] == ["plain", "best-of-2"]
        return [row["reward"] for row in rows]

    first = rewards()
    assert rewards(height=32) != first
    assert rewards() == first


def test_a_recipe_that_is_not_there(capsys):
    assert main(["generate", "a ring", "--recipe", "nowhere.yaml"]) == 2
    assert "recipe nowhere.yaml cannot be read" in capsys.readouterr().err


def test_weights_have_the_requested_precision(recipe):
    assert parse(Generate, ["a ring"]).mixed_precision == "auto"
    asked = parse(Generate, ["a ring", "--recipe", recipe(mixed_precision="fp16"), "--device", "cpu"])
    assert asked.load().dtype == torch.float16
    asked = parse(Generate, ["a ring", "--recipe", recipe(mixed_precision="fp16"), "--mixed-precision", "no"])
    assert asked.load().dtype == torch.float32


@pytest.mark.parametrize("command", [Evaluate, Diagnose])
def test_all_that_draws_takes_its_generator_from_a_recipe(command, recipe):
    asked = parse(command, ["--recipe", recipe(decode_slice=1, height=16), "--width", "24"])
    assert (asked.memory.decode_slice, asked.size) == (1, (16, 24))
    assert asked.load().size == (16, 24)
