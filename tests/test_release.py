"""The released package: the wheel, its metadata, and that it runs outside the repository."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from hypernoise.version import __version__
from tests.test_house import ALL_IMPORTS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=! ]", requirement)[0].lower().replace("_", "-")


def test_everything_imported_is_a_declared_dependency():
    """In the core or in an extra, except for what a dependency itself requires."""
    requirements = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {name_of(one) for group in requirements for one in group} | {"starlette"}  # gradio's web framework
    of = packages_distributions()
    imported = {name.partition(".")[0] for names in ALL_IMPORTS.values() for name in names}
    third = imported - set(sys.stdlib_module_names) - {"hypernoise"}
    assert {name for name in third if not {name_of(own) for own in of.get(name, [name])} & declared} == set()
    assert {"torch", "diffusers", "gradio"} <= third


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert (citation["title"], citation["version"]) == (PROJECT["name"], __version__)
    assert citation["license"] == PROJECT["license"]
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    call = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(call, check=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_is_small_and_says_what_it_is(wheel):
    assert wheel.name == f"hypernoise-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size <= 10e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = Parser().parsestr(archive.read(metadata).decode())
    assert {name.partition("/")[0] for name in names} == {"hypernoise", metadata.partition("/")[0]}
    assert {"hypernoise/py.typed", "hypernoise/scenes/weights/adapter/hypernoise.json"} <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".pt", ".pth"))]
    for field in (
        "Summary",
        "Author",
        "License-Expression",
        "License-File",
        "Requires-Python",
        "Project-URL",
        "Keywords",
    ):
        assert said[field], field
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload().startswith("# hypernoise")
    assert len(said.get_all("Classifier")) > 5
    assert {"app", "dev"} <= set(said.get_all("Provides-Extra"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quickstart_runs_from_the_wheel_outside_the_repository(wheel, tmp_path):
    """In an environment of its own, which sees this one's packages except the editable install: Python does not read
    the .pth files of a folder that itself comes from a .pth file."""
    fresh, work = tmp_path / "fresh", tmp_path / "work"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / "bin" / "python"
    (site,) = fresh.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    call = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--ignore-installed"]
    subprocess.run([*call, "--no-deps", wheel], check=True, env=environment, cwd=work)

    def run(*words):
        call = [fresh / "bin" / "hypernoise", *words]
        return subprocess.run(call, check=True, env=environment, cwd=work, capture_output=True, text=True, timeout=900)

    where = [python, "-c", "import hypernoise; print(hypernoise.__file__)"]
    found = subprocess.run(where, check=True, env=environment, cwd=work, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(fresh)
    assert run("--version").stdout.strip() == __version__
    run("quickstart", "--max-train-steps", "2", "--train-batch-size", "2", "--judged", "1", "--device", "cpu")
    summary = json.loads((work / "runs/quickstart/summary.json").read_text())
    assert [row["method"] for row in summary["results"]] == ["plain", "hypernoise"]
    assert (work / "runs/quickstart/before_after.png").is_file()
