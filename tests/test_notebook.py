"""docs/quickstart.ipynb runs from top to bottom, with the results its text describes."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    client.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    plain, improved, trained = [output.data["image/png"] for output in outputs if "data" in output]
    assert plain != improved
    assert trained != improved
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert [line.split()[1] for line in printed.splitlines()] == ["1", "6", "11", "16"]
    assert not list(tmp_path.iterdir())
