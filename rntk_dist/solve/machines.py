"""Classifiers on kernel matrices: fitted once for a matrix, for several strengths together.

A strength is what regularises: C of a support vector machine, alpha of ridge regression. Each
machine holds its strengths in one order, the most regularised first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.svm import _libsvm

type Float64 = NDArray[np.float64]
type Labels = NDArray[Any]


class Machine(Protocol):
    """What cross-validation needs of a classifier on kernel matrices."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """From the most regularised to the least."""
        ...

    def only(self, strength: float) -> Machine:
        """The same machine with one strength."""
        ...

    def predictions(self, square: Float64, labels: Labels, across: Float64) -> Labels:
        """(strengths, m) labels, from the kernel (n, n) of n labelled samples and (m, n)."""
        ...


@dataclass(frozen=True)
class SVM:
    """The support vector machine of LIBSVM, one against one where there are several classes.

    Besides what LIBSVM does: the kernel is centred and scaled, and C with it. That leaves the
    machine as it is (its multipliers sum up to 0 by class) but LIBSVM, which keeps the kernel in
    float32, is not left with the rounding of a large constant. A fit in which no multiplier
    reaches C is that of every larger C too, and is not made again.

    `steps` bounds those on one pair of classes, in steps for each training sample. What has not
    converged by then is used as it is: a kernel whose diagonal spans many orders of magnitude does
    not with forty times as many either.
    """

    C: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    steps: int = 100

    def __post_init__(self) -> None:
        require_increasing("C", self.C)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: give at least 1")

    @property
    def strengths(self) -> tuple[float, ...]:
        """C; the smallest regularises most."""
        return self.C

    def only(self, strength: float) -> SVM:
        """The same machine with one C."""
        return SVM((strength,), self.steps)

    def predictions(self, square: Float64, labels: Labels, across: Float64) -> Labels:
        """(strengths, m) labels."""
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) == 1:
            return np.full((len(self.C), len(across)), classes[0])
        square, across, scale = _centred(square, across)
        rows: list[Labels] = []
        for C in self.C:
            machine = self._fitted(square, codes.astype(np.float64), C * scale)
            rows.append(classes[machine.codes(across)])
            if np.abs(machine.coefficients).max() < C * scale * (1 - 1e-9):
                break
        return np.stack(rows + rows[-1:] * (len(self.C) - len(rows)))

    def _fitted(self, square: Float64, codes: Float64, C: float) -> _Fitted:
        # What SVC.fit and SVC.predict call. Their checks of arguments take 1.5 ms a fit, twenty
        # times what LIBSVM needs for a small training part; the tests hold the results together.
        _libsvm.set_verbosity_wrap(0)
        most = self.steps * len(square)
        options = {"kernel": "precomputed", "C": C, "cache_size": 500.0, "max_iter": most}
        return _Fitted(*_libsvm.fit(square, codes, **options)[:5])


class _Fitted(NamedTuple):
    """What LIBSVM finds."""

    support: NDArray[np.int32]
    vectors: Float64
    n_support: NDArray[np.int32]
    coefficients: Float64
    intercept: Float64

    def codes(self, across: Float64) -> NDArray[np.int64]:
        """(m,): the class of each row of (m, n) kernel values, by its number."""
        found: NDArray[np.int64] = _libsvm.predict(across, *self, kernel="precomputed").astype(
            np.int64
        )
        return found


def _centred(square: Float64, across: Float64) -> tuple[Float64, Float64, float]:
    """Both kernels minus the means over the training samples, scaled to a mean diagonal of 1.

    The last value is what they were divided by.
    """
    columns = square.mean(axis=0)
    centred = square - columns - columns[:, None] + columns.mean()
    other = across - columns - across.mean(axis=1, keepdims=True) + columns.mean()
    scale = float(np.trace(centred)) / len(square)
    if not scale > 0:  # all samples are one point: any scale will do
        scale = 1.0
    # LIBSVM reads rows as they lie in memory.
    return np.ascontiguousarray(centred / scale), np.ascontiguousarray(other / scale), scale


@dataclass(frozen=True)
class Ridge:
    """Kernel ridge regression on +1 for a sample's class and -1 for others; the largest wins.

    `alpha` is relative to the mean of the kernel's diagonal, so that it means the same for kernels
    of any scale. The kernel is centred, which gives the regression its intercept. All alphas share
    one eigendecomposition.
    """

    alpha: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

    def __post_init__(self) -> None:
        require_alphas(self.alpha)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Alpha; the largest regularises most."""
        return self.alpha

    def only(self, strength: float) -> Ridge:
        """The same machine with one alpha."""
        return Ridge((strength,))

    def predictions(self, square: Float64, labels: Labels, across: Float64) -> Labels:
        """(strengths, m) labels."""
        classes, codes = np.unique(labels, return_inverse=True)
        targets = 2.0 * (codes[:, None] == np.arange(len(classes))) - 1.0
        means = targets.mean(axis=0)
        square, across, _ = _centred(square, across)
        values, vectors = eigh(square)
        # Rounding leaves eigenvalues a little below 0, which the smallest alpha might not lift.
        values = np.maximum(values, 0.0)
        along, turned = vectors.T @ (targets - means), across @ vectors
        scores = [turned @ (along / (values + alpha)[:, None]) + means for alpha in self.alpha]
        found: Labels = classes[np.stack([score.argmax(axis=1) for score in scores])]
        return found


def require_increasing(name: str, values: tuple[float, ...], above: float = 0.0) -> None:
    """Raise ValueError unless there are values, finite, above a number and in increasing order."""
    ordered = all(a < b for a, b in zip((above, *values), values, strict=False))
    if not values or not ordered or not all(math.isfinite(value) for value in values):
        raise ValueError(
            f"{name} is {values}: give finite numbers above {above:g}, each larger than the last"
        )


def require_alphas(alpha: tuple[float, ...]) -> None:
    """Raise ValueError unless there are values, finite, positive and in decreasing order."""
    require_increasing("-alpha", tuple(-each for each in alpha), -math.inf)
    if alpha[-1] <= 0:
        raise ValueError(f"alpha holds {alpha[-1]}: give positive numbers")
