"""Which methods differ: the critical-difference diagram."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rntk_dist.plot.style import COLOURS, new_axes, own_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rntk_dist.experiments.statistics import Comparison

_LINE = 1.0
"""Height of a line of text in the diagram's own units; the axis of ranks lies at 0, text below."""


def critical_difference(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Mean ranks of methods on one axis, the best at the left; bars join those not told apart.

    Methods of the better half are named at the left, the others at the right. After Nemenyi's test
    the critical difference is drawn to scale above the axis.

    Parameters
    ----------
    comparison : Comparison
        What `rntk_dist.experiments.statistics.compare` found.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, _size(comparison))
    low, high = 1, len(comparison.methods)
    _scale(axes, low, high)
    _bars(axes, comparison)
    _names(axes, comparison, _top(comparison), low, high)
    if comparison.difference is not None:
        _difference(axes, comparison.difference, low)
    axes.set_ylim(_bottom(comparison), -2.6 if comparison.difference is not None else -1.6)
    axes.set_xlim(low - 0.5 * (high - low), high + 0.5 * (high - low))
    axes.set_axis_off()
    axes.set_title(_title(comparison), fontsize=10)
    return axes


def save_critical_difference(comparison: Comparison, path: str | Path) -> None:
    """Write the diagram to a file, of the format that its suffix names; nothing is left open."""
    figure = own_figure(_size(comparison))
    critical_difference(comparison, figure.add_subplot())
    figure.savefig(path, dpi=150)


def _size(comparison: Comparison) -> tuple[float, float]:
    """In inches, so that every method has a line of its own."""
    return 9.0, 1.5 + 0.3 * _bottom(comparison)


def _bottom(comparison: Comparison) -> float:
    return _top(comparison) + _LINE * math.ceil(len(comparison.methods) / 2)


def _top(comparison: Comparison) -> float:
    """Where names begin, below the bars of all groups."""
    return 0.6 + 0.35 * len(comparison.groups)


def _title(comparison: Comparison) -> str:
    p = comparison.friedman.p
    test = "Wilcoxon–Holm" if comparison.difference is None else "Nemenyi"
    size = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    sets = f"mean rank over {comparison.sets} data sets (1 is best)"
    return f"{sets}; Friedman {size}; {test}, α = {comparison.alpha:g}"


def _scale(axes: Axes, low: int, high: int) -> None:
    """The axis of ranks; every tick is named where they are few."""
    axes.plot([low, high], [0, 0], color="black", linewidth=1.2)
    every = math.ceil((high - low) / 10)
    for rank in range(low, high + 1):
        axes.plot([rank, rank], [0, -0.3], color="black", linewidth=1.2)
        if (rank - low) % every == 0:
            axes.text(rank, -0.45, str(rank), ha="center", va="bottom", fontsize=9)


def _bars(axes: Axes, comparison: Comparison) -> None:
    for level, (first, last) in enumerate(comparison.groups):
        ends = comparison.ranks[first], comparison.ranks[last]
        margin = 0.004 * len(comparison.methods)
        axes.plot(
            [ends[0] - margin, ends[1] + margin],
            [0.35 * (level + 1)] * 2,
            color=COLOURS[4],
            linewidth=3.5,
            solid_capstyle="round",
        )


def _names(axes: Axes, comparison: Comparison, top: float, low: int, high: int) -> None:
    """A line from each mean rank down and out to its name, so that no two cross."""
    k, half = len(comparison.methods), math.ceil(len(comparison.methods) / 2)
    for i, (method, rank) in enumerate(zip(comparison.methods, comparison.ranks, strict=True)):
        left = i < half
        height = top + _LINE * (i if left else k - 1 - i)
        end = low - 0.03 * (high - low) if left else high + 0.03 * (high - low)
        axes.plot([rank, rank, end], [0, height, height], color="0.35", linewidth=0.9)
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        gap = (-0.01 if left else 0.01) * (high - low)
        side = "right" if left else "left"
        axes.text(end + gap, height, text, ha=side, va="center", fontsize=9)


def _difference(axes: Axes, difference: float, low: int) -> None:
    ends = [low, low + difference]
    axes.plot(ends, [-1.7, -1.7], color=COLOURS[0], linewidth=1.5, marker="|", markersize=7)
    text = f"critical difference {difference:.2f}"
    axes.text(sum(ends) / 2, -1.95, text, ha="center", va="bottom", fontsize=9, color=COLOURS[0])
