"""The curves of a sweep stand where the summaries say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

import rntk_dist as rd
from rntk_dist.experiments.sinusoids import Problem
from rntk_dist.experiments.snr import Summary
from rntk_dist.experiments.synthetic import Sweep

SIZE = Sweep("size", Problem(), "training sequences", "size", (10, 20, 40))
NOISE = Sweep("noise", Problem(), "noise", "noise", (0.0, 0.5))
METHODS = ("RNTK last", "RBF", "RBF, zeros after")
POINTS = [
    Summary(sweep.name, value, method, mean=10.0 * i + value, standard_error=1.0, n=200)
    for sweep in (SIZE, NOISE)
    for value in sweep.values
    for i, method in enumerate(METHODS)
]


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def test_a_curve_has_the_means_and_bars_of_its_sweep() -> None:
    axes = rd.plot.sweep_curves(POINTS, SIZE)
    assert axes.get_xlabel() == "training sequences"
    assert axes.get_ylabel() == "SNR of the prediction, dB"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "20", "40"]
    names = axes.get_legend_handles_labels()[1]
    assert tuple(names) == METHODS
    for i, container in enumerate(axes.containers):
        line, _, (bars,) = container
        assert np.allclose(line.get_ydata(), [10 * i + 10, 10 * i + 20, 10 * i + 40])
        assert np.allclose(line.get_xdata(orig=False), [0, 1, 2], atol=0.2)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        assert np.allclose(ends[:, 1] - ends[:, 0], 2 * 1.972, atol=0.001)  # Student's, 199


def test_variants_of_a_method_share_its_colour_and_not_its_dashes() -> None:
    axes = rd.plot.sweep_curves(POINTS, NOISE, plt.figure().add_subplot())
    rntk, rbf, padded = (container[0] for container in axes.containers)
    assert rbf.get_color() == padded.get_color() != rntk.get_color()
    assert rbf.get_linestyle() != padded.get_linestyle()
    shifts = [line.get_xdata()[0] for line in (rntk, rbf, padded)]
    assert len(set(shifts)) == 3
    assert max(np.abs(shifts)) < 0.5


def test_all_sweeps_go_to_one_file(tmp_path: Path) -> None:
    rd.plot.save_sweep_curves(POINTS, [SIZE, NOISE], tmp_path / "two.png")
    image = plt.imread(tmp_path / "two.png")
    assert image.shape[1] > 2 * 150 * 4  # two panels side by side
    assert image.std() > 0.01
    assert not plt.get_fignums()
