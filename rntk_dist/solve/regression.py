"""Ridge regression on kernel matrices: all alphas, and leaving each sample out, by one `eigh`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from rntk_dist.solve.machines import require_alphas

type Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class RidgeRegression:
    """f(x) = k(x, X) (K + lambda I)^-1 y, where lambda is alpha times the mean of K's diagonal.

    So alpha means the same for kernels of any scale; the smallest all but interpolates. There is no
    intercept: targets are to have mean 0, or the kernel a constant part. `alpha` goes from the most
    regularised to the least.
    """

    alpha: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

    def __post_init__(self) -> None:
        require_alphas(self.alpha)

    def only(self, alpha: float) -> RidgeRegression:
        """The same regression with one alpha."""
        return RidgeRegression((alpha,))

    def left_out(self, square: Float64, targets: Float64) -> Float64:
        """Each sample's target minus its prediction from all others: (alphas, n).

        The closed form ((K + lambda I)^-1 y)_i / ((K + lambda I)^-1)_ii (Rifkin and Lippert, Notes
        on regularized least squares, 2007); lambda is that of all samples.

        Parameters
        ----------
        square : (n, n) array
            Kernel of the training samples, not 0 everywhere.
        targets : (n,) array
        """
        inverse, vectors = self._inverse(square)
        weights = (inverse * (vectors.T @ targets)) @ vectors.T
        own = inverse @ (vectors**2).T
        errors: Float64 = weights / own
        return errors

    def predictions(self, square: Float64, targets: Float64, across: Float64) -> Float64:
        """(alphas, m) values, from the kernel (n, n) of samples with targets (n,) and (m, n)."""
        inverse, vectors = self._inverse(square)
        values: Float64 = (inverse * (vectors.T @ targets)) @ (across @ vectors).T
        return values

    def _inverse(self, square: Float64) -> tuple[Float64, Float64]:
        """Eigenvalues of (K + lambda I)^-1, (alphas, n), and eigenvectors in columns, (n, n)."""
        scale = float(np.trace(square)) / len(square)
        if not scale > 0:
            raise ValueError(
                f"the kernel's diagonal has the mean {scale:g}: ridge regression needs a kernel "
                "that is not 0 on all training samples"
            )
        values, vectors = eigh(square)
        # Rounding leaves eigenvalues a little below 0, which the smallest alpha might not lift.
        lifted = np.maximum(values, 0.0) + scale * np.array(self.alpha)[:, np.newaxis]
        return 1.0 / lifted, vectors
