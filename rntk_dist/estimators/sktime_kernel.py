"""The kernel as a class of sktime; importing this needs sktime."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sktime.dists_kernels.base import BasePairwiseTransformerPanel

from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.sequences import Sequences


class RNTKPairwise(BasePairwiseTransformerPanel):  # type: ignore[misc]
    """The recurrent neural tangent kernel between the instances of panels.

    Parameters
    ----------
    kernel : RNTK, optional
        By default ``RNTK()``.
    kind : {"ntk", "nngp"}
        Tangent or covariance kernel.
    dtype : {"float64", "float32"}
        What its values are computed in.
    backend : {"auto", "numpy", "numba", "cupy"}
        What computes them.

    Examples
    --------
    >>> import numpy as np, rntk_dist as rd
    >>> panel = np.array([[[1.0, 2.0, 0.5]], [[0.5, -1.0, 0.0]]])  # (case, channel, time)
    >>> rd.to_sktime_kernel(rd.RNTK(readout="per_step"))(panel).shape
    (2, 2)
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": "the rntk_dist developers",
        "symmetric": True,
        "X_inner_mtype": "df-list",
        "capability:missing_values": False,
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "pwtrafo_type": "kernel",
    }

    def __init__(
        self,
        kernel: RNTK | None = None,
        kind: Kind = "ntk",
        dtype: DType = "float64",
        backend: Backend = "auto",
    ) -> None:
        self.kernel = kernel
        self.kind = kind
        self.dtype = dtype
        self.backend = backend
        super().__init__()

    def _transform(self, X: list[Any], X2: list[Any] | None = None) -> NDArray[np.float64]:
        """The kernel (n, m) of lists of data frames, a row a step; sktime hands X in twice."""
        kernel = RNTK() if self.kernel is None else self.kernel
        others = None if X2 is None or X2 is X else _sequences(X2)
        values = kernel(
            _sequences(X), others, kind=self.kind, dtype=self.dtype, backend=self.backend
        )
        return np.asarray(values, np.float64)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """What sktime's own tests construct it with."""
        return [{}, {"kernel": RNTK(readout="per_step", normalize=True), "kind": "nngp"}]


def _sequences(frames: list[Any]) -> Sequences:
    return Sequences.from_arrays([frame.to_numpy() for frame in frames])
