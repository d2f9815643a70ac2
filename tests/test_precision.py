"""`mixed_precision: auto`: bf16 where the device has units for it, else fp32; printed, recorded, and warned about."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch

from hypernoise import precision
from hypernoise.cli import main
from hypernoise.commands.quickstart import Quickstart
from hypernoise.errors import InputError
from hypernoise.evaluation.summary import write_summary
from hypernoise.precision import native_bf16, resolve  # as they are, before conftest's fixture
from hypernoise.training.config import Recipe, TrainConfig, read_recipe
from hypernoise.training.processes import say_once

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
NARROWED = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}


@pytest.fixture
def machine(monkeypatch):
    """A machine with such a CPU, and a GPU with bf16 or without."""

    def build(*, capability="AVX512", amx=False, avx512_bf16=False, gpu_bf16=False, **environment):
        monkeypatch.setattr(precision, "native_bf16", native_bf16)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        asked = []
        monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return asked

    return build


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"amx": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({}, "no"),  # AVX512 alone goes by way of fp32
        ({"capability": "AVX2"}, "no"),
        ({"capability": "DEFAULT"}, "no"),
        ({"amx": True, "capability": "AVX2"}, "no"),  # what ATEN_CPU_CAPABILITY=avx2 makes of it
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX2"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "avx2"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI_2"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "SSE41"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "no"),
        ({"amx": True, "DNNL_MAX_CPU_ISA": "AVX2"}, "no"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bf16"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "bf16"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "ALL"}, "bf16"),
        ({"amx": True, "ONEDNN_MAX_CPU_ISA": "DEFAULT"}, "bf16"),
    ],
)
def test_auto_on_a_cpu(machine, has, expected):
    machine(**has)
    found = resolve("auto", CPU)
    assert (found.name, found.slow) == (expected, False)
    has_them = "this CPU has bf16 units" if expected == "bf16" else "this CPU has no bf16 units"
    assert found.line == f"mixed precision: {expected} ({has_them})"


def test_auto_elsewhere(machine):
    asked = machine(gpu_bf16=True)
    assert resolve("auto", torch.device("cuda:1")).line == "mixed precision: bf16 (this GPU has bf16 units)"
    assert asked == [torch.device("cuda:1")]
    machine(gpu_bf16=False)
    assert resolve("auto", CUDA).line == "mixed precision: no (this GPU has no bf16 units; fp16 may fit)"
    assert resolve("auto", MPS).line == "mixed precision: no (bf16 is not measured on mps)"
    assert resolve("auto", torch.device("meta")).name == "bf16"


@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
@pytest.mark.parametrize(("asked", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_an_explicit_precision_is_used(machine, asked, dtype, device):
    machine(amx=True)
    found = resolve(asked, device)
    assert (found.name, found.dtype, found.slow) == (asked, dtype, False)
    assert found.line == f"mixed precision: {asked} (as requested)"


def test_bf16_on_a_cpu_without_it_warns_with_the_factor(machine):
    machine()
    found = resolve("bf16", CPU)
    assert found.slow
    assert found.line == (
        "mixed precision: bf16 (as requested; this CPU has no bf16 units: about 15 to 25 times slower than fp32)"
    )


def test_this_machine_limited_to_avx2_has_no_bf16():
    """In a separate process, since torch reads these variables once."""
    code = "import torch; from hypernoise.precision import native_bf16; print(native_bf16(torch.device('cpu')))"
    hidden = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    process = subprocess.run([sys.executable, "-c", code], env=os.environ | hidden, capture_output=True, check=True)
    assert process.stdout == b"False\n"
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and not NARROWED & os.environ.keys():
        units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        assert native_bf16(CPU) == units


@pytest.mark.parametrize(
    ("asked", "inside"), [("no", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_are_in_it(asked, inside):
    with resolve(asked, CPU).autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == inside


def test_auto_is_the_default_everywhere():
    from hypernoise.commands.evaluate import Evaluate
    from hypernoise.commands.generate import Generate
    from hypernoise.commands.train import Train

    asking = (TrainConfig, Recipe, Quickstart, Generate, Train, Evaluate)
    assert {cls().mixed_precision for cls in asking} == {"auto"}


@pytest.mark.parametrize("value", ["auto", "no", "bf16", "fp16", "'no'"])
def test_a_recipe_may_say_it_without_quotes(tmp_path, value):
    (tmp_path / "r.yaml").write_text(f"mixed_precision: {value}\n")  # where YAML reads no as false
    assert read_recipe(tmp_path / "r.yaml").mixed_precision == value.strip("'")


def test_an_unknown_precision_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("mixed_precision: float32\n")
    with pytest.raises(InputError, match="mixed_precision must be one of auto, no, bf16, fp16, not 'float32'"):
        read_recipe(tmp_path / "r.yaml")


def test_a_run_says_it_once_and_keeps_it(sd_pipeline, tmp_path, capsys):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a ring\n")
    (tmp_path / "r.yaml").write_text(
        f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\nmax_train_steps: 1\n"
    )
    call = ["train", str(tmp_path / "r.yaml"), "--train-batch-size", "2", "--rank", "2", "--device", "cpu"]
    for asked, name, why in (
        ("auto", "no", "this CPU has no bf16 units"),
        ("no", "no", "as requested"),
        ("bf16", "bf16", "as requested; this CPU has no bf16 units: about 15 to 25 times slower than fp32"),
    ):
        say_once.cache_clear()
        folder = tmp_path / asked
        assert main([*call, "--mixed-precision", asked, "--output-dir", str(folder)]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mixed precision")]
        assert lines == [f"mixed precision: {name} ({why})"]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["mixed_precision"] == name
        assert summary["arguments"]["mixed_precision"] == asked
    adapter = str(tmp_path / "bf16" / "adapter")
    drawn = ["generate", "a ring", "--generator", str(tmp_path / "tiny"), "--adapter", adapter, "--device", "cpu"]
    assert main([*drawn, "--output-dir", str(tmp_path / "drawn")]) == 0
    assert json.loads((tmp_path / "drawn" / "summary.json").read_text())["mixed_precision"] == "no"


def test_a_run_resumes_in_the_precision_it_began_in(sd_pipeline, tmp_path, monkeypatch):
    """`auto` may mean another precision on another machine: refused like any setting that changes the numbers."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a ring\n")
    (tmp_path / "r.yaml").write_text(f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\n")
    call = ["train", str(tmp_path / "r.yaml"), "--train-batch-size", "2", "--rank", "2", "--device", "cpu"]
    call += ["--output-dir", str(tmp_path / "run")]
    assert main([*call, "--max-train-steps", "1"]) == 0
    assert main([*call, "--max-train-steps", "2", "--mixed-precision", "no"]) == 0  # the same, said otherwise
    monkeypatch.setattr(precision, "native_bf16", lambda device: True)
    assert main([*call, "--max-train-steps", "3"]) == 2
    assert main([*call, "--max-train-steps", "3", "--mixed-precision", "no"]) == 0


def test_a_command_without_the_field_records_no_precision(tmp_path):
    write_summary(tmp_path, "other", Other(), "cpu", [])
    assert "mixed_precision" not in json.loads((tmp_path / "summary.json").read_text())


@dataclass(frozen=True)
class Other:
    seed: int = 0
