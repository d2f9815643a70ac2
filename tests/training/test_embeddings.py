"""Prompts encoded once: the same rows as the generator's own, from memory or from disk."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import Memory
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe
from hypernoise.training.embeddings import (
    KeptInMemory,
    KeptOnDisk,
    encode_to_disk,
    fingerprint,
    missing_from,
    text_encoders_aside,
)
from hypernoise.training.loop import train
from hypernoise.training.metrics import rows_of
from tests.training.test_trainer import PROMPTS, build, config, same, state


def equal(a, b):
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors
    )


def alone(generator, prompts):
    """Each prompt's own row."""
    rows = [generator.encode([prompt]).tensors for prompt in prompts]
    return Condition({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def counted(generator, monkeypatch):
    calls = []
    own = generator.encode
    monkeypatch.setattr(generator, "encode", lambda prompts: calls.append(list(prompts)) or own(prompts))
    return calls


def test_memory_encodes_each_prompt_once_and_alone(generator, monkeypatch):
    expected = alone(generator, ["a ring", "a cross", "a ring"])
    calls = counted(generator, monkeypatch)
    kept = KeptInMemory(generator, PROMPTS)
    assert equal(kept(["a ring", "a cross", "a ring"]), expected)
    assert equal(kept(["a cross", "a ring"]), expected[torch.tensor([1, 2])])
    assert calls == [["a ring"], ["a cross"]]


def test_memory_keeps_nothing_that_would_not_fit(generator, monkeypatch):
    calls = counted(generator, monkeypatch)
    kept = KeptInMemory(generator, PROMPTS, limit=1000)
    for _ in range(2):
        kept(["a ring", "a cross"])
    assert calls == [["a ring"], ["a ring", "a cross"], ["a ring", "a cross"]]
    assert not kept.rows


def test_memory_does_not_keep_rows_of_differing_lengths(generator, monkeypatch):
    rows = {"a": torch.ones(1, 2), "b": torch.ones(1, 3)}
    calls = []

    def encode(prompts):
        calls.append(prompts)
        return Condition({"tokens": rows[prompts[0]] if len(prompts) == 1 else torch.ones(len(prompts), 3)})

    monkeypatch.setattr(generator, "encode", encode)
    kept = KeptInMemory(generator, ["a", "b"])
    assert kept(["a", "b"]).tensors["tokens"].shape == kept(["b", "a"]).tensors["tokens"].shape == (2, 3)
    assert calls[-2:] == [["a", "b"], ["b", "a"]]


def test_disk_gives_the_same_rows_and_is_added_to(generator, tmp_path, monkeypatch):
    folder = tmp_path / "embeddings"
    monkeypatch.setattr("hypernoise.training.embeddings.SHARD", 4000)  # two prompts to a file
    encode_to_disk(generator, folder, missing_from(generator, folder, PROMPTS[:3]))
    files = sorted(folder.iterdir())
    assert len(files) == 2
    assert missing_from(generator, folder, PROMPTS) == PROMPTS[3:]
    encode_to_disk(generator, folder, PROMPTS[3:])
    assert missing_from(generator, folder, PROMPTS) == []
    asked = [PROMPTS[4], PROMPTS[0], PROMPTS[4], PROMPTS[2]]
    assert equal(KeptOnDisk(generator, folder)(asked), alone(generator, asked))
    texts = [key for file in folder.iterdir() for key in json.loads(safe_open(file, "pt").metadata()["texts"])]
    assert len(set(texts)) == len(texts) == 5
    with pytest.raises(InputError, match="'a hat' is not among the embeddings in"):
        KeptOnDisk(generator, folder)(["a hat"])


def test_another_encoder_or_setting_finds_nothing(sd_pipeline, tmp_path):
    generator, _ = build(sd_pipeline)
    encode_to_disk(generator, tmp_path, ["a ring"])
    prints = {fingerprint(generator)}
    with torch.no_grad():
        generator.pipeline.text_encoder.get_input_embeddings().weight[0, 0] += 1e-3
    prints.add(fingerprint(generator))
    generator.pipeline.tokenizer.model_max_length = 7
    prints.add(fingerprint(generator))
    assert len(prints) == 3
    assert missing_from(generator, tmp_path, ["a ring"]) == ["a ring"]


def test_a_new_process_finds_what_an_earlier_one_encoded(sd_pipeline, tmp_path):
    """The first call of a tokenizer leaves its padding and truncation behind."""
    first, _ = build(sd_pipeline)
    first.encode(["a ring"])
    encode_to_disk(first, tmp_path, PROMPTS)
    fresh, _ = build(sd_pipeline)
    assert missing_from(fresh, tmp_path, PROMPTS) == []


def test_settings_of_the_call_that_change_an_encoding_are_known(sd_pipeline):
    def printed(**call):
        return fingerprint(DiffusionGenerator(sd_pipeline(), call=call))

    assert len({printed(), printed(clip_skip=1), printed(clip_skip=2)}) == 3
    assert printed(eta=0.5) == printed()


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


def test_encoders_that_rest_outside_the_pipeline_are_known_by_their_weights_too(sd_pipeline, tmp_path):
    def printed(change, **memory):
        pipeline = sd_pipeline()
        with torch.no_grad():
            pipeline.text_encoder.get_input_embeddings().weight[0, 0] += change
        return fingerprint(DiffusionGenerator(pipeline, memory=Memory(**memory)))

    assert printed(0.0) == printed(0.0, text_encoders="offload")
    assert printed(0.0, text_encoders="offload") != printed(1e-3, text_encoders="offload")
    with pytest.raises(InputError, match="take one of the two"):
        Recipe(memory=Memory(text_encoders="drop"), embeddings="disk")


def test_too_little_room_is_told_before_anything_is_encoded(generator, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("hypernoise.training.embeddings.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"5 prompts take 0.00 GiB as embeddings, .* take --embeddings off"):
        encode_to_disk(generator, tmp_path / "embeddings", PROMPTS)
    assert list((tmp_path / "embeddings").iterdir()) == []


def test_aside_the_pipeline_draws_without_text_encoders_and_has_them_again_after(generator):
    condition, encoder = generator.encode(["a ring"]), generator.pipeline.text_encoder
    noise = torch.randn(1, *generator.noise_shape, generator=torch.Generator().manual_seed(0)).double()
    before = generator.sample(noise, condition)
    with text_encoders_aside(generator):
        assert generator.pipeline.text_encoder is None
        assert torch.equal(generator.sample(noise, condition), before)
    assert generator.pipeline.text_encoder is encoder
    assert equal(generator.encode(["a ring"]), condition)


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
