"""The commands and Python blocks of the README and the docs run, shortened, on the embedded generator.

Left out are the lines that install and `make test` itself, which CI runs.
"""

import importlib.util
import re
import shlex
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

from experiments.base import main as run_experiment
from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.generators.registry import load_generator
from hypernoise.noise.lora import LoRANoise

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = ["--max-train-steps", "2", "--train-batch-size", "2"]
ONE = ["--count", "1", "--methods", "best-of-2"]
SHORTENED = {
    "quickstart": [*QUICK, "--judged", "1"],
    "train": QUICK,
    "generate": [],
    "evaluate": [*ONE, "--num-images-per-prompt", "1", "--num-inference-steps", "1"],
    "score": [],
    "diagnose": ["--noises", "8"],
}
EXPERIMENT = ["--judged", "1", "--noises", "1", "--device", "cpu"]
RUN = [*EXPERIMENT, "--seeds", "0", "--pictures", "64"]
EXPERIMENTS = {
    "redness": [*EXPERIMENT, "--seeds", "0", "--rates", "1", "--looks", "1"],
    "amortisation": RUN,
    "spectral": [*RUN, "--ks", "1", "--measured", "2", "--calls", "1"],
    "steps": [*RUN, "--inference-steps", "1", "2"],
    "ablations": [*RUN, "--ranks", "1"],
    "transfer": RUN,
    "coherence": ["--prompts", "1", "--noises", "2"],
    "modules": ["--weights", "1", "--updates", "2", "--lessons", "3", "--pictures", "2"],
    "failures": [*EXPERIMENT, "--noises", "2", "--updates", "1", "--modes", "discontinuous"],
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_hypernoise_command_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for line in commands(page):
        words = shlex.split(line)
        if words[:2] == ["hypernoise", "app"] or "--help" in words:
            continue  # the page serves until it is stopped; tests/commands/test_app.py drives it
        if words[:1] == ["hypernoise"]:
            assert main([*words[1:], *SHORTENED[words[1]], "--device", "cpu"]) == 0, line
        elif words[1:2] == ["-m"] and words[2].startswith("experiments.") and words[2] != "experiments.eyes":
            name = words[2].partition(".")[2]
            experiment = getattr(import_module(words[2]), name.capitalize())
            assert run_experiment(experiment, [*words[3:], *EXPERIMENTS[name]]) == 0, line
        else:
            assert words[0] in {"make", "pip", "python3", "python", "git", "mkdir"}, line
            if words[1:3][:1] == ["-m"]:
                assert importlib.util.find_spec(words[2]), line  # tests/dev and tests/experiments run them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "number"), [(page, i) for page in PAGES for i in range(len(blocks(page, "python")))], ids=str
)
def test_every_python_block_runs(page, number, tmp_path, monkeypatch):
    """The one download named is replaced by the embedded generator, and the adapter's path by a fresh one."""
    monkeypatch.chdir(tmp_path)
    save_adapter(LoRANoise(load_generator("scenes", device="cpu"), rank=2), tmp_path / "adapter")
    code = blocks(page, "python")[number]
    code = code.replace("stabilityai/sd-turbo", str(files("hypernoise").joinpath("scenes/weights/generator")))
    code = code.replace("path/of/an/adapter", str(tmp_path / "adapter"))
    exec(compile(code, f"{page.name} block {number}", "exec"), {})


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help by version")
def test_the_fields_are_those_that_help_prints(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert blocks(ROOT / "docs" / "fields.md", "text") == [capsys.readouterr().out]


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [line.split()[1] for line in commands(ROOT / "README.md") if line.startswith("make ")]
    assert named == ["quickstart", "test"]
    assert set(named) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_and_pictures_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
