"""Many kernels of the same sequences: what does not depend on the kernel is done once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rntk_dist.kernel.rntk import RNTK, Backend, Kind
from rntk_dist.kernel.variances import Array
from rntk_dist.sequences import Sequences


class ManyKernels:
    """Kernel matrices of X with itself, or with Y; each is computed when it is asked for."""

    def __init__(
        self,
        kernels: Sequence[RNTK],
        X: Sequences,
        Y: Sequences | None,
        kind: Kind,
        dtype: np.dtype[Any],
        backend: Backend,
    ) -> None:
        self.kernels, self.X, self.Y = kernels, X, Y
        self.kind: Kind = kind
        self.dtype, self.backend = dtype, backend

    def of(self, i: int) -> Array:
        """The matrix of one of the kernels: what `kernels[i](X, Y)` is, to the last bit.

        Raises OverflowError as that call does.
        """
        return self.kernels[i](
            self.X, self.Y, kind=self.kind, dtype=self.dtype, backend=self.backend
        )
