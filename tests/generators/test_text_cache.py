"""Prompts encoded once: the same rows as the generator's own, from memory."""

import torch

from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import Memory
from hypernoise.generators.text_cache import KeptInMemory

PROMPTS = ["a ring", "a cross", "a red circle", "two blue rings", "a cat"]


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


def test_offloaded_encoders_are_moved_once_for_all_new_prompts_of_a_batch(sd_pipeline, monkeypatch):
    pipeline, moves = sd_pipeline(), []
    encoder, own = pipeline.text_encoder, pipeline.text_encoder.to
    monkeypatch.setattr(encoder, "to", lambda device: moves.append(device) or own(device))
    kept = KeptInMemory(DiffusionGenerator(pipeline, memory=Memory(text_encoders="offload")), PROMPTS)
    moves.clear()
    kept(PROMPTS[:3])
    assert len(moves) == 2  # there and back
    kept(PROMPTS[:3])
    assert len(moves) == 2
    assert pipeline.text_encoder is None


def test_memory_keeps_nothing_that_would_not_fit(generator, monkeypatch):
    calls = counted(generator, monkeypatch)
    kept = KeptInMemory(generator, PROMPTS, limit=1000)
    for _ in range(2):
        kept(["a ring", "a cross"])
    assert calls == [["a ring"], ["a cross"], ["a ring", "a cross"], ["a ring", "a cross"]]
    assert not kept.rows.made


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
