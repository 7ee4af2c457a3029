"""Pictures of Gram matrices."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.gram import Gram

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pictures need matplotlib: pip install 'rntk_dist[plot]'") from error

MOST_SAMPLES = 1000


def heat_map(gram: Gram, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """The matrix sorted by label, with a line between classes and their names at the axes.

    Parameters
    ----------
    gram : Gram
        A symmetric matrix of n samples; of more than 1000 an even sample is read.
    labels : (n,) array, optional
        By default the labels that came with the sequences; without any, the stored order.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    if not gram.plan.symmetric:
        raise ValueError(
            "a heat map sorted by label needs the symmetric matrix of one set of samples"
        )
    given = gram.labels if labels is None else np.asarray(labels)
    if given is not None and len(given) != len(gram):
        raise ValueError(f"{len(given)} labels for a matrix of {len(gram)} samples")
    shown = np.unique(np.linspace(0, len(gram) - 1, min(len(gram), MOST_SAMPLES)).astype(int))
    if given is not None:
        shown = shown[np.argsort(given[shown], kind="stable")]
    values = gram[shown, shown]
    axes = _new_axes() if ax is None else ax
    image = axes.imshow(
        values, cmap="viridis", vmax=np.quantile(values, 0.999), interpolation="nearest"
    )
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=axes, label=_value_name(gram), fraction=0.046, pad=0.03)
    axes.set(xlabel="sample, sorted by class", ylabel="sample, sorted by class")
    if given is None:
        axes.set(xlabel="sample", ylabel="sample")
    else:
        _mark_classes(axes, given[shown])
    return axes


def save_heat_map(gram: Gram, path: Path, title: str) -> None:
    """Write the heat map of a Gram matrix to a picture file; the suffix decides the format."""
    axes = heat_map(gram)
    axes.set_title(title)
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.savefig(path, dpi=150)


def _new_axes() -> Axes:
    with mpl.rc_context({"font.size": 10}):
        # A figure of its own, not pyplot's: nothing global is opened, nothing must be closed.
        axes: Axes = Figure(figsize=(7, 6), layout="constrained").subplots()
    return axes


def _value_name(gram: Gram) -> str:
    name = {"ntk": "tangent kernel", "nngp": "covariance kernel"}[gram.kind]
    return f"normalised {name}" if gram.kernel.normalize else name


def _mark_classes(axes: Axes, labels: NDArray[Any]) -> None:
    """Lines between classes, and each class's name at its middle."""
    names, first = np.unique(labels, return_index=True)
    edges = np.append(first, len(labels))
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    if len(names) <= 30:
        axes.set_xticks(middles, [str(name) for name in names])
        axes.set_yticks(middles, [str(name) for name in names])
        axes.set(xlabel="class", ylabel="class")
