"""A power law through measured points, with a confidence interval of its exponent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x**exponent``; the exponent lies in low..high with the given confidence."""

    factor: float
    exponent: float
    low: float
    high: float
    confidence: float

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """The law's y at x."""
        found: NDArray[np.float64] = self.factor * np.asarray(x, float) ** self.exponent
        return found


def fit(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> PowerLaw:
    """Least squares of log y over log x, a point a measurement.

    The interval is Student's for a straight line with independent errors of one size; that is what
    relative errors of independent networks have, where the law holds over all of x.

    Raises ValueError for values that are not positive, or fewer than three, or x all alike.
    """
    abscissa, ordinate = (np.asarray(values, float) for values in (x, y))
    usable = abscissa.shape == ordinate.shape and len(abscissa) > 2 and (abscissa > 0).all()
    if not (usable and (ordinate > 0).all() and np.ptp(abscissa) > 0):
        raise ValueError(
            f"found x = {abscissa} and y = {ordinate}: a power law is fitted to three or more "
            "pairs of positive numbers with different x"
        )
    line: Any = stats.linregress(np.log(abscissa), np.log(ordinate))
    half = float(stats.t.ppf((1 + confidence) / 2, len(abscissa) - 2) * line.stderr)
    slope = float(line.slope)
    return PowerLaw(float(np.exp(line.intercept)), slope, slope - half, slope + half, confidence)
