"""The critical-difference diagram says what the comparison found."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

import rntk_dist as rd
from rntk_dist.experiments.statistics import Comparison, Friedman

FOUND = Comparison(
    methods=("best", "good", "poor", "worst"),
    ranks=(1.25, 2.0, 3.0, 3.75),
    groups=((0, 1), (1, 2)),
    sets=20,
    alpha=0.05,
    friedman=Friedman(12.0, 0.007),
)


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def horizontal(axes: plt.Axes, colour: str) -> list[list[float]]:
    """The ends of the lines of a colour."""
    return [list(line.get_xdata()) for line in axes.lines if line.get_color() == colour]


def test_ranks_names_and_groups_are_drawn() -> None:
    axes = rd.plot.critical_difference(FOUND)
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == {
        "1",
        "2",
        "3",
        "4",
        "best  1.25",
        "good  2.00",
        "3.00  poor",
        "3.75  worst",
    }
    assert texts["best  1.25"].get_ha() == "right"
    assert texts["3.00  poor"].get_ha() == "left"
    bars = horizontal(axes, rd.plot.style.COLOURS[4])
    assert np.allclose(bars, [[1.25, 2.0], [2.0, 3.0]], atol=0.05)
    starts = [x[0] for x in horizontal(axes, "0.35")]
    assert starts == list(FOUND.ranks)
    title = axes.get_title()
    assert title.startswith("mean rank over 20 data sets (1 is best); Friedman p = 0.007; Wilcoxon")


def test_names_do_not_stand_on_each_other_nor_leave_the_figure() -> None:
    methods = tuple(f"a method of a long name, {i}" for i in range(11))
    ranks = tuple(np.linspace(3.0, 9.0, 11).tolist())
    many = Comparison(methods, ranks, ((0, 10),), 60, 0.05, Friedman(3.0, 0.4), difference=1.9)
    axes = rd.plot.critical_difference(many)
    figure = axes.get_figure()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_nemenyis_difference_is_drawn_to_scale_in_the_axes_given() -> None:
    axes = plt.figure().add_subplot()
    found = Comparison(**(FOUND.__dict__ | {"difference": 1.1, "friedman": Friedman(50.0, 1e-9)}))
    assert rd.plot.critical_difference(found, ax=axes) is axes
    assert np.allclose(horizontal(axes, rd.plot.style.COLOURS[0]), [[1.0, 2.1]])
    assert "critical difference 1.10" in [text.get_text() for text in axes.texts]
    assert "Friedman p < 0.001; Nemenyi, α = 0.05" in axes.get_title()
