"""`benchmarks.train_step` runs, and its ways of training a step agree, which it asserts itself."""

import json

import pytest

from benchmarks import attach_full_size, train_step


@pytest.mark.slow
def test_the_benchmark_compares_the_same_steps_and_reports(tmp_path, capsys):
    train_step.main(train_step.Benchmark(rewards="clip", batch_size=4, rank=2, steps=1, rounds=1, output=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = {row["way"]: row for row in summary["results"]}
    assert list(rows) == ["ours", "bare", "published", "ours, saving", "ours, bf16"]
    assert all(len(row["all_seconds"]) == 1 and row["seconds_per_step"] > 0 for row in rows.values())
    assert all(0 < row["training_mib"] < row["peak_mib"] for row in rows.values())
    assert "ours / it" in capsys.readouterr().out


def test_the_parts_of_a_step_are_printed(capsys):
    train_step.parts(train_step.Benchmark(rewards="clip", batch_size=1, rank=2, rounds=1))
    seconds = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert len(seconds) == 9
    assert float(seconds["noise network"]) > float(seconds["gradients' norm, once"]) > 0


def test_what_attach_adds_to_a_published_generators_call(capsys):
    attach_full_size.main(attach_full_size.FullSize("scenes", rounds=1))
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith("scenes, 64 px, one step: plain ")
    assert 0 < float(last.removeprefix("attach adds ").split(" ms")[0]) < 1000
