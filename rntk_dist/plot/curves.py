"""What methods reach as one setting is varied: curves with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rntk_dist.plot.style import COLOURS, MARKERS, new_axes, own_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rntk_dist.experiments.snr import Summary
    from rntk_dist.experiments.synthetic import Sweep

_PANEL = (4.4, 3.4)
"""Inches of one sweep."""

_DASHES = ("-", "--", ":")
"""Of the variants of a method, which go by its name, a comma and more."""


def sweep_curves(points: Sequence[Summary], sweep: Sweep, ax: Axes | None = None) -> Axes:
    """Mean signal-to-noise ratio over the values of one sweep; bars are 95 % intervals.

    Methods of one name before a comma have one colour. Values stand at equal distances, each with
    all its methods side by side, so that no bar hides another.

    Parameters
    ----------
    points : sequence of Summary
        What `rntk_dist.experiments.snr.summaries` found; other sweeps' points are left out.
    sweep : Sweep
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, _PANEL)
    own = [point for point in points if point.sweep == sweep.name]
    looks = _looks(points)
    methods = [method for method in looks if any(point.method == method for point in own)]
    for i, method in enumerate(methods):
        shift = 0.3 * ((i + 0.5) / len(methods) - 0.5)
        curve = sorted((p for p in own if p.method == method), key=lambda p: p.value)
        axes.errorbar(
            [sweep.values.index(point.value) + shift for point in curve],
            [point.mean for point in curve],
            [point.half_width for point in curve],
            label=method,
            **looks[method],
        )
    axes.set_xticks(range(len(sweep.values)), [f"{value:g}" for value in sweep.values])
    axes.set_xlabel(sweep.axis)
    axes.set_ylabel("SNR of the prediction, dB")
    axes.set_title(sweep.name, fontsize=10)
    axes.grid(axis="y", color="0.9")
    return axes


def save_sweep_curves(points: Sequence[Summary], sweeps: Sequence[Sweep], path: str | Path) -> None:
    """Write a panel for each sweep to one file, of the format that its suffix names.

    Each panel has a scale of its own. Nothing is left open.
    """
    columns = 3 if len(sweeps) > 4 else min(len(sweeps), 2)
    rows = math.ceil(len(sweeps) / columns)
    figure = own_figure((_PANEL[0] * columns, _PANEL[1] * rows + 0.8))
    named: dict[str, Any] = {}
    for i, sweep in enumerate(sweeps, start=1):
        axes = sweep_curves(points, sweep, figure.add_subplot(rows, columns, i))
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _looks(points: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: the same in all sweeps."""
    bases: dict[str, list[str]] = {}
    for method in dict.fromkeys(point.method for point in points):
        variants = bases.setdefault(method.partition(",")[0], [])
        if method not in variants:
            variants.append(method)
    return {
        method: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": _DASHES[j % len(_DASHES)],
            "markerfacecolor": "white" if j % 2 else COLOURS[i % len(COLOURS)],
            "markersize": 5,
            "linewidth": 1.3,
            "capsize": 2,
        }
        for i, variants in enumerate(bases.values())
        for j, method in enumerate(_plain_first(variants))
    }


def _plain_first(variants: list[str]) -> list[str]:
    return sorted(variants, key=lambda method: "," in method)
