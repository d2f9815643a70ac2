"""Prompts that are too long for an encoder, with a tokenizer of words."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from hypernoise.rewards.network import NetworkReward, Resize, padded


def by_words(text, *, truncation, max_length=None, **_):
    """Two marks and a token a word."""
    words = [len(word) for word in text.split()]
    return SimpleNamespace(input_ids=[0, *(words[: max_length - 2] if truncation else words), 0])


def test_truncation_warns_once():
    reward = NetworkReward("r", torch.nn.Linear(1, 1), Resize(8), None)
    reward.tokenizer, reward.longest = by_words, 4
    with pytest.warns(UserWarning, match="reward 'r' reads 4 tokens, but a prompt has 5") as warned:
        assert [ids.tolist() for ids in reward.texts(["a bb ccc", "dd ee ff"])] == [[0, 1, 2, 0], [0, 2, 2, 0]]
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [ids.tolist() for ids in reward.texts(["one two", "gg hh ii"])] == [[0, 3, 3, 0], [0, 2, 2, 0]]


def test_texts_are_padded_with_a_mask():
    ids, mask = padded([torch.tensor([5, 6]), torch.tensor([7])], "left", torch.device("cpu"))
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
