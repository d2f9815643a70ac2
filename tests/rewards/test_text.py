"""Windows over long prompts, with a tokenizer of words, and how their scores become one."""

import math
from types import SimpleNamespace

import pytest
import torch

from hypernoise.rewards.text import Windows, combined


def by_words(text, **_):
    """Two marks and a token a word."""
    return SimpleNamespace(input_ids=[0, *text.split(), 0])


def test_windows_end_at_clauses_and_hold_as_many_as_fit():
    windows = Windows("r", by_words, 8, "chunk-mean")
    prompt = "a red ring, a blue square; two crosses and one ring. a cat"
    assert windows(prompt) == ["a red ring, a blue square;", "two crosses and one ring.", "a cat"]
    assert windows("a red ring") == ["a red ring"]


def test_a_clause_too_long_is_split_at_words_and_nothing_is_lost():
    windows = Windows("r", by_words, 6, "chunk-min")
    prompt = "one two three four five six seven eight nine, ten\neleven"
    parts = windows(prompt)
    assert " ".join(parts).split() == prompt.split()
    assert all(len(part.split()) <= 4 for part in parts)
    assert windows.truncated == 0


def test_a_word_too_long_in_itself_is_counted_as_cut():
    def by_letters(text, **_):
        return SimpleNamespace(input_ids=list(text))

    windows = Windows("r", by_letters, 10, "chunk-mean")
    with pytest.warns(UserWarning, match="reads 10 tokens, but a prompt has 12"):
        assert windows("ring incomparable") == ["ring", "incomparable"]
    assert windows.truncated == 1


def test_truncation_warns_once_and_counts():
    windows = Windows("r", by_words, 4, "truncate")
    with pytest.warns(UserWarning, match="reads 4 tokens, but a prompt has 5") as warnings:
        assert [windows(prompt) for prompt in ("one two three", "four five six")] == [
            ["one two three"],
            ["four five six"],
        ]
    assert (len(warnings), windows.truncated) == (1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows("one two")


def test_windows_scores_become_one_by_mean_or_soft_minimum():
    scores = torch.tensor([1.0, 3.0, 5.0, 2.0], dtype=torch.float64)
    assert combined(scores, [3, 1], "chunk-mean", 0.5).tolist() == [3.0, 2.0]
    soft = combined(scores, [3, 1], "chunk-min", 0.5)
    expected = -0.5 * math.log(sum(math.exp(-s / 0.5) for s in (1, 3, 5)) / 3)
    assert soft[0].item() == pytest.approx(expected)
    assert 1 < soft[0] < 3
    assert soft[1].item() == pytest.approx(2.0)
    assert combined(scores, [3, 1], "chunk-min", 1e-3)[0].item() == pytest.approx(1.0, abs=2e-3)
