"""The notebooks: stored without output, of public names alone, and each runs from end to end."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import rntk_dist as rd

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(notebook: Path) -> None:
    for cell in code_cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert cell["metadata"] == {}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_public_names_are_used(notebook: Path) -> None:
    """And, where a notebook is about an experiment, what that is made of."""
    source = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
    imports = re.findall(r".*rntk_dist.*", source)
    others = [line for line in imports if line != "import rntk_dist as rd"]
    assert len(imports) == 1 + len(others)
    assert all(line.startswith("from rntk_dist.experiments") for line in others)
    used = set(re.findall(r"\brd\.(\w+)", source))
    assert used
    assert used <= set(rd.__all__)
    assert set(re.findall(r"\brd\.plot\.(\w+)", source)) <= set(rd.plot.__all__)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbmake.nb_run import NotebookRun  # takes a second, which the fast tests need not wait

    # What a notebook leaves in temporary folders, and what Jupyter does, goes with the test's.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    done = NotebookRun(Path(shutil.copy(notebook, tmp_path)), default_timeout=600).execute()
    assert done.error is None, done.error.trace
    outputs = [output for cell in done.nb.cells for output in cell.get("outputs", [])]
    warned = [out.text for out in outputs if out.get("name") == "stderr" and "Warning" in out.text]
    assert not warned
    assert any("image/png" in out.get("data", {}) for out in outputs), "there is a picture"
    assert any("rntk" in out.get("data", {}).get("text/html", "") for out in outputs)
    deadline = time.monotonic() + 20
    while left := processes_in(tmp_path):
        assert time.monotonic() < deadline, f"processes are left: {left}"
        time.sleep(0.2)


def processes_in(folder: Path) -> list[str]:
    """The command lines of processes that name the folder or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            works_in = os.readlink(process / "cwd")
        except OSError:  # gone meanwhile
            continue
        if works_in.startswith(str(folder)) or str(folder) in command:
            found.append(command)
    return found
