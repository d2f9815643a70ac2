"""The any-machine benchmark: its verdict, and the environment it measures in."""

import os

import pytest

from benchmarks import any_machine


@pytest.mark.parametrize(
    ("alone", "beside", "expected"),
    [
        (300.0, 750.0, "PASS"),
        (301.0, 750.0, "FAIL: 301 s alone is over 300 s"),
        (100.0, 251.0, "FAIL: 2.51 times next to other work is over 2.5"),
        (400.0, 1200.0, "FAIL: 400 s alone is over 300 s; 3.00 times next to other work is over 2.5"),
    ],
)
def test_the_verdict(alone, beside, expected):
    assert any_machine.verdict(alone, beside, most=300, ratio=2.5) == expected


@pytest.mark.parametrize(("seconds", "code"), [([200.0, 499.0], 0), ([200.0, 501.0], 1)])
def test_it_runs_quickstart_twice_and_exits_by_the_verdict(seconds, code, monkeypatch, capsys):
    asked, beside = [], []

    class Busy:
        def __init__(self, cores):
            assert 1 <= len(cores) <= 2

        def __enter__(self):
            beside.append(True)

        def __exit__(self, *error):
            beside.pop()

    def quickstart(arguments):
        asked.append((arguments, bool(beside)))
        return seconds[len(asked) - 1]

    monkeypatch.setattr(any_machine, "quickstart", quickstart)
    monkeypatch.setattr(any_machine, "busy", Busy)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: None)
    assert any_machine.main(["--most", "300", "--", "--judged", "1"]) == code
    assert asked == [(["--judged", "1"], False), (["--judged", "1"], True)]
    printed = capsys.readouterr().out.split()
    assert printed[:3] == ["alone", "200.0", "s"]
    assert printed[printed.index("ratio") + 1] == f"{seconds[1] / 200:.2f}"


def test_it_hides_what_is_more_than_avx2_and_leaves_waiting_to_the_command(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = any_machine.environment()
    assert (seen["ONEDNN_MAX_CPU_ISA"], seen["ATEN_CPU_CAPABILITY"]) == ("AVX2", "avx2")
    assert not {"OMP_WAIT_POLICY", "OMP_NUM_THREADS"} & seen.keys()
