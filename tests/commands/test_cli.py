import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hypernoise.adapters import save_adapter
from hypernoise.cli import COMMANDS, main
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise

FAST = ["--train-batch-size", "2", "--rank", "2", "--device", "cpu"]


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    """A user's pipeline directory."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def recipe(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\na green cross\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"generator: {tiny}\nprompts: {tmp_path / 'prompts.txt'}\nrewards: {{redness: 20}}\nmax_train_steps: 3\n"
    )
    return file


def test_help_names_every_command_at_once(capsys):
    began = time.perf_counter()
    printed = subprocess.run([sys.executable, "-m", "hypernoise", "--help"], capture_output=True, text=True)
    assert time.perf_counter() - began < 5  # 0.1 s on an idle core; it imports no torch
    assert printed.returncode == 0
    assert all(name in printed.stdout for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["--version"]])
def test_a_reader_that_leaves_is_no_traceback(arguments):
    command = f"{sys.executable} -m hypernoise.cli {' '.join(arguments)}; echo $? >&2"
    printed = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True)
    assert printed.stderr.strip() in ("0", "141")  # all had been read, or not


def test_import_and_help_load_no_torch():
    code = "import sys, hypernoise, hypernoise.cli; hypernoise.cli.main(['--help']); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip().endswith("False")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_explains(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--output" in printed or command == "app"  # which writes nothing
    assert "--device" in printed
    assert "--seed" in printed or command == "score"  # which draws nothing


def test_train_then_generate(recipe, tmp_path, tiny, capsys):
    out = tmp_path / "run"
    assert main(["train", str(recipe), "--output-dir", str(out), "--max-train-steps", "2", *FAST]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"] == "train"
    assert summary["arguments"]["max_train_steps"] == 2
    assert summary["results"][0]["reward"] is not None
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    drawn = tmp_path / "drawn"
    call = [
        "generate",
        "a ring",
        "a cross",
        "--generator",
        tiny,
        "--num-images-per-prompt",
        "2",
        "--output-dir",
        str(drawn),
        "--device",
        "cpu",
    ]
    assert main([*call, "--adapter", str(out / "adapter")]) == 0
    assert sorted(f.name for f in drawn.glob("*.png")) == [
        "000-seed0.png",
        "000-seed1.png",
        "001-seed0.png",
        "001-seed1.png",
    ]
    assert Image.open(drawn / "000-seed0.png").size == (16, 16)
    rows = json.loads((drawn / "summary.json").read_text())["results"]
    assert [row["prompt"] for row in rows] == ["a ring", "a ring", "a cross", "a cross"]


def test_training_few_layers(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    few = ["--lora.layers", "conv_in", "conv_out", "--max-train-steps", "1", *FAST]
    assert main(["train", str(recipe), "--output-dir", str(out), *few]) == 0
    names = load_file(out / "adapter" / "adapter_model.safetensors").keys()
    assert {name.split(".")[2] for name in names} == {"conv_in", "conv_out"}
    settings = json.loads((out / "adapter" / "hypernoise.json").read_text())["settings"]
    assert settings["layers"] == ["conv_in", "conv_out"]
    assert main(["train", str(recipe), "--output-dir", str(tmp_path / "none"), "--lora.layers", "conv_in", *FAST]) == 2
    assert "layers leave out 'conv_out'" in capsys.readouterr().err


def test_started_again_it_resumes(recipe, tmp_path, capsys):
    out = ["--output-dir", str(tmp_path / "run"), *FAST]
    assert main(["train", str(recipe), "--max-train-steps", "2", *out]) == 0
    assert main(["train", str(recipe), "--max-train-steps", "4", *out]) == 0
    assert "resuming from" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    first = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert main(["train", str(recipe), "--max-train-steps", "4", *out]) == 0  # nothing left to do
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["results"] == first
    assert first[0]["kl"] > 0


def test_ctrl_c_saves_says_how_to_resume_and_exits_130(recipe, tmp_path):
    out, plain = tmp_path / "run", ["--mixed-precision", "no"]  # a separate process may resolve auto differently
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hypernoise.cli",
            "train",
            str(recipe),
            "--max-train-steps",
            "100000",
            "--output-dir",
            str(out),
            *FAST,
            *plain,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = out / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes from there" in printed
    (state,) = out.glob("checkpoint-*/state.json")
    step = json.loads(state.read_text())["step"]
    assert (
        main(["train", str(recipe), "--max-train-steps", str(step + 1), "--output-dir", str(out), *FAST, *plain]) == 0
    )
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, step + 2))


def refused(capsys, arguments, *, leaves=()):
    """The command exits with 2 and one line, which is returned; nothing is left where it would have written."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("hypernoise: ")
    assert not any(path.exists() for path in leaves)
    return lines[0]


