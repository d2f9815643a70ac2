"""The frozen base in shards over two processes: the same losses, half the weights each, and the LoRA whole."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from hypernoise.cli import main
from hypernoise.commands.flags import parse
from hypernoise.commands.train import Train
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import Memory
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe
from hypernoise.training.loop import train
from hypernoise.training.metrics import rows_of
from hypernoise.training.processes import samples_per_round
from hypernoise.training.sharding import shard_base
from tests.training.ranks import on_ranks
from tests.training.test_trainer import PROMPTS, config

CPU = torch.device("cpu")


def trained(sd_pipeline, parts=None, output=None, steps=3, **changes):
    """The losses, the LoRA, and the shares of the denoiser's and of the text encoder's weights that are held."""
    generator = DiffusionGenerator(sd_pipeline(), name="tiny", memory=Memory(gradient_checkpointing=True))
    network = LoRANoise(generator, rank=4)
    if parts is not None:
        shard_base(network, parts, CPU)
    settings = config(max_train_steps=steps, gradient_accumulation_steps=2, num_inference_steps=2, **changes)
    reward = WeightedSum({"redness": 20.0})
    result = train(generator, network, reward, PROMPTS, settings, output_dir=output, progress=False)
    lora = torch.cat([parameter.detach().flatten() for parameter in network.trainable_parameters()])
    held = [_held(part, network) for part in (generator.denoiser, generator.pipeline.text_encoder)]
    return [row["loss"] for row in result.history], lora, held


def _held(module, network):
    own = set(network.trainable_parameters())
    frozen = [weight for weight in module.parameters() if weight not in own]
    here = sum((weight.to_local() if isinstance(weight, DTensor) else weight).numel() for weight in frozen)
    return here / sum(weight.numel() for weight in frozen)


@pytest.mark.parametrize("parts", ["denoiser", "all"])
def test_a_base_in_shards_trains_to_the_same_losses(sd_pipeline, parts):
    losses, _, held = trained(sd_pipeline)
    assert held == [1, 1]
    assert len({round(loss, 4) for loss in losses}) == 3
    found = on_ranks(2, lambda: trained(sd_pipeline, parts))
    for shared, _, (denoiser, text) in found:
        assert shared == pytest.approx(losses, rel=1e-5, abs=1e-5)
        assert 0.4 < denoiser < 0.6
        assert (0.4 < text < 0.6) == (parts == "all")
    assert torch.equal(found[0][1], found[1][1])


def test_a_base_in_shards_resumes_to_the_same_lora_bit_for_bit(sd_pipeline, tmp_path):
    def run(output, steps):
        return trained(
            sd_pipeline,
            "denoiser",
            tmp_path / output,
            steps,
            validation_steps=2,
            validation_prompts=("a ring", "a cross"),
        )[1]

    whole = on_ranks(2, lambda: run("whole", 4))[0]
    on_ranks(2, lambda: run("parts", 2))
    assert torch.equal(on_ranks(2, lambda: run("parts", 4))[0], whole)
    assert [file.name for file in (tmp_path / "parts" / "samples").iterdir()] == ["step-000002.png", "step-000004.png"]


def test_a_recipe_shards_its_base(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\nrewards: {{redness: 20}}\n"
        "max_train_steps: 2\ntrain_batch_size: 4\nlearning_rate: 1e-2\nkl_weight: 0.1\nlora: {rank: 4}\n"
    )
    call = ["train", str(recipe), "--device", "cpu"]
    assert main([*call, "--output-dir", str(tmp_path / "one")]) == 0
    shared = [*call, "--output-dir", str(tmp_path / "two"), "--shard-base", "all"]
    assert on_ranks(2, lambda: main(shared)) == [0, 0]
    one, two = ([row["loss"] for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    base, same = (
        json.loads((tmp_path / n / "adapter" / "hypernoise.json").read_text())["base"] for n in ("one", "two")
    )
    assert same == base


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"shard_base": "denoiser", "diagnostics": ("kl",)},
            r"shard_base: denoiser needs diagnostics: nothing, not \('kl',\)",
        ),
        (
            {"shard_base": "all", "memory": Memory(text_encoders="drop")},
            "all needs memory.text_encoders: stay, not drop",
        ),
    ],
)
def test_what_does_not_go_with_shards_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe(**fields)


def test_one_process_has_nobody_to_share_with(sd_pipeline):
    network = LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=4)
    with pytest.raises(InputError, match="shard_base needs several processes: start the run with torchrun"):
        shard_base(network, "denoiser", CPU)


def test_the_documented_command_is_accepted():
    (command,) = re.findall(
        r"-m hypernoise.cli train (recipes/flux.*--shard-base .*)", Path("docs/running.md").read_text()
    )
    recipe = parse(Train, command.replace("FILE", "prompts.txt").split())
    assert samples_per_round(recipe, 8) == 1
