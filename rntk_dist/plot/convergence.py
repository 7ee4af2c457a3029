"""Finite networks against their kernel: errors over the width, and outputs in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rntk_dist.plot.style import COLOURS, MARKERS, new_axes, own_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rntk_dist.experiments.convergence import Course, Deviation, KernelError
    from rntk_dist.experiments.power_law import PowerLaw

type Float64 = NDArray[np.float64]

SHOWN = 3
"""Sequences of each part whose outputs are drawn: more would hide each other."""


def convergence(
    rows: Sequence[KernelError], laws: Mapping[str, PowerLaw], ax: Axes | None = None
) -> Axes:
    """Errors of networks' own tangent kernels over their width, with a fitted power law a case.

    A faint point is a network; the strong ones are geometric means over the networks of a width.
    The legend says the fitted exponent and its confidence interval, the dashed line has -1/2.

    Parameters
    ----------
    rows : of `rntk_dist.experiments.convergence.kernel_errors`
    laws : of the same rows, by case: `rntk_dist.experiments.convergence.laws`
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, (7, 4.5))
    for place, (case, law) in enumerate(laws.items()):
        own = [row for row in rows if row.case == case]
        label = f"{case}: {law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})"
        _points(axes, [r.width for r in own], [r.error for r in own], place, label)
        ends = np.array([min(r.width for r in own), max(r.width for r in own)])
        axes.plot(ends, law(ends), color=COLOURS[place], linewidth=1)
    _width_axis(axes, [row.width for row in rows])
    _half_power(axes, [row.width for row in rows], [row.error for row in rows])
    axes.set(ylabel="relative error of the tangent kernel")
    axes.legend(frameon=False, fontsize=8, title="slope (95 % interval)", loc="lower left")
    return axes


def save_convergence(
    rows: Sequence[KernelError], laws: Mapping[str, PowerLaw], path: str | Path
) -> None:
    """`convergence` as a file, of the format that its suffix names."""
    figure = own_figure((7, 4.8))
    convergence(rows, laws, figure.add_subplot())
    figure.savefig(path, dpi=150)


def deviation(rows: Sequence[Deviation], ax: Axes | None = None) -> Axes:
    """How far trained networks are from the kernel's prediction, over their width.

    Steps of the same size are compared, so that the step is not to blame: `from_descent`.

    Parameters
    ----------
    rows : of `rntk_dist.experiments.convergence.deviations`
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, (6, 4.5))
    groups = dict.fromkeys((row.case, row.part) for row in rows)
    for place, (case, part) in enumerate(groups):
        own = [row for row in rows if (row.case, row.part) == (case, part)]
        widths, sizes = [r.width for r in own], [r.from_descent for r in own]
        _points(axes, widths, sizes, place, f"{case}: {part}", joined=True)
    _width_axis(axes, [row.width for row in rows])
    _half_power(axes, [row.width for row in rows], [row.from_descent for row in rows])
    axes.set(ylabel="rms deviation / rms target")
    axes.legend(frameon=False, fontsize=8)
    return axes


def courses(rows: Sequence[Course], axes: Axes) -> Axes:
    """Outputs of one network while it is trained: points, on the lines that are predicted.

    Parameters
    ----------
    rows : of one case, width and seed
    axes : matplotlib Axes
    """
    for place, (part, index) in enumerate(_shown(rows)):
        own = [row for row in rows if (row.part, row.sequence) == (part, index) and row.step > 0]
        times, colour = [row.time for row in own], COLOURS[place]
        line, face = ("-", colour) if part == "train" else ("--", "white")
        axes.plot(times, [row.descent for row in own], line, color=colour, linewidth=1.3)
        axes.plot(
            times,
            [row.network for row in own],
            linestyle="none",
            marker=MARKERS[place % SHOWN],
            color=colour,
            markerfacecolor=face,
            markersize=4.5,
        )
    axes.set(xscale="log", xlabel="time, in 1 / largest eigenvalue", ylabel="output")
    return axes


def save_training(
    rows: Sequence[Course], deviations: Sequence[Deviation], path: str | Path
) -> None:
    """A file of one picture: courses of the narrowest and the widest network, and deviations.

    A row of panels for each case.
    """
    cases = list(dict.fromkeys(row.case for row in rows))
    widths = sorted({row.width for row in rows})
    figure = own_figure((12, 3.6 * len(cases)))
    grid = figure.add_gridspec(len(cases), 3)
    for i, case in enumerate(cases):
        left = None
        for j, width in enumerate((widths[0], widths[-1])):
            left = panel = figure.add_subplot(grid[i, j], sharey=left)
            own = [r for r in rows if (r.case, r.width, r.seed) == (case, width, 0)]
            courses(own, panel).set_title(f"{case}, width {width}", fontsize=10)
        _explain(left)
        deviation([row for row in deviations if row.case == case], figure.add_subplot(grid[i, 2]))
    figure.savefig(path, dpi=150)


def _shown(rows: Sequence[Course]) -> list[tuple[str, int]]:
    found = dict.fromkeys((row.part, row.sequence) for row in rows)
    return [key for part in ("train", "test") for key in found if key[0] == part and key[1] < SHOWN]


def _explain(axes: Axes | None) -> None:
    """What lines and points of `courses` are."""
    if axes is None:
        return
    for line, face, part in (("-", "black", "training"), ("--", "white", "other")):
        axes.plot(
            [], [], line, color="black", marker="o", markerfacecolor=face, markersize=4.5,
            label=f"{part} sequence: line predicted, points network",
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))  # room for it


def _points(
    axes: Axes,
    widths: Sequence[int],
    values: Sequence[float],
    place: int,
    label: str,
    *,
    joined: bool = False,
) -> None:
    """Each network, and the geometric mean of each width."""
    colour, marker = COLOURS[place], MARKERS[place % len(MARKERS)]
    axes.plot(widths, values, marker, color=colour, markersize=3, alpha=0.25)
    each, means = _geometric_means(widths, values)
    line = "-" if joined else "none"
    axes.plot(each, means, marker, color=colour, markersize=6, linestyle=line, label=label)


def _geometric_means(widths: Sequence[int], values: Sequence[float]) -> tuple[Float64, Float64]:
    x, y = np.array(widths, float), np.log(values)
    each = np.unique(x)
    return each, np.exp([y[x == width].mean() for width in each])


def _width_axis(axes: Axes, widths: Sequence[int]) -> None:
    each = sorted(set(widths))
    axes.set(xscale="log", yscale="log", xlabel="width n")
    axes.set_xticks(each, [str(width) for width in each])
    axes.set_xticks([], minor=True)


def _half_power(axes: Axes, widths: Sequence[int], values: Sequence[float]) -> None:
    """A dashed line of slope -1/2 above the points."""
    x, y = np.array(widths, float), np.array(values)
    ends = np.array([x.min(), x.max()])
    height = float(np.quantile(y * x**0.5, 0.98))
    axes.plot(ends, height * ends**-0.5, "--", color="black", linewidth=1, label="slope -1/2")
