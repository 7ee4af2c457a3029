"""The linear systems of kernel ridge regression, their solution, and how solving can fail."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.operators import Dense, Operator

type Float64 = NDArray[np.float64]


class NotPositiveDefiniteError(ValueError):
    """A matrix plus alpha is not positive definite; the message says what alpha would be."""


class NotConvergedError(RuntimeError):
    """An iteration stopped short of its tolerance; the message says how far it came, and why."""


class SolverMemoryError(MemoryError):
    """A solver needs more memory than it is given; the message has both figures and a way out."""


def operator_of(matrix: Operator | ArrayLike, symmetric: bool | None = None) -> Operator:
    """The matrix itself, or an array as one; whether that is symmetric is looked up if not said."""
    return matrix if isinstance(matrix, Operator) else Dense(matrix, symmetric)


def across_of(matrix: Operator | ArrayLike, n: int) -> Operator:
    """The kernel (m, n) of new samples with n training samples; ValueError for other columns."""
    operator = operator_of(matrix, symmetric=False)
    if operator.shape[1] != n:
        raise ValueError(
            f"found a matrix of shape {operator.shape[0]} x {operator.shape[1]} where {n} samples "
            "were trained on: give the kernel of new samples (rows) with each of those (columns)"
        )
    return operator


def targets_of(y: ArrayLike) -> Float64:
    """Targets (n,) or (n, targets) in float64; raises ValueError for another number of axes."""
    targets = np.asarray(y, np.float64)
    if targets.ndim not in (1, 2):
        raise ValueError(
            f"found targets of shape {targets.shape}: give one or several for each sample"
        )
    return targets


def alphas_of(alpha: ArrayLike, n_targets: int) -> Float64:
    """One for each target (n_targets,); raises ValueError for another number of them."""
    given = np.asarray(alpha, np.float64).reshape(-1)
    if len(given) not in (1, n_targets):
        raise ValueError(
            f"found {len(given)} alphas for {n_targets} targets: give one, or one for each"
        )
    return np.broadcast_to(given, (n_targets,)).copy()


def require_training(matrix: Operator, targets: Float64) -> None:
    """Raise ValueError unless the matrix is symmetric (n, n) and n finite targets come with it."""
    n, m = matrix.shape
    if not matrix.symmetric:
        kind = "a rectangular matrix" if n != m else "an asymmetric matrix"
        raise ValueError(
            f"found {kind} of shape {n} x {m}: to fit, give the symmetric matrix of the training "
            "samples"
        )
    if len(targets) != n:
        raise ValueError(
            f"found targets of shape {targets.shape} for {n} samples: give a value for each sample"
        )
    if not np.isfinite(targets).all():
        raise ValueError("found NaN or infinity among the targets: give finite values")


def require_alphas(alphas: Float64) -> Float64:
    """The same; raises ValueError unless they are finite and at least 0."""
    if not (np.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"alpha holds {alphas.min()}: give finite numbers of at least 0")
    return alphas


@dataclass(frozen=True, eq=False)
class Systems:
    """(K + alphas[c] I) x[:, c] = targets[:, c] for every column c.

    `matrix` is the symmetric K (n, n), `targets` (n, c) and `alphas` (c,) are float64 and finite.
    Raises ValueError for anything else.
    """

    matrix: Operator
    targets: Float64
    alphas: Float64

    def __post_init__(self) -> None:
        require_training(self.matrix, self.targets)
        if self.targets.shape[1:] != self.alphas.shape:
            raise ValueError(
                f"found targets of shape {self.targets.shape} for {len(self.alphas)} alphas: give "
                "a column for each system"
            )
        require_alphas(self.alphas)

    def groups(self) -> Iterator[tuple[float, NDArray[np.int64]]]:
        """Each alpha once, and the columns that have it."""
        for alpha in np.unique(self.alphas)[::-1]:
            yield float(alpha), np.flatnonzero(self.alphas == alpha)

    def residuals(self, x: Float64) -> Float64:
        """What is left (n, c) of the targets; one product."""
        return self.targets - self.matrix.product(x) - x * self.alphas

    def relative(self, residuals: Float64) -> Float64:
        """Of each column the norm over that of its target (c,); 0 for a target of 0."""
        norms = np.linalg.norm(self.targets, axis=0)
        left = np.linalg.norm(residuals, axis=0)
        return np.divide(left, norms, out=np.zeros_like(left), where=norms > 0)

    def identity(self) -> str:
        """A SHA-256, in hex, of the matrix's identity, the targets and the alphas."""
        digest = hashlib.sha256(self.matrix.identity.encode())
        for values in (self.targets, self.alphas):
            digest.update(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    `x` (n, c); `residuals` (c,) relative to the targets, measured by a product with what was found;
    `leave_one_out` (n, c), for each sample its target minus what all the others predict for it, if
    asked for; `history` (iterations + 1, c), the relative residuals of an iteration.
    """

    x: Float64
    residuals: Float64
    leave_one_out: Float64 | None = None
    history: Float64 | None = None


def not_positive(
    matrix: Operator, alpha: float, where: str, lift: float
) -> NotPositiveDefiniteError:
    """The error, with an alpha that is at least `lift` higher."""
    n = len(matrix)
    return NotPositiveDefiniteError(
        f"the matrix of order {n} plus alpha = {alpha:g} is not positive definite, {where}: raise "
        f"alpha to {alpha + lift:.1e} or more"
    )


def rounding(matrix: Operator, scale: float) -> float:
    """How far below 0 rounding may put eigenvalues of a matrix whose diagonal is up to `scale`."""
    return float(len(matrix) * np.finfo(matrix.dtype).eps * scale)
