"""The kernel as sktime and aeon take one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind

if TYPE_CHECKING:
    from rntk_dist.estimators.sktime_kernel import RNTKPairwise


def to_sktime_kernel(
    kernel: RNTK | None = None,
    *,
    kind: Kind = "ntk",
    dtype: DType = "float64",
    backend: Backend = "auto",
) -> RNTKPairwise:
    """The kernel, by default ``RNTK()``, as sktime's pairwise panel transformer.

    It goes wherever sktime takes one, such as the `kernel` of its TimeSeriesSVC, for panels of
    equal or unequal lengths and any number of variables. Raises ImportError without sktime.
    """
    try:
        from rntk_dist.estimators.sktime_kernel import RNTKPairwise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sktime":
            raise
        raise ModuleNotFoundError(
            "to_sktime_kernel needs sktime: pip install 'rntk_dist[datasets]'", name=error.name
        ) from error
    return RNTKPairwise(kernel, kind=kind, dtype=dtype, backend=backend)


def to_aeon_metric(kernel: RNTK | None = None, *, kind: Kind = "ntk") -> KernelDistance:
    """The distance that the kernel, by default ``RNTK()``, makes of two series, as aeon takes one.

    It goes wherever aeon takes a callable: the `distance` of its nearest neighbours and clusters,
    the `method` of `aeon.distances.pairwise_distance`.
    """
    return KernelDistance(RNTK() if kernel is None else kernel, kind)


@dataclass(frozen=True)
class KernelDistance:
    """sqrt(k(x, x) + k(y, y) - 2 k(x, y)), of series (channel, time) or (time,) of any lengths.

    A distance between features: of near-duplicates it is no better than 1e-8 sqrt(k(x, x)).

    >>> import numpy as np
    >>> x, y = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.5]])
    >>> distance = to_aeon_metric(RNTK(normalize=True))
    >>> distance(x, x), distance(x, y) == distance(y, x) > 0
    (0.0, True)
    """

    kernel: RNTK
    kind: Kind = "ntk"

    def __call__(self, x: Any, y: Any) -> float:
        """The distance of two series; raises ValueError for another number of dimensions."""
        values = self.kernel([_time_first(x), _time_first(y)], kind=self.kind)
        squared = values[0, 0] + values[1, 1] - 2 * values[0, 1]
        return math.sqrt(max(float(squared), 0.0))


def _time_first(x: Any) -> Any:
    series = np.asarray(x)
    if series.ndim not in (1, 2):
        raise ValueError(
            f"found a series of shape {series.shape}: give it the shape (channel, time) or (time,)"
        )
    return series.T
