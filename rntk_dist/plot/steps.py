"""Which time steps a kernel heeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.rntk import RNTK, Kind
from rntk_dist.plot.style import COLOURS, new_axes
from rntk_dist.sequences import Sequences

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sensitivity(
    kernel: RNTK,
    X: Any,
    Y: Any,
    ax: Axes | None = None,
    *,
    kind: Kind = "ntk",
    label: str | None = None,
    relative: bool = False,
) -> Axes:
    """How much k(x, y) changes with each step of x: || d k(x, y) / d x_t || over t.

    The line is the median over all pairs of X and Y, the band reaches from the first to the third
    quartile. A second call with the same axes compares kernels or classes. Each of the n m pairs
    costs a sweep forward and back on one core, some 0.1 s for 150 steps: a few of each are enough.

    Parameters
    ----------
    kernel : RNTK
    X, Y : Sequences, or anything `Sequences.from_arrays` takes
        n sequences of one length T, and m of any lengths; different samples.
    ax : matplotlib Axes, optional
    kind : {"ntk", "nngp"}
    label : str, optional
        The curve's name in a legend.
    relative : bool
        Divide each pair's curve by its mean, so that kernels of other sizes can be compared.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The sequences of X differ in length, or in features from those of Y.
    """
    moved, fixed = Sequences.from_arrays(X), Sequences.from_arrays(Y)
    if not moved.equal_length:
        low, high = moved.lengths.min(), moved.lengths.max()
        raise ValueError(
            f"the sequences of X have {low} to {high} steps, and a curve has one length: "
            "draw sequences of one length together"
        )
    kernel.check_sequences(moved, fixed)
    curves = _curves(kernel, moved, fixed, kind, relative)
    axes = new_axes(ax, (6.5, 3.5))
    _draw(axes, curves, label)
    size = "‖∂k(x, y) / ∂xₜ‖"
    axes.set(xlabel="step t of x", ylabel=f"{size}, relative to its mean" if relative else size)
    return axes


def _curves(
    kernel: RNTK, X: Sequences, Y: Sequences, kind: Kind, relative: bool
) -> NDArray[np.float64]:
    """A row of T norms for each pair."""
    rows: NDArray[np.float64] = np.array(
        [kernel.sensitivity(x, y, kind=kind) for x in X for y in Y]
    )
    if not relative:
        return rows
    mean = rows.mean(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(rows, mean, out=np.zeros_like(rows), where=mean > 0)
    return shares


def _draw(axes: Axes, curves: NDArray[np.float64], label: str | None) -> None:
    colour = COLOURS[len(axes.lines) % len(COLOURS)]
    steps = np.arange(1, curves.shape[1] + 1)
    low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
    axes.plot(steps, middle, color=colour, label=label, linewidth=1.5)
    if len(curves) > 1:
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_ylim(bottom=0, auto=True)  # the top is free for the next curve
    if label is not None:
        axes.legend(frameon=False)
