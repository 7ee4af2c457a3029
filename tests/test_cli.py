"""The command line as a user runs it: real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "rntk-dist"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


def test_version_and_help(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("rntk_dist ")
    assert "demo" in run("--help", cwd=tmp_path).stdout


def test_demo_classifies_and_draws_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("sktime", reason="the demo's data sets come inside sktime")
    first = run("demo", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "rntk-demo"
    for name in ("GunPoint", "JapaneseVowels"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}  train" in first.stdout
    accuracies = [line for line in first.stdout.splitlines() if "RNTK-SVM" in line]
    assert len(accuracies) == 2
    assert all(float(line.split("│")[2]) > 0.93 for line in accuracies)
    chunks = {path: path.stat().st_mtime_ns for path in folder.rglob("gram/c/*/*")}
    assert len(chunks) == 12
    second = run("demo", cwd=tmp_path)
    assert [line for line in second.stdout.splitlines() if "RNTK-SVM" in line] == accuracies
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("gram/c/*/*")} == chunks


def test_demo_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "rntk-demo").write_text("a file is in the way")
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "rntk-demo" in done.stderr
