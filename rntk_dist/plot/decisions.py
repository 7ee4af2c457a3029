"""Which time steps matter: profiles over sigma_w, and what a classifier decides by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rntk_dist.plot.style import COLOURS, new_axes, own_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rntk_dist.experiments.archive import DataSet
    from rntk_dist.experiments.sensitivity import Found, Profile

LOWEST = 1e-8
"""Where the axis of relative sensitivities ends; what is less is as good as nothing."""

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def profiles(found: Sequence[Profile], ax: Axes | None = None) -> Axes:
    """Mean ‖∂Θ / ∂x_t‖ over t relative to its largest, a line a kernel, on a logarithmic axis.

    Parameters
    ----------
    found : of `rntk_dist.experiments.sensitivity.profiles`
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, (5.5, 4))
    for place, each in enumerate(found):
        steps = np.arange(1, len(each.relative) + 1)
        axes.plot(
            steps,
            np.ma.masked_less(each.relative, LOWEST / 10),
            color=COLOURS[place % len(COLOURS)],
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.6,
            label=f"σ_w = {each.kernel.sigma_w:.4g}",
        )
    longest = max(len(each.relative) for each in found)
    axes.set(yscale="log", ylim=(LOWEST, 3), xlim=(0, longest + 1), xlabel="step t")
    axes.set(ylabel="mean ‖∂Θ / ∂xₜ‖ / its largest")
    axes.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8)
    return axes


def save_profiles(found: Sequence[Profile], path: str | Path) -> None:
    """A file of one picture with a panel for each activation."""
    activations = list(dict.fromkeys(each.kernel.activation for each in found))
    figure = own_figure((4.2 * len(activations), 3.8))
    axes = figure.subplots(1, len(activations), sharey=True, squeeze=False)[0]
    for panel, activation in zip(axes, activations, strict=True):
        profiles([each for each in found if each.kernel.activation == activation], panel)
        panel.set_title(activation)
        panel.label_outer()
    figure.savefig(path, dpi=150)


def save_decisions(found: Sequence[Found], data: DataSet, path: str | Path) -> None:
    """A file of one picture, a column a machine: the classes, what decides, and what suffices.

    Above the classes' mean curves with their quartiles; then the mean size of the derivative of the
    decision with respect to each step, by class; below the accuracy of machines that see a window
    alone, at its middle.
    """
    figure = own_figure((5.5 * len(found), 7.5))
    axes = figure.subplots(3, len(found), sharex=True, sharey="row", squeeze=False)
    for column, each in zip(axes.T, found, strict=True):
        _class_means(column[0], data)
        title = f"{each.name}: σ_w = {each.kernel.sigma_w:.3g}, accuracy {each.accuracy:.3f}"
        column[0].set_title(title, fontsize=10)
        _sizes(column[1], each)
        _windows(column[2], each)
        column[2].set_xlabel("step t")
        for panel in column:
            panel.label_outer()
    figure.savefig(path, dpi=150)


def _class_means(axes: Axes, data: DataSet) -> None:
    values = np.array([x[:, 0] for x in data.test])
    labels = np.asarray(data.test.labels)
    for colour, label in zip(COLOURS, np.unique(labels), strict=False):
        low, high = np.quantile(values[labels == label], (0.25, 0.75), axis=0)
        steps = np.arange(1, values.shape[1] + 1)
        mean = values[labels == label].mean(axis=0)
        axes.plot(steps, mean, color=colour, label=f"class {label}: mean, quartiles")
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_ylabel("value")
    axes.legend(frameon=False, fontsize=8)


def _sizes(axes: Axes, found: Found) -> None:
    labels = sorted({decision.label for decision in found.decisions})
    for place, label in enumerate(labels):
        sizes = _mean_sizes(found, label)
        steps = np.arange(1, len(sizes) + 1)
        style = _DASHES[place % len(_DASHES)]
        axes.plot(steps, sizes, color=COLOURS[place], linestyle=style, label=f"class {label}")
    axes.set_ylabel("mean |∂ decision / ∂xₜ|,\nrelative to its largest")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _mean_sizes(found: Found, label: str) -> NDArray[np.float64]:
    """Of a label's sequences, relative to the largest of all labels."""
    every = {d.label for d in found.decisions}
    means = {
        each: np.abs([d.slopes for d in found.decisions if d.label == each]).mean(axis=0)
        for each in every
    }
    relative: NDArray[np.float64] = means[label] / max(mean.max() for mean in means.values())
    return relative


def _windows(axes: Axes, found: Found) -> None:
    middles = [(window.first + window.last) / 2 for window in found.windows]
    accuracies = [window.accuracy for window in found.windows]
    axes.plot(middles, accuracies, color="black", marker="o", markersize=3)
    axes.axhline(found.accuracy, color=COLOURS[4], linestyle="--", label="the whole sequence")
    width = found.windows[0].last - found.windows[0].first + 1
    axes.set_ylabel(f"test accuracy on\n{width} steps around t")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
