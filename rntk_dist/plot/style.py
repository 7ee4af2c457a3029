"""What the pictures have in common: new axes, colours that all readers tell apart, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.gram import Gram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Okabe and Ito's, but for the yellow, which is too pale for a line on white."""

MARKERS = ("o", "^", "s", "D", "v", "P")
"""A second sign of a class, and with the colours enough for 42 of them."""

MISSING = "#D9D9D9"


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new pyplot figure of this size in inches.

    Raises ModuleNotFoundError without matplotlib.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    axes: Axes = plt.subplots(figsize=size, layout="constrained")[1]
    return axes


def missing_matplotlib() -> ModuleNotFoundError:
    """The error that says what to install."""
    return ModuleNotFoundError("pictures need matplotlib: pip install 'rntk_dist[plot]'")


def own_figure(size: tuple[float, float]) -> Figure:
    """A figure that pyplot does not know: nothing global is opened, nothing must be closed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    return Figure(figsize=size, layout="constrained")


def colour_bar(axes: Axes, image: Any, label: str) -> None:
    """A scale of colours beside the axes."""
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=axes, label=label, fraction=0.046, pad=0.03)


def value_name(gram: Gram) -> str:
    """What the entries are."""
    name = {"ntk": "tangent kernel", "nngp": "covariance kernel"}[gram.kind]
    return f"normalised {name}" if gram.kernel.normalize else name


def labels_of(gram: Gram, labels: ArrayLike | None) -> NDArray[Any] | None:
    """The labels (n,) that were given, or those of the sequences.

    Raises ValueError where there are not as many as samples.
    """
    given = gram.labels if labels is None else np.asarray(labels)
    if given is not None and given.shape != (len(gram),):
        raise ValueError(
            f"labels have the shape {given.shape} for a matrix of {len(gram)} samples: "
            "give one label a sample"
        )
    return given


def require_symmetric(gram: Gram, what: str) -> None:
    """Raise ValueError for the matrix of two sets of samples."""
    if not gram.plan.symmetric:
        raise ValueError(
            f"{what} needs the symmetric matrix of one set of samples, found one of "
            f"{gram.shape[0]} x {gram.shape[1]}: compute rd.gram(kernel, X) without Y"
        )
