"""Signal-to-noise ratios of predictions: one of each repeat, and what they are on average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

type Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One method in one repeat at one point of a sweep."""

    sweep: str
    value: float
    method: str
    repeat: int
    snr_db: float


@dataclass(frozen=True)
class Summary:
    """One method at one point of a sweep: over `n` repeats the mean, in dB, and its error."""

    sweep: str
    value: float
    method: str
    mean: float
    standard_error: float
    n: int

    @property
    def half_width(self) -> float:
        """Of the mean's 95 % confidence interval, by Student's t; 0 where there is one repeat."""
        if self.n < 2:
            return 0.0
        return float(stats.t.ppf(0.975, self.n - 1)) * self.standard_error


def snr_db(true: Float64, predicted: Float64) -> float:
    """10 log10(sum true² / sum (true - predicted)²): 0 for predicting nothing but 0.

    >>> snr_db(np.array([3.0, -4.0]), np.array([3.0, -4.5])).__round__(3)
    20.0
    """
    return float(10 * np.log10((true**2).sum() / ((true - predicted) ** 2).sum()))


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Means in the order in which their points and methods first come."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.sweep, row.value, row.method), []).append(row.snr_db)
    return [Summary(*key, *_mean_and_error(values)) for key, values in found.items()]


def advantages(rows: Sequence[Row], method: str) -> list[Row]:
    """How many dB a method is above each other one, in the same repeat of the same point.

    All methods see the same data in a repeat, so these differ less between repeats than the ratios
    themselves, and tell more methods apart.
    """
    own = {(row.sweep, row.value, row.repeat): row.snr_db for row in rows if row.method == method}
    return [
        replace(row, snr_db=own[row.sweep, row.value, row.repeat] - row.snr_db)
        for row in rows
        if row.method != method
    ]


def _mean_and_error(values: list[float]) -> tuple[float, float, int]:
    n = len(values)
    error = float(np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0
    return round(float(np.mean(values)), 4), round(error, 4), n
