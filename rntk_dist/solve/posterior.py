"""Normal distributions of the outputs of new samples: their standard deviations, and draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh

from rntk_dist.operators import Operator
from rntk_dist.solve.systems import Float64

type Seed = int | np.random.Generator | None

SLACK = 1e-3
"""How far below 0, relative to the prior, a variance may come out and be 0 still."""


def own_diagonal(
    diagonal: ArrayLike | None, square: Operator | ArrayLike | None, count: int
) -> Float64:
    """The prior variances (count,) of new samples, from the one that is given.

    Raises ValueError where neither is, and for another number of them.
    """
    if diagonal is None and square is None:
        raise ValueError(
            "standard deviations need the kernel of each new sample with itself: give the diagonal"
        )
    given = np.asarray(diagonal, np.float64) if square is None else _diagonal_of(square)
    if given.shape != (count,):
        raise ValueError(
            f"found a diagonal of shape {given.shape} for {count} new samples: give the kernel of "
            "each with itself"
        )
    return given


def own_square(square: Operator | ArrayLike | None, count: int) -> Float64:
    """The prior covariances (count, count) of new samples, as a new array.

    Raises ValueError where they are missing, or of another shape.
    """
    if square is None:
        raise ValueError(
            "covariances need the kernel of the new samples with each other: give the square"
        )
    values = np.array(square[:, :] if isinstance(square, Operator) else square, np.float64)
    if values.shape != (count, count):
        raise ValueError(
            f"found a square of shape {values.shape} for {count} new samples: give the kernel of "
            "each with each"
        )
    return values


def deviations(variances: Float64, prior: Float64) -> Float64:
    """Square roots, where rounding has put a variance below 0: 0.

    Both are of one shape (..., m), or `prior` is (m,). Raises ValueError where a variance is
    further below 0 than rounding explains.
    """
    least = np.broadcast_to(-SLACK * prior, variances.shape)
    if not (variances >= least).all():
        at = tuple(int(i) for i in np.argwhere(~(variances >= least))[0])
        raise ValueError(
            f"new sample {at[-1]} has a posterior variance of {variances[at]:.3g}, and before the "
            f"data {prior[at[-1]]:.3g}: give matrices of one kernel, in float64, or a larger alpha"
        )
    return np.sqrt(np.maximum(variances, 0.0))


def draws(mean: Float64, covariance: Float64, n_samples: int, random_state: Seed = 0) -> Float64:
    """Draws of normal outputs: mean (m,) or (m, targets) with one covariance (m, m).

    Targets are independent of each other. With a mean of 0 and the kernel of samples with each
    other the draws are of the prior. Returns (m, n_samples) or (m, targets, n_samples).

    Raises ValueError for a covariance with an eigenvalue further below 0 than rounding explains.
    """
    values, vectors = eigh(covariance)
    if values.size and values[0] < -SLACK * values[-1]:
        raise ValueError(
            f"the covariance of {len(values)} samples has an eigenvalue of {values[0]:.3g}: give "
            "matrices of one kernel, in float64, or a larger alpha"
        )
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    rng = np.random.default_rng(random_state)
    noise = rng.standard_normal((len(mean), *mean.shape[1:], n_samples))
    return mean[..., None] + np.tensordot(root, noise, axes=1)


def _diagonal_of(square: Operator | ArrayLike) -> Float64:
    if isinstance(square, Operator):
        return square.diag().astype(np.float64, copy=False)
    values = np.asarray(square, np.float64)
    return values.diagonal() if values.ndim == 2 else values
