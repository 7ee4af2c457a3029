"""Positive numbers of any size: float64 numbers times powers of two of their own.

The variances of a sequence grow or fall like (sigma_w^2 / 2)^t. After enough steps they leave the
range of float64, but a pair needs nothing of them but ratios of neighbouring steps. Where float64
will do, there are no powers of two, and nothing costs more than with plain arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ZERO_EXPONENT = -(2**40)
"""The exponent of a zero: smaller than any other."""


@dataclass(frozen=True)
class Scaled:
    """The numbers ``mantissa * 2**exponent``, all >= 0.

    Attributes
    ----------
    mantissa : float64 array of any shape
    exponent : even int64 numbers of the same shape; None stands for zeros
    """

    mantissa: Float64
    exponent: Int64 | None = None

    @classmethod
    def sum_of_squares(cls, rows: Float64) -> "Scaled":
        """The sums of the squares of rows; none of them overflows or underflows."""
        _, exponent = np.frexp(np.abs(rows).max(axis=-1))
        parts = np.ldexp(rows, -exponent[..., None])
        return cls((parts * parts).sum(axis=-1), 2 * exponent.astype(np.int64))

    @property
    def exponents(self) -> Int64:
        """The exponents as an array."""
        return np.broadcast_to(self._exponents(), self.mantissa.shape)

    def with_exponents(self) -> "Scaled":
        """The same numbers, with an array of exponents."""
        return Scaled(self.mantissa, self.exponents)

    def __getitem__(self, key: Any) -> "Scaled":
        exponent = None if self.exponent is None else self.exponent[key]
        return Scaled(self.mantissa[key], exponent)

    def __mul__(self, factor: Any) -> "Scaled":
        """Times plain numbers >= 0."""
        return Scaled(self.mantissa * factor, self.exponent)

    def __add__(self, other: "Scaled") -> "Scaled":
        if self.exponent is None and other.exponent is None:
            return Scaled(self.mantissa + other.mantissa)
        a, b = self._powers(), other._powers()
        top = np.maximum(a, b)
        total = _shifted(self.mantissa, a - top) + _shifted(other.mantissa, b - top)
        mantissa, exponent = np.frexp(total)
        odd = exponent & 1
        return Scaled(np.ldexp(mantissa, odd), np.where(total > 0, top + exponent - odd, 0))

    def root(self) -> "Scaled":
        """The square roots; their exponents may be odd."""
        exponent = None if self.exponent is None else self.exponent // 2
        return Scaled(np.sqrt(self.mantissa), exponent)

    def over(self, other: "Scaled") -> Float64:
        """Ratios as plain numbers; 0 where the divisor is 0, for nothing has a direction there.

        A true division, so that equal numbers give exactly 1.
        """
        ratio = divided(self.mantissa, other.mantissa)
        if self.exponent is None and other.exponent is None:
            return ratio
        return _shifted(ratio, self.exponents - other.exponents)

    def shifted(self, powers: Int64 | None) -> "Scaled":
        """Times ``2**powers``."""
        if powers is None:
            return self
        return Scaled(self.mantissa, self._exponents() + powers)

    def plain(self) -> Float64:
        """As float64: infinity or 0 where the number leaves its range."""
        if self.exponent is None:
            return self.mantissa
        with np.errstate(over="ignore", under="ignore"):
            return _shifted(self.mantissa, self.exponent)

    def canonical(self) -> "Scaled":
        """The same numbers with mantissas in [1/2, 1), or 0; their exponents may be odd."""
        mantissa, more = np.frexp(self.mantissa)
        return Scaled(mantissa, np.where(mantissa > 0, self.exponents + more, ZERO_EXPONENT))

    def log2(self) -> Float64:
        """The logarithms to the base 2; minus infinity for 0."""
        with np.errstate(divide="ignore"):
            value: Float64 = np.log2(self.mantissa) + self._exponents()
        return value

    def _exponents(self) -> Any:
        return np.int64(0) if self.exponent is None else self.exponent

    def _powers(self) -> Int64:
        """Exponents, those of zeros so small that they never decide a sum's."""
        powers: Int64 = np.where(self.mantissa > 0, self._exponents(), ZERO_EXPONENT)
        return powers


def divided(part: Float64, whole: Float64) -> Float64:
    """part / whole; 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


def stacked_rows(parts: Sequence[Scaled]) -> Scaled:
    """One row for each of the given rows."""
    mantissa = np.array([part.mantissa for part in parts])
    if all(part.exponent is None for part in parts):
        return Scaled(mantissa)
    return Scaled(mantissa, np.array([part.exponents for part in parts]))


def _shifted(values: Float64, powers: Int64) -> Float64:
    """``values * 2**powers``; ldexp takes no power beyond a 32-bit integer."""
    with np.errstate(over="ignore", under="ignore"):
        shifted: Float64 = np.ldexp(values, np.clip(powers, -5000, 5000).astype(np.int32))
    return shifted
