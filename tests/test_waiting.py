"""Idle threads sleep: set before torch is imported, when libgomp reads it, unless the user has set it otherwise."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hypernoise.quiet import wait_passively

ROOT = Path(__file__).parents[1]
WORDS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
COMMANDS = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in file.read_text()]
STARTS = [ROOT / "tests" / "conftest.py", *COMMANDS]


def run(code, **more):
    """Runs code in a new process, where the user has set neither variable."""
    plain = {name: value for name, value in os.environ.items() if name not in WORDS}
    return subprocess.run([sys.executable, "-c", code], env=plain | more, capture_output=True, text=True, check=True)


def test_libgomp_has_read_what_the_command_line_says():
    """libgomp prints its own settings when torch loads it."""
    code = "from hypernoise.cli import main; main(['--version']); import torch"
    lines = run(code, OMP_DISPLAY_ENV="VERBOSE").stderr.splitlines()
    settings = dict(line.strip().removeprefix("[host] ").split(" = ", 1) for line in lines if " = " in line)
    if not settings:
        pytest.skip("this torch is not on libgomp")
    assert (settings["OMP_WAIT_POLICY"], settings["GOMP_SPINCOUNT"]) == ("'PASSIVE'", "'0'")


def test_the_library_leaves_the_environment_alone():
    code = f"import os, hypernoise; print([name for name in {WORDS} if name in os.environ])"
    assert run(code).stdout == "[]\n"


@pytest.mark.parametrize("file", STARTS, ids=lambda file: file.name)
def test_passive_waiting_is_set_before_torch_is_imported(file):
    """The tests and every benchmark that imports torch."""
    torches, said = [], []
    for number, line in enumerate(ast.parse(file.read_text()).body):
        if isinstance(line, ast.Import | ast.ImportFrom):
            names = [line.module or ""] if isinstance(line, ast.ImportFrom) else [name.name for name in line.names]
            bare = {"hypernoise.quiet", "__future__"} | set(sys.stdlib_module_names)
            torches += [number for name in names if name not in bare and name.partition(".")[0] not in bare]
        elif ast.unparse(line) == "wait_passively()":
            said.append(number)
    assert not torches or said[0] < torches[0]


def test_passive_waiting_is_set_in_the_tests():
    assert any(name in os.environ for name in WORDS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_the_users_word_stays(before, after, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(before))
    wait_passively()
    assert os.environ == after
