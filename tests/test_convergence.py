"""Convergence to the kernel: the closed form, networks that follow it, and what is kept."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from scipy.linalg import expm

mpl.use("Agg")
import matplotlib.pyplot as plt

import rntk_dist as rd
from rntk_dist.experiments import convergence
from rntk_dist.experiments.convergence import CASES, Extent, Prediction
from rntk_dist.experiments.kept import kept_or

TINY = Extent((32, 128, 512), 4, (32, 512), 2, 30, 0.5)


@pytest.mark.slow
def test_errors_fall_like_the_root_of_the_width(tmp_path: Path) -> None:
    """Twelve networks a case: their slopes scatter by some 0.15, a wrong kernel's would be 0."""
    rows = convergence.kernel_errors(tmp_path, TINY)
    assert len(rows) == len(CASES) * 12
    slopes = convergence.slopes(rows)
    assert {row.case for row in slopes} == set(CASES)
    for row in slopes:
        assert row.low < -0.5 < row.high
        assert row.low < row.exponent < min(row.high, -0.2)
        assert row.networks == 12
    # All cases together: a fifth of a slope's scatter squared.
    assert abs(np.mean([row.exponent for row in slopes]) + 0.5) < 0.2
    axes = rd.plot.convergence(rows, convergence.laws(rows))
    assert axes.get_xlabel() == "width n"
    assert len(axes.get_legend().get_texts()) == len(CASES) + 1
    plt.close("all")


def test_the_prediction_is_the_closed_form() -> None:
    kernel, given = CASES["relu, last"], convergence.task()
    prediction = Prediction.of(kernel, given)
    everything = rd.Sequences.concatenate([given.train, given.test])
    theta, n, start = kernel(everything), len(given.train), np.linspace(-1, 1, 24)
    square, t = theta[:n, :n], 0.3
    gone = np.eye(n) - expm(-t * square)
    inner = np.linalg.solve(square, gone @ (given.targets - start[:n]))
    found = prediction.outputs(start, np.exp(-t * prediction.eigenvalues))
    np.testing.assert_allclose(found, start + theta[:, :n] @ inner, rtol=1e-9, atol=1e-9)
    one_step = prediction.outputs(start, 1 - 0.01 * prediction.eigenvalues)
    expected = start + 0.01 * theta[:, :n] @ (given.targets - start[:n])
    np.testing.assert_allclose(one_step, expected, rtol=1e-9, atol=1e-9)
    at_end = prediction.outputs(start, np.zeros(n))
    np.testing.assert_allclose(at_end[:n], given.targets)


@pytest.mark.slow
def test_wider_networks_follow_the_prediction_more_closely(tmp_path: Path) -> None:
    rows = convergence.courses(tmp_path, TINY)
    deviations = convergence.deviations(rows)
    assert len(deviations) == 2 * 2 * 2 * 2
    values = {
        width: [row[3] for row in convergence.by_width(deviations) if row[2] == width]
        for width in (32, 512)
    }
    assert max(values[512]) < 0.4
    # Of 16 times the width a quarter is expected; single networks scatter by half of that.
    assert np.linalg.norm(values[512]) < 0.6 * np.linalg.norm(values[32])
    first = [row for row in rows if row.step == 0]
    assert all(row.network == row.flow == row.descent for row in first)
    plt_file = tmp_path / "training.png"
    rd.plot.save_training(rows, deviations, plt_file)
    assert plt_file.stat().st_size > 10_000
    assert plt.get_fignums() == []


def test_what_is_kept_is_read_and_of_other_things_refused(tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / "a.json", []

    def compute() -> list[float]:
        calls.append(1)
        return [1 / 3]

    identity = {"kernel": {"sigma_w": 1.0}, "steps": (1, 2)}
    assert kept_or(path, identity, compute) == kept_or(path, identity, compute) == [1 / 3]
    assert len(calls) == 1
    with pytest.raises(rd.IdentityError, match=r"a\.json: keeps results of other steps: give"):
        kept_or(path, identity | {"steps": (1, 3)}, compute)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_is_killed_and_goes_on(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "rntk-dist"), "experiment", "convergence"]
    command += ["--quick", "--folder", str(tmp_path)]
    kept = tmp_path / "kept"

    def kept_files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(kept_files()) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = kept_files()
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    after = kept_files()
    assert before.items() <= after.items()
    assert "relu, per_step" in done.stdout
    quick = convergence.QUICK
    errors = rows_of(tmp_path / "kernel-errors.csv")
    assert len(errors) == len(CASES) * len(quick.widths) * quick.seeds
    row = errors[0]
    again = convergence.kernel_error(CASES[row["case"]], int(row["width"]), int(row["seed"]))
    assert float(row["error"]) == pytest.approx(again, rel=1e-4)
    assert {row["case"] for row in rows_of(tmp_path / "slopes.csv")} == set(CASES)
    assert len(rows_of(tmp_path / "training-deviations.csv")) == 2 * 2 * 2 * quick.trained_seeds
    for name in ("kernel-errors.png", "training.png"):
        assert (tmp_path / name).stat().st_size > 10_000
