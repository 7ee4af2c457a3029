"""Which steps matter: the paper's figure, and what a machine decides by."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rntk_dist as rd
from rntk_dist.experiments import sensitivity
from rntk_dist.experiments.archive import DataSet

KERNEL = rd.RNTK(sigma_b=0.1, readout="per_step", bidirectional=True, normalize=True)


def two_classes(n: int, seed: int, steps: int = 34) -> rd.Sequences:
    """Noise, with a bump on steps 11 to 14 in the second class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    values = 0.3 * rng.normal(size=(n, steps))
    values[:, 10:14] += 2.0 * labels[:, None]
    return rd.Sequences.from_arrays(values, labels)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return DataSet("Bumps", two_classes(16, 0), two_classes(10, 1))


def test_slopes_are_those_of_the_decision(data: DataSet) -> None:
    machine = sensitivity.fitted(KERNEL, data.train)
    (slopes,) = sensitivity.decision_slopes(KERNEL, machine, data, np.array([3]))
    x, step = data.test[3][:, 0], 1e-5
    moved = [x + sign * step * row for sign in (1, -1) for row in np.eye(len(x))]
    ends = machine.decision_function(KERNEL(moved, data.train)).reshape(2, -1)
    np.testing.assert_allclose(slopes, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_the_bump_decides(data: DataSet, tmp_path: Path) -> None:
    found = sensitivity.ask("bumps", KERNEL, data, per_class=2, every=2)
    assert found.accuracy == 1.0
    assert [d.sequence for d in found.decisions] == [0, 1, 2, 3]
    for decision in found.decisions:
        assert (decision.value > 0) == (decision.label == "1")
    sizes = np.abs([d.slopes for d in found.decisions]).mean(axis=0)
    assert sizes[10:14].mean() > 2 * np.delete(sizes, range(10, 14)).mean()
    assert [(w.first, w.last) for w in found.windows] == [(1, 30), (3, 32), (5, 34)]
    assert all(window.accuracy > 0.8 for window in found.windows)
    rows = sensitivity.decision_rows([found])
    assert len(rows) == 2 * 34
    own = [d.slopes[4] for d in found.decisions if d.label == "1"]
    row = next(r for r in rows if (r.label, r.step) == ("1", 5))
    assert row.mean_slope == pytest.approx(np.mean(own))
    assert row.mean_size == pytest.approx(np.abs(own).mean())
    rd.plot.save_decisions([found], data, tmp_path / "decisions.png")
    assert (tmp_path / "decisions.png").stat().st_size > 10_000


def test_what_was_asked_is_kept(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "MACHINES", {"a, b": KERNEL})
    first = sensitivity.decided(tmp_path, data, per_class=1, every=4)
    monkeypatch.setattr(sensitivity, "ask", None)
    assert sensitivity.decided(tmp_path, data, per_class=1, every=4) == first
    with pytest.raises(rd.IdentityError, match="other extent"):
        sensitivity.decided(tmp_path, data, per_class=2, every=4)


def test_data_that_the_picture_is_not_for_are_refused(data: DataSet, tmp_path: Path) -> None:
    three = replace(data, train=replace(data.train, labels=np.arange(16) % 3))
    with pytest.raises(ValueError, match=r"Bumps has 3 classes and 34 to 34 steps: the picture"):
        sensitivity.decided(tmp_path, three)


def test_profiles_are_relative_to_their_largest(tmp_path: Path) -> None:
    relative = sensitivity.profile(rd.RNTK(sigma_w=1.0), 3, steps=12)
    assert max(relative) == relative[-1] == 1.0
    assert relative[0] < 0.05
    found = sensitivity.Profile(rd.RNTK(sigma_w=1.0), 3, tuple(relative))
    rows = sensitivity.profile_rows([found])
    assert [row.step for row in rows] == list(range(1, 13))
    rd.plot.save_profiles([found], tmp_path / "profiles.png")
    assert (tmp_path / "profiles.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_finds_the_papers_figure(tmp_path: Path) -> None:
    pytest.importorskip("sktime", reason="GunPoint comes inside sktime")
    command = [str(Path(sys.executable).parent / "rntk-dist"), "experiment", "sensitivity"]
    command += ["--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "profiles.csv").open(newline="") as file:
        relative = {
            (row["activation"], float(row["sigma_w"]), int(row["step"])): float(row["relative"])
            for row in csv.DictReader(file)
        }
    # Measured on other pairs. The mean of 10 heavy-tailed values scatters by half of itself, and
    # the smallest are products of 99 factors.
    for (activation, sigma_w), expected in {
        ("relu", 1.33): (9e-6, 4e-3, 1.0),
        ("relu", 2**0.5): (0.52, 0.56, 0.46),
        ("relu", 1.5): (1.0, 2e-2, 4e-5),
        ("erf", 1.0): (0.0, 0.0, 1.0),
    }.items():
        found = [relative[activation, sigma_w, step] for step in (1, 50, 100)]
        for value, other in zip(found, expected, strict=True):
            assert other / 3 - 1e-12 <= value <= 3 * other + 1e-12
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.json")}
    assert len(kept) == len(sensitivity.kernels()) + len(sensitivity.MACHINES)
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for name in ("profiles.png", "decisions.png"):
        assert (tmp_path / name).stat().st_size > 10_000
