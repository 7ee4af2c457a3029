"""What the eigenvectors of a Gram matrix show: its spectrum, and its samples in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from rntk_dist.gram import Gram
from rntk_dist.plot.style import (
    COLOURS,
    MARKERS,
    colour_bar,
    labels_of,
    new_axes,
    require_symmetric,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

type Chosen = slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]

MOST_SAMPLES = 5000
"""A dense eigenproblem of this size needs 0.4 GiB and, on two cores, half a minute."""


def spectrum(
    gram: Gram,
    ax: Axes | None = None,
    *,
    samples: Chosen | None = None,
    label: str | None = None,
) -> Axes:
    """Eigenvalues over their rank, both on logarithmic axes, as shares of their sum.

    Reads the whole matrix, or the samples chosen. Eigenvalues that are not above the rounding of
    the largest, n eps of the stored numbers, are not drawn. A second call with the same axes
    compares.

    Parameters
    ----------
    gram : Gram
        A symmetric matrix of n samples.
    ax : matplotlib Axes, optional
    samples : ints, slice or (n,) mask, optional
        Which samples to take; needed above 5000.
    label : str, optional
        The curve's name in a legend.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The matrix is rectangular, or more than 5000 samples are asked for.
    IncompleteGramError
        A tile that is needed has not been computed.
    """
    values = _part(gram, _chosen(gram, samples, "the spectrum"))
    axes = new_axes(ax, (5.5, 4))
    shares = _shares(values, np.finfo(gram.dtype).eps)
    ranks = np.arange(1, len(shares) + 1)
    colour = COLOURS[len(axes.lines) % len(COLOURS)]
    axes.plot(ranks, shares, color=colour, label=label, marker=".", markersize=4, linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="rank of the eigenvalue", ylabel="eigenvalue / sum of all")
    if label is not None:
        axes.legend(frameon=False)
    return axes


def kernel_pca(
    gram: Gram,
    labels: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    samples: Chosen | None = None,
) -> Axes:
    """The samples along the two widest directions of the kernel's feature space, centred.

    Parameters
    ----------
    gram : Gram
        A symmetric matrix of n samples, of which the chosen ones are read.
    labels : (n,) array, optional
        By default the labels that came with the sequences. Floats are shown by a scale of colours,
        all else as classes by colour and marker; above 42 classes all points look alike.
    ax : matplotlib Axes, optional
    samples : ints, slice or (n,) mask, optional
        Which samples to take; needed above 5000.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The matrix is rectangular, labels are not one a sample, more than 5000 samples are asked
        for, or fewer than 3.
    IncompleteGramError
        A tile that is needed has not been computed.
    """
    chosen = _chosen(gram, samples, "kernel PCA")
    if len(chosen) < 3:
        raise ValueError(f"two directions need 3 samples, found {len(chosen)}: choose more")
    given = labels_of(gram, labels)
    places, shares = _components(_part(gram, chosen))
    axes = new_axes(ax, (6, 4.5))
    _scatter(axes, places, None if given is None else given[chosen])
    names = [f"component {k + 1} ({share:.0%} of the variance)" for k, share in enumerate(shares)]
    axes.set(xlabel=names[0], ylabel=names[1])
    return axes


# -- the matrix ------------------------------------------------------------------------------------


def _chosen(gram: Gram, samples: Chosen | None, what: str) -> NDArray[np.int64]:
    """The indices asked for; refused before anything is read if they are too many."""
    require_symmetric(gram, what)
    n = len(gram)
    everything = np.arange(n)
    chosen = everything if samples is None else everything[samples]
    if len(chosen) > MOST_SAMPLES:
        size = len(chosen) ** 2 * 8 / 2**30
        raise ValueError(
            f"{what} of {len(chosen)} samples is a dense eigenproblem of {size:.3g} GiB, and "
            f"{MOST_SAMPLES} samples are the most: choose some, for example "
            f"samples=slice(None, None, {-(-n // MOST_SAMPLES)})"
        )
    return chosen


def _part(gram: Gram, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.asarray(gram[chosen, chosen], np.float64)
    return values


def _shares(values: NDArray[np.float64], eps: np.floating[Any]) -> NDArray[np.float64]:
    """Eigenvalues over their sum, the largest first, down to what rounding leaves of zeros."""
    found = eigh(values, eigvals_only=True, overwrite_a=True, check_finite=False)[::-1]
    kept = found[found > found[0] * len(found) * eps]
    shares: NDArray[np.float64] = kept / found.sum()
    return shares


def _components(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, 2), and the share of the variance along each."""
    # Imported here: a worker that imports the package must not wait for scikit-learn.
    from sklearn.decomposition import KernelPCA

    means = values.mean(axis=0)
    variance = np.trace(values) - len(values) * means.mean()  # the trace of the centred matrix
    fitted = KernelPCA(2, kernel="precomputed", eigen_solver="arpack", random_state=0)
    places: NDArray[np.float64] = fitted.fit_transform(values)
    return places, fitted.eigenvalues_ / variance


# -- points ----------------------------------------------------------------------------------------


def _scatter(axes: Axes, places: NDArray[np.float64], labels: NDArray[Any] | None) -> None:
    x, y = places.T
    if labels is not None and labels.dtype.kind == "f":
        image = axes.scatter(x, y, c=labels, cmap="viridis", s=16)
        colour_bar(axes, image, "label")
        return
    names = np.unique(labels) if labels is not None else np.empty(0)
    if labels is None or len(names) > len(COLOURS) * len(MARKERS):
        axes.scatter(x, y, color=COLOURS[0], s=16, alpha=0.7)
        return
    for k, name in enumerate(names):
        _scatter_class(axes, places[labels == name], k, str(name))
    columns = 1 + len(names) // 16
    axes.legend(
        title="class", loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, frameon=False
    )


def _scatter_class(axes: Axes, places: NDArray[np.float64], k: int, name: str) -> None:
    """Colours run faster than markers, but both change: either tells neighbours apart."""
    repeat, place = divmod(k, len(COLOURS))
    marker, colour = MARKERS[(place + repeat) % len(MARKERS)], COLOURS[place]
    x, y = places.T
    axes.scatter(x, y, color=colour, marker=marker, s=18, alpha=0.8, linewidth=0, label=name)
