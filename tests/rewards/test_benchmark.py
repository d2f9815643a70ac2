"""`benchmarks.rewards` runs, and its ways of computing the ensemble agree, which it asserts itself."""

import json

import pytest

from benchmarks import rewards


@pytest.mark.slow
def test_the_benchmark_compares_the_same_numbers_and_reports(tmp_path, capsys):
    rewards.main(rewards.Benchmark(batch_size=1, picture=64, rounds=1, device="cpu", output=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    ways = {row["way"]: row for row in summary["results"]}
    assert list(ways) == ["one after the other", "ensemble", "ensemble, recomputing"]
    assert all(row["fastest_seconds"] > 0 for row in ways.values())
    assert ways["ensemble, recomputing"]["activations_mib"] < 0.5 * ways["ensemble"]["activations_mib"]
    assert summary["cache_hit_ms"] < 1
    assert "text features of 1 prompts from the cache" in capsys.readouterr().out