def test_wrong_input_gets_one_line_and_leaves_nothing(recipe, tmp_path, capsys, tiny):
    out = tmp_path / "out"

    def said(*flags):
        return refused(capsys, ["train", str(recipe), "--output-dir", str(out), *FAST, *flags], leaves=[out])

    assert "unknown generator 'scene'; did you mean 'scenes'" in said("--generator", "scene")
    assert "unknown reward 'redess'; did you mean 'redness'" in said("--rewards", "redess=1")
    assert "unknown reward 'redness=much'; did you mean 'redness'" in said("--rewards", "redness=much")
    assert "unknown flag '--learning-rat'; did you mean '--learning-rate'" in said("--learning_rat", "1")
    assert "--optimizer must be one of adamw, sgd, not 'adam'" in said("--optimizer", "adam")
    assert "--max-train-steps must be a whole number, not 'many'" in said("--max-train-steps", "many")
    assert "device 'cuda:99' does not exist here" in said("--device", "cuda:99")
    assert "device 'gpu' does not exist here" in said("--device", "gpu")
    assert "device 'meta' does not exist here" in said("--device", "meta")
    assert "is not a pipeline directory" in said("--generator", str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{}")
    assert "does not name a pipeline class" in said("--generator", str(broken))
    (broken / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    assert "holds a AudioLDMPipeline, which is not supported" in said("--generator", str(broken))
    shutil.copytree(tiny, broken, dirs_exist_ok=True)
    weights = broken / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "could not be loaded" in said("--generator", str(broken))
    assert "--max-train-steps must be at least 1" in said("--max-train-steps", "0")
    assert "--train-batch-size must be at least 1" in said("--train-batch-size", "-3")
    (tmp_path / "prompts.txt").write_text("a ring\n" + "very " * 30 + "red ring\n")
    assert "prompt 2 of 2 has" in said()
    (tmp_path / "prompts.txt").write_text("")
    assert "has no prompts" in said()
    recipe.write_text("max_train_steps: [")
    assert "not valid YAML" in said()
    recipe.write_text("generater: scenes")
    assert "did you mean 'generator'" in said()


def test_a_wrong_output_is_refused(recipe, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    line = refused(capsys, ["train", str(recipe), "--output-dir", str(file), *FAST])
    assert "is a file; name a directory" in line
    line = refused(capsys, ["train", str(recipe), "--output-dir", "/proc/nowhere", *FAST])
    assert "cannot be written" in line


def test_generate_names_the_words_that_the_embedded_world_does_not_have(tmp_path, capsys):
    draw = ["generate", "a purple ring", "two squares and a Cat", "--device", "cpu", "--output-dir", str(tmp_path)]
    assert main(draw) == 0
    assert capsys.readouterr().err == "scenes does not know these words: cat\n"


def test_wrong_calls_are_refused(capsys, tmp_path, tiny, sd_pipeline):
    assert "did you mean 'train'" in refused(capsys, ["trian"])
    assert "cannot be read" in refused(capsys, ["train", str(tmp_path / "nowhere.yaml")])
    draw = ["generate", "--generator", tiny, "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert "give at least one prompt" in refused(capsys, draw)
    assert "prompt 1 of 1 is empty" in refused(capsys, [*draw, ""])
    assert "would be cut" in refused(capsys, [*draw, "red " * 40])
    assert "--seed must be from 0" in refused(capsys, [*draw, "a ring", "--seed", "-1"])
    assert "--num-inference-steps must be at least 1" in refused(capsys, [*draw, "x", "--num-inference-steps", "0"])
    assert "no adapter at" in refused(capsys, [*draw, "a ring", "--adapter", str(tmp_path / "none")])
    save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline(width=12)), rank=2), tmp_path / "wide")
    assert "does not fit" in refused(capsys, [*draw, "a ring", "--adapter", str(tmp_path / "wide")])
    own = refused(capsys, ["generate", "a ring", "--device", "cpu", "--adapter", str(tmp_path / "wide")])
    assert "does not fit 'scenes': the networks differ" in own
    weights = tmp_path / "wide" / "adapter_model.safetensors"
    save_adapter(LoRANoise(DiffusionGenerator(sd_pipeline()), rank=2), tmp_path / "wide")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a complete file of tensors" in refused(capsys, [*draw, "a ring", "--adapter", str(tmp_path / "wide")])
    assert not (tmp_path / "out").exists()
    assert "unknown flag '--sed'; did you mean '--seed'?" in refused(capsys, [*draw, "a ring", "--sed", "3"])
    assert "--seed must be a whole number, not 'three'" in refused(capsys, [*draw, "a ring", "--seed", "three"])
    assert "argument --seed: expected one argument" in refused(capsys, [*draw, "a ring", "--seed"])
    assert "--mixed-precision must be one of auto, no, bf16" in refused(capsys, [*draw, "--mixed-precision", "8"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipes/scenes.yaml", "--sed", "1"], "unknown flag '--sed'; did you mean '--seed'?"),
        (["generate", "a ring", "--num-images=2"], "did you mean '--num-images-per-prompt'?"),
    ],
)
def test_misspelt_flags_name_the_right_one(arguments, message, capsys):
    assert message in refused(capsys, arguments)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr("hypernoise.generators.registry.load_as", fail)
    assert main(["generate", "a ring", "--device", "cpu"]) == 2
    assert re.fullmatch("hypernoise: out of memory: train with --fit auto.* draw smaller .*\n", capsys.readouterr().err)
    error.args = ("something else",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="something else"):
            main(["generate", "a ring", "--device", "cpu"])


@pytest.mark.parametrize("height", ["50", "36"])
def test_a_size_that_the_generator_cannot_draw_is_one_line(height, tmp_path, capsys):
    flags = ["--height", height, "--width", "64", "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert main(["generate", "a ring", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
