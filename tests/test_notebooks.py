"""The notebooks run from top to bottom, each in less than five minutes of two cores."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LANGUAGES = ("en", "de", "no", "sl", "et", "nl")
SECONDS = 300
"""Of computing that a notebook may take, on however many cores."""
PATIENCE = 1800
"""Seconds for each cell, on a machine that has other things to do."""


def cells(path, kind):
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_headings_and_prompts_are_in_six_languages_and_outputs_are_not_kept(path):
    title, *rest = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    assert title.splitlines()[1].count(" · ") == len(LANGUAGES) - 2, title
    headings = [line for text in rest for line in text.splitlines() if line.startswith("## ")]
    assert headings
    assert all(heading.count(" · ") == len(LANGUAGES) - 1 for heading in headings), headings
    assert headings[-1].startswith("## Exercises")
    code = cells(path, "code")
    assert all(f'"{language}": ' in "".join(map("".join, (cell["source"] for cell in code))) for language in LANGUAGES)
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_files_of_the_repository_that_a_notebook_names_are_there(path):
    text = "".join("".join(cell["source"]) for cell in [*cells(path, "markdown"), *cells(path, "code")])
    for name in re.findall(r"\.\./[\w./-]+\w", text):
        assert (path.parent / name).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_whole_and_shows_pictures(path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra notebooks")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
    pytest.importorskip("ipykernel", reason="needs the extra notebooks")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell("import time\ntime.process_time()"))
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()
    assert float(notebook.cells[-1].outputs[0].data["text/plain"]) < SECONDS
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert not [output for output in outputs if output.get("name") == "stderr"]
