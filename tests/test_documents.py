"""README and user guide: every Python block runs, and of the README every command."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def slow_if_long(document: Path) -> object:
    # They start clusters, or have many blocks.
    long = document.name in {
        "estimators.md",
        "guide.md",
        "low_rank.md",
        "neighbors.md",
        "README.md",
        "solvers.md",
    }
    return pytest.param(document, marks=[pytest.mark.slow] if long else [], id=document.name)


@pytest.mark.parametrize("document", [slow_if_long(path) for path in DOCUMENTS])
def test_python_blocks_run_in_order(document: Path, tmp_path: Path) -> None:
    """Each as a script of its own, as a reader would, in one folder."""
    for number, block in enumerate(blocks(document, "python")):
        script = tmp_path / f"block{number}.py"
        script.write_text(block)
        done = subprocess.run(
            [sys.executable, "-W", "error", script.name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{document.name}, block {number}:\n{block}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    for block in blocks(document, "bash"):
        for target in re.findall(r"^make ([a-z-]+)", block, re.M):
            done = subprocess.run(
                ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_relative_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.slow
def test_a_newcomer_reads_the_readme_from_top_to_end(tmp_path: Path) -> None:
    """Its blocks in order in one folder, what is begun in the background included.

    `make` and `pip install` need the repository, and an environment of their own.
    """
    found = re.findall(r"^```(python|bash)\n(.*?)^```", DOCUMENTS[0].read_text(), re.M | re.S)
    own = [(language, block) for language, block in found if not block.startswith("make ")]
    assert {language for language, _ in own} == {"python", "bash"}
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number, (language, block) in enumerate(own):
        script = tmp_path / f"block{number}.py"
        script.write_text(block)
        command = [sys.executable] if language == "python" else ["bash", "-ex"]
        with (tmp_path / "log").open("w+") as log:
            process = subprocess.Popen(
                [*command, script.name],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
