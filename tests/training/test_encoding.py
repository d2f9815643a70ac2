"""A run's prompts encoded once: the same weights from memory and from disk."""

import re

import pytest

from hypernoise.errors import InputError
from hypernoise.generators.memory import Memory
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe
from hypernoise.training.loop import train
from hypernoise.training.metrics import rows_of
from tests.training.test_trainer import PROMPTS, build, config, same, state


def test_dropped_encoders_and_embeddings_on_disk_exclude_each_other():
    with pytest.raises(InputError, match="take one of the two"):
        Recipe(memory=Memory(text_encoders="drop"), embeddings="disk")


@pytest.mark.parametrize("how", ["cut short", "changed", "empty"])
def test_a_damaged_file_is_told_and_encoded_again(sd_pipeline, tmp_path, capsys, how):
    def run():
        generator, network = build(sd_pipeline)
        settings = config(max_train_steps=2, embeddings="disk", embeddings_folder=str(tmp_path))
        train(generator, network, WeightedSum({"redness": 20.0}), PROMPTS, settings, progress=False)
        return state(network), capsys.readouterr().err

    whole, _ = run()
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-8] ^= 4
    file.write_bytes({"cut short": content[:-8], "changed": content, "empty": b""}[how])
    again, told = run()
    assert f"embeddings: {file} is damaged; its prompts are encoded again" in told
    assert "5 of 5 prompts to encode" in told
    assert same(again, whole)
    assert "0 of 5 prompts to encode" in run()[1]


def test_a_run_from_disk_trains_to_the_weights_of_one_from_memory(sd_pipeline, tmp_path, capsys):
    """With sample grids and a watch beside it, whose prompts come from the disk too."""

    def run(output=None, **changes):
        generator, network = build(sd_pipeline)
        reward = WeightedSum({"redness": 20.0})
        settings = config(max_train_steps=2, **changes)
        train(generator, network, reward, PROMPTS, settings, output_dir=output, progress=False)
        return state(network)

    beside = dict(validation_steps=1, validation_prompts=("a ring",), diagnostics=("lipschitz",), diagnostics_steps=2)
    assert same(run(), run(tmp_path, embeddings="disk", **beside))
    told = capsys.readouterr().err
    assert re.search(r"embeddings: 5 of 5 prompts to encode, \S+ GiB in ", told)
    assert "lipschitz" in rows_of(tmp_path)[-1]
    assert len(list((tmp_path / "samples").glob("step-*.png"))) == 2
