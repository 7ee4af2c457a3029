"""Support vector machines on kernels that are computed already: LIBSVM, through scikit-learn.

LIBSVM wants the training samples' kernel as one float64 array, row by row. An array that is laid
out like that, be it mapped from a file, is used where it lies; any other matrix is read into one,
if that fits into the memory. A prediction takes the kernel with the support vectors alone, and no
other columns are read; who computes it anew needs to compute no others::

    machine = SVC(C=10).fit(gram, labels)
    machine.predict(kernel(X_new, X[machine.support_]), columns="support")
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self, override

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import svm

from rntk_dist.operators import Dense, Indices, Operator
from rntk_dist.solve.memory import panels, require_room, whole
from rntk_dist.solve.systems import Float64, across_of

type Columns = Literal["all", "support"]
type Labels = NDArray[Any]

_WAY_OUT = (
    "write it to a float64 .npy file and fit on np.load(file, mmap_mode='r'), which is used where "
    "it lies, fit on fewer samples, or use KernelRidge, which never holds the matrix"
)


class SupportVectorMachine(ABC):
    """What SVC and SVR have in common.

    After `fit`: `support_` (support vectors,), the training samples that predictions depend on,
    and `machine_`, a machine of scikit-learn that is fitted as if they had been all: it takes
    kernels (m, support vectors).
    """

    def __init__(self, C: float, memory: int | None, options: dict[str, Any]) -> None:
        self.C, self.memory, self.options = C, memory, options

    @abstractmethod
    def _new(self) -> Any:
        """The machine of scikit-learn, not fitted."""

    def fit(
        self, X: Operator | ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train on the kernel (n, n) of samples with labels or targets (n,).

        Takes 8 n^2 bytes, but nothing for an array of float64 in C's order, and LIBSVM's cache.

        Raises SolverMemoryError where that does not fit into the memory, ValueError for a matrix
        that is not square, and what scikit-learn raises.
        """
        machine = self._new()
        values = self._values(X, int(machine.cache_size * 2**20))
        machine.fit(values, y, sample_weight)
        self.support_: Indices = machine.support_.astype(np.int64)
        self.n_samples_ = len(values)
        self.machine_ = _of_support(machine)
        return self

    def _values(self, X: Operator | ArrayLike, cache: int) -> Float64:
        """The matrix as LIBSVM reads it, copied only if it must be."""
        matrix = X if isinstance(X, Operator) else Dense(X, symmetric=True)
        n, m = matrix.shape
        if n != m or not matrix.symmetric:
            raise ValueError(
                f"found a matrix of shape {n} x {m} that is not symmetric: to fit, give that of "
                "the training samples"
            )
        what = f"a support vector machine of {n} samples"
        if isinstance(matrix, Dense) and _as_libsvm_reads(matrix.values):
            require_room(cache, self.memory, what, "set a smaller cache_size")
            return np.asarray(matrix.values, np.float64)
        needed = 8 * n * (n + 2 * min(matrix.edge, n)) + cache
        require_room(needed, self.memory, what, _WAY_OUT)
        return whole(matrix)

    def _by_panel(
        self, X: Operator | ArrayLike, columns: Columns, function: Callable[[Float64], Labels]
    ) -> Labels:
        """A function of the kernel (rows, support vectors), of all rows; some rows at a time."""
        if columns not in ("all", "support"):
            raise ValueError(f"columns is {columns!r}: give all or support")
        count = len(self.support_)
        across = across_of(X, self.n_samples_ if columns == "all" else count)
        wanted = self.support_ if columns == "all" else np.arange(count)
        found = [
            function(np.ascontiguousarray(across.block(rows, wanted), dtype=np.float64))
            for rows in panels(len(across), across.edge)
        ]
        return np.concatenate(found)


class SVC(SupportVectorMachine):
    """As scikit-learn's SVC with kernel="precomputed".

    Parameters
    ----------
    C : float
    memory : int, optional
        Bytes that this process may take in all; by default what it has and half of what is free.
    options
        Those of scikit-learn's SVC, but for the kernel and its parameters.

    After `fit` also `classes_`.

    >>> import numpy as np
    >>> x = np.array([-2.0, -1.0, 1.0, 2.0])
    >>> machine = SVC(C=10.0).fit(np.outer(x, x), ["left", "left", "right", "right"])
    >>> machine.support_
    array([1, 2])
    >>> machine.predict(np.outer([3.0, -0.5], x[machine.support_]), columns="support")
    array(['right', 'left'], dtype='<U5')
    """

    def __init__(self, C: float = 1.0, *, memory: int | None = None, **options: Any) -> None:
        super().__init__(C, memory, options)

    @override
    def _new(self) -> Any:
        return svm.SVC(kernel="precomputed", C=self.C, **self.options)

    @property
    def classes_(self) -> Labels:
        """The labels, sorted."""
        labels: Labels = self.machine_.classes_
        return labels

    def predict(self, X: Operator | ArrayLike, *, columns: Columns = "all") -> Labels:
        """The labels (m,) of new samples.

        Parameters
        ----------
        X : Operator or (m, n) array
            Kernel of the new samples with the training samples, of which the support vectors'
            columns are read.
        columns : "all" or "support"
            With "support" X is (m, support vectors), in the order of `support_`.

        Raises ValueError for another number of columns.
        """
        return self._by_panel(X, columns, self.machine_.predict)

    def decision_function(self, X: Operator | ArrayLike, *, columns: Columns = "all") -> Float64:
        """As scikit-learn's: (m,) for two classes, else (m, classes) or (m, pairs of classes).

        Arguments and errors are those of `predict`.
        """
        return self._by_panel(X, columns, self.machine_.decision_function)


class SVR(SupportVectorMachine):
    """As scikit-learn's SVR with kernel="precomputed".

    Parameters
    ----------
    C : float
    epsilon : float
        Within which no residual counts.
    memory : int, optional
        Bytes that this process may take in all; by default what it has and half of what is free.
    options
        Those of scikit-learn's SVR, but for the kernel and its parameters.
    """

    def __init__(
        self, C: float = 1.0, epsilon: float = 0.1, *, memory: int | None = None, **options: Any
    ) -> None:
        super().__init__(C, memory, options)
        self.epsilon = epsilon

    @override
    def _new(self) -> Any:
        return svm.SVR(kernel="precomputed", C=self.C, epsilon=self.epsilon, **self.options)

    def predict(self, X: Operator | ArrayLike, *, columns: Columns = "all") -> Float64:
        """The values (m,) for new samples; arguments and errors are those of `SVC.predict`."""
        return self._by_panel(X, columns, self._regressed)

    def _regressed(self, block: Float64) -> Float64:
        if block.shape[1] == 0:  # a tube that holds all targets; scikit-learn wants a column
            return np.full(len(block), float(self.machine_.intercept_[0]))
        values: Float64 = self.machine_.predict(block)
        return values


def _as_libsvm_reads(values: NDArray[Any]) -> bool:
    return values.dtype == np.float64 and values.flags.c_contiguous


def _of_support(fitted: Any) -> Any:
    """The machine as it would be, had it been fitted on its support vectors alone."""
    count = len(fitted.support_)
    small = copy.copy(fitted)
    small.support_ = np.arange(count, dtype=fitted.support_.dtype)
    small.shape_fit_, small.n_features_in_ = (count, count), count
    return small
