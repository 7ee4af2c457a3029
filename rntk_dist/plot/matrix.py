"""A Gram matrix as a heat map, and its tiles as a map of what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.gram import Gram
from rntk_dist.plot.style import (
    COLOURS,
    MISSING,
    colour_bar,
    labels_of,
    new_axes,
    own_figure,
    require_symmetric,
    value_name,
)
from rntk_dist.sampling import Limits, Sample, chunk_bytes, sampled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

type Order = Literal["label", "cluster", "stored"]

LIMITS = Limits(samples=1000, tiles=1000, bytes=2**30)
"""What a heat map reads at most."""

_MOST_NAMES = 30


def heat_map(
    gram: Gram,
    labels: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    order: Order | None = None,
) -> Axes:
    """The matrix sorted by label or by clustering.

    At most 1000 samples are shown, from at most 1 GiB of tiles: of a larger matrix an even sample
    of blocks, which the axes say.

    Parameters
    ----------
    gram : Gram
        A symmetric matrix of n samples.
    labels : (n,) array, optional
        By default the labels that came with the sequences.
    ax : matplotlib Axes, optional
    order : {"label", "cluster", "stored"}
        By class, with a line between classes and their names at the axes; like beside like, by
        average linkage of the distance sqrt(k(x,x) + k(y,y) - 2 k(x,y)); or as they are stored. By
        default by label, or as stored where there are none.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The matrix is rectangular, labels are not one a sample or there are none to sort by, or one
        tile alone is larger than 1 GiB.
    IncompleteGramError
        A tile that is needed has not been computed.
    """
    require_symmetric(gram, "a heat map")
    given = labels_of(gram, labels)
    by = _order(order, given)
    shown = np.array(_sample(gram).rows)
    values = gram[shown, shown]
    places = _sorted_places(by, values, None if given is None else given[shown])
    picture = values[np.ix_(places, places)]
    top = np.quantile(values, 0.999)  # one outlier shall not darken the rest
    axes = new_axes(ax, (6.5, 5.5))
    image = axes.imshow(picture, cmap="viridis", vmax=top, interpolation="nearest")
    colour_bar(axes, image, value_name(gram))
    _name_axes(axes, by, len(shown), len(gram))
    if by == "label" and given is not None:
        _mark_classes(axes, given[shown[places]])
    return axes


def save_heat_map(gram: Gram, path: Path, title: str) -> None:
    """Write the heat map of a Gram matrix to a picture file; the suffix decides the format."""
    figure = own_figure((7, 6))
    heat_map(gram, ax=figure.subplots()).set_title(title)
    figure.savefig(path, dpi=150)


def tile_map(gram: Gram, ax: Axes | None = None) -> Axes:
    """Which tiles are stored, and which are missing now; reads none of them.

    Parameters
    ----------
    gram : Gram
        Complete or not. The lower half of a symmetric one is not stored, and stays white.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    axes = new_axes(ax, (6, 4.5))
    # Loaded by the axes already.
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    state, stored = _tile_states(gram)
    n_tiles = gram.plan.n_tiles
    axes.imshow(state, cmap=ListedColormap(["white", MISSING, COLOURS[0]]), vmin=0, vmax=2)
    axes.set(
        xlabel=f"block of {gram.plan.tile} columns",
        ylabel=f"block of {gram.plan.tile} rows",
        title=f"{stored} of {n_tiles} tiles stored ({stored / n_tiles:.0%})",
    )
    _whole_ticks(axes)
    patches = [
        Patch(facecolor=COLOURS[0], label="stored"),
        Patch(facecolor=MISSING, label="missing"),
    ]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


# -- the heat map ----------------------------------------------------------------------------------


def _sample(gram: Gram) -> Sample:
    found = sampled(gram.plan, LIMITS)
    if found is None:
        size, most = chunk_bytes(gram.plan) / 2**30, LIMITS.bytes / 2**30
        raise ValueError(
            f"one tile of the matrix has {size:.3g} GiB, and a heat map reads {most:.3g} GiB at "
            "most: draw a part such as gram[:500, :500] with matplotlib"
        )
    return found


def _order(order: Order | None, labels: NDArray[Any] | None) -> Order:
    if order is None:
        return "stored" if labels is None else "label"
    if order not in ("label", "cluster", "stored"):
        raise ValueError(f'order is {order!r}: choose "label", "cluster" or "stored"')
    if order == "label" and labels is None:
        raise ValueError('there are no labels to sort by: give some, or order="cluster"')
    return order


def _sorted_places(
    order: Order, values: NDArray[Any], labels: NDArray[Any] | None
) -> NDArray[np.integer[Any]]:
    """In which order to draw the rows of values (k, k)."""
    if order == "label" and labels is not None:
        return np.argsort(labels, kind="stable")
    if order == "cluster" and len(values) > 2:
        return _clustered(values)
    return np.arange(len(values))


def _clustered(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """The order of the leaves of a tree that joins like with like."""
    # Imported here, as matplotlib is: whoever draws nothing need not wait for them.
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    return np.asarray(leaves_list(linkage(squareform(_distances(values)), "average")))


def _distances(values: NDArray[Any]) -> NDArray[np.float64]:
    """Of the samples in the kernel's feature space, (k, k)."""
    diagonal = values.diagonal().astype(np.float64)
    squares = diagonal[:, None] + diagonal - 2.0 * values
    out: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    np.fill_diagonal(out, 0.0)
    return (out + out.T) / 2


def _name_axes(axes: Axes, order: Order, shown: int, total: int) -> None:
    sample = "sample" if shown == total else f"{shown} of {total} samples"
    sort = {"label": ", sorted by class", "cluster": ", sorted by clustering", "stored": ""}
    axes.set(xlabel=sample + sort[order], ylabel=sample + sort[order])


def _mark_classes(axes: Axes, labels: NDArray[Any]) -> None:
    """Lines between classes, and each class's name at its middle, if there are not too many."""
    names, first = np.unique(labels, return_index=True)
    if len(names) > _MOST_NAMES:
        return
    edges = np.append(first, len(labels))
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    axes.set_xticks(middles, [str(name) for name in names])
    axes.set_yticks(middles, [str(name) for name in names])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_label_text(axis.get_label_text().replace("sorted by class", "by class"))


# -- the map of tiles ------------------------------------------------------------------------------


def _tile_states(gram: Gram) -> tuple[NDArray[np.uint8], int]:
    """A number a block of rows and columns: 0 never stored, 1 missing, 2 stored; how many are."""
    states = np.full(gram.plan.grid, 2, np.uint8)
    if gram.plan.symmetric:
        states[np.tril_indices(len(states), -1)] = 0
    missing = gram.missing
    for tile in missing:
        states[tile.row, tile.col] = 1
    return states, gram.plan.n_tiles - len(missing)


def _whole_ticks(axes: Axes) -> None:
    """Blocks are counted: there is none at 2.5."""
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
