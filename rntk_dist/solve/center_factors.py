"""Cholesky's factors of Falkon's centres: of their kernel, and of the preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from rntk_dist.operators import Block
from rntk_dist.solve.systems import Float64, NotPositiveDefiniteError

MOST_JITTER = 1e-2
"""Of the mean diagonal: a kernel that needs more to be positive definite is none."""


def factorised(square: Block) -> tuple[Float64, float]:
    """T (m, m), upper, with T^T T = K_mm + jitter I, and the jitter.

    That is the rounding of the numbers in which K_mm was computed, or ten times it, and so on until
    it is positive definite. Raises NotPositiveDefiniteError where that would be too much.
    """
    m, scale = len(square), float(np.trace(square, dtype=np.float64)) / len(square)
    jitter = np.sqrt(m) * float(np.finfo(square.dtype).eps) * scale
    while jitter <= MOST_JITTER * scale:
        lifted = square.astype(np.float64)
        np.fill_diagonal(lifted, lifted.diagonal() + jitter)
        try:
            return cholesky(lifted, overwrite_a=True, check_finite=False), jitter
        except LinAlgError:
            jitter *= 10
    raise NotPositiveDefiniteError(
        f"the kernel of the {m} centres is not positive definite, even with {jitter / 10:.1e} "
        "added to its diagonal: give a positive semi-definite kernel"
    )


def _upper(lifted: Float64, alpha: float) -> Float64:
    try:
        upper: Float64 = cholesky(lifted, check_finite=False)
    except LinAlgError as error:
        least = len(lifted) * np.finfo(np.float64).eps * float(lifted.diagonal().max())
        raise NotPositiveDefiniteError(
            f"the preconditioner of {len(lifted)} centres with alpha = {alpha:g} is not positive "
            f"definite: raise alpha to {alpha + least:.1e} or more"
        ) from error
    return upper


def divided(factor: Float64, right: Float64, *, transposed: bool = False) -> Float64:
    """T^-1 right, or T^-T right, of an upper triangle T."""
    found: Float64 = solve_triangular(
        factor, right, trans="T" if transposed else "N", check_finite=False
    )
    return found


@dataclass(frozen=True, eq=False)
class NearInverse:
    """A of each alpha: A^T A is about the matrix of the normal equations in w."""

    by_alpha: dict[float, Float64]

    @classmethod
    def of(cls, factor: Float64, weights: Float64, alphas: Float64) -> NearInverse:
        """Of T (m, m), upper, how many samples each centre stands for, and all alphas.

        Raises NotPositiveDefiniteError where an alpha is too small.
        """
        square = (factor * weights) @ factor.T
        made = {}
        for alpha in np.unique(alphas):
            lifted = square.copy()
            np.fill_diagonal(lifted, square.diagonal() + alpha)
            made[float(alpha)] = _upper(lifted, float(alpha))
        return cls(made)

    @property
    def remedy(self) -> str:
        """What of it to raise where the iteration takes too long."""
        return "the number of centres"

    def solve(self, R: Float64, alphas: Float64) -> Float64:
        """(A^T A)^-1 R for R (m, c), each column with its alpha."""
        out = np.empty_like(R)
        for alpha in np.unique(alphas):
            at, factor = alphas == alpha, self.by_alpha[float(alpha)]
            out[:, at] = divided(factor, divided(factor, R[:, at], transposed=True))
        return out
