"""Matrices that are never held whole: what all of them can do, and the lazy ones made of others.

An `Operator` is multiplied with columns, read in blocks, and asked for its diagonal. A stored Gram
matrix is one (`rntk_dist.gram.Gram`), `Dense` makes one of an array. Rescaling, centring and sums
are operators, too: light views that hold vectors and pass the rest on. Solvers take any of them.

What a view computes, it computes in float64.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, override

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.axis_keys import Index, two_selections

if TYPE_CHECKING:
    import dask.array as da
    from scipy.sparse.linalg import LinearOperator

type Float64 = NDArray[np.float64]
type Indices = NDArray[np.int64]
type Block = NDArray[np.floating[Any]]

DENSE_EDGE = 1024


class Operator(ABC):
    """A matrix (n, m) of float32 or float64, symmetric or not.

    Each axis is indexed on its own, as with `numpy.ix_`: by an int, a slice, integers or a mask.
    `np.asarray` gives the whole, `matrix @ V` and `V @ matrix` stream it.
    """

    ndim = 2
    # NumPy must leave `V @ matrix` to us: converting the view first would read the whole matrix.
    __array_priority__ = 1000

    # -- what a matrix says of itself --------------------------------------------------------------

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """Of its values: float32 or float64, which it is unless said otherwise."""
        return np.dtype(np.float64)

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether it is its own transpose: the kernel of samples with themselves."""

    @property
    @abstractmethod
    def edge(self) -> int:
        """Rows and columns of the blocks that it is best read in."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A SHA-256, in hex, that two matrices share only if their values are meant to be the same.

        A checkpoint is known by it again, in another process, too.
        """

    @abstractmethod
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        """The product (n, k) with V (m, k); transposed (m, k) with V (n, k). Float64 throughout."""

    @abstractmethod
    def block(self, rows: Indices, cols: Indices) -> Block:
        """The values (len(rows), len(cols)) at the indices, which lie inside; a new array."""

    @abstractmethod
    def diag(self) -> Block:
        """The diagonal (n,); raises ValueError unless symmetric."""

    @abstractmethod
    def to_dask(self) -> da.Array:
        """The matrix as a lazy Dask array."""

    # -- what follows from that --------------------------------------------------------------------

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Index | tuple[Index, ...]) -> Any:
        """A part of the matrix as an array; an int drops its axis.

        Raises IndexError for indices outside the matrix, masks of another length, or more than two
        axes.
        """
        rows, cols = two_selections(key, self.shape)
        out = self.block(rows.indices, cols.indices)
        part = out[0 if rows.single else slice(None), 0 if cols.single else slice(None)]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a stored Gram matrix cannot become an array without a copy")
        return np.asarray(self[:, :], dtype=dtype)

    def __matmul__(self, V: ArrayLike) -> NDArray[Any]:
        """The product with V, shape (columns,) or (columns, k); the matrix is never held whole."""
        return self._checked_product(np.asarray(V), transposed=False)

    def __rmatmul__(self, V: ArrayLike) -> NDArray[Any]:
        """The product of V, shape (rows,) or (k, rows), with the matrix."""
        return self._checked_product(np.asarray(V).T, transposed=True).T

    def _checked_product(self, V: NDArray[Any], *, transposed: bool) -> NDArray[Any]:
        n, m = self.shape
        if V.ndim not in (1, 2) or V.shape[0] != (n if transposed else m):
            raise ValueError(
                f"cannot multiply the {n} x {m} matrix with an array of shape {V.shape}"
            )
        if V.dtype.kind not in "biuf":
            raise ValueError(f"cannot multiply the {n} x {m} matrix with {V.dtype}: give reals")
        columns = V.astype(np.float64, copy=False).reshape(len(V), -1)
        out = self.product(columns, transposed=transposed)
        shaped = out.reshape(len(out), *V.shape[1:])
        return shaped.astype(np.result_type(self.dtype, V.dtype), copy=False)

    def normalized(
        self, row_diag: ArrayLike | None = None, col_diag: ArrayLike | None = None
    ) -> Operator:
        """k(x, y) / sqrt(k(x, x) k(y, y)), lazily; 0 where a diagonal entry is.

        A symmetric matrix brings its diagonal along. One of two sets of samples needs the diagonals
        (n,) and (m,) of both, which it does not hold.

        Raises ValueError where diagonals are missing, or negative.
        """
        if not self.symmetric and (row_diag is None or col_diag is None):
            raise ValueError(
                "a rectangular matrix holds no diagonal: give normalized the diagonals of its "
                "rows' and its columns' samples"
            )
        left = _inverse_root(self.diag() if row_diag is None else row_diag)
        if self.symmetric:
            return Rescaled(self, left, left)
        return Rescaled(self, left, _inverse_root([] if col_diag is None else col_diag))

    def centered(self, training: Operator | None = None) -> Operator:
        """The kernel of features minus their mean over the training samples, lazily.

        A symmetric matrix is that of the training samples. One of others (n) against the training
        samples (m) needs theirs, (m, m), not centred. The means take one product with each matrix.

        Raises ValueError where it is missing, or of other samples by its shape.
        """
        return Centered(self, training)

    def as_linear_operator(self) -> LinearOperator:
        """For scipy.sparse.linalg: float64, with products of vectors and matrices both ways."""
        from scipy.sparse.linalg import LinearOperator  # here: others need none of scipy

        return LinearOperator(
            shape=self.shape,
            dtype=np.dtype(np.float64),
            matvec=lambda v: self.product(_column(v))[:, 0],
            rmatvec=lambda v: self.product(_column(v), transposed=True)[:, 0],
            matmat=lambda V: self.product(np.asarray(V, np.float64)),
            rmatmat=lambda V: self.product(np.asarray(V, np.float64), transposed=True),
        )

    def __add__(self, other: Operator) -> Operator:
        """The lazy sum of two matrices of one shape; raises ValueError for another shape."""
        if not isinstance(other, Operator):
            return NotImplemented
        return WeightedSum([(1.0, self), (1.0, other)])

    def __mul__(self, factor: float) -> Operator:
        """The lazy multiple by a finite number."""
        return WeightedSum([(float(factor), self)])

    __rmul__ = __mul__


class Dense(Operator):
    """An array (n, m) in memory as an operator; it is not copied."""

    def __init__(self, values: ArrayLike, symmetric: bool | None = None) -> None:
        """Without `symmetric`, whether the values say so; raises ValueError for no real matrix."""
        array = np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise ValueError(
                f"found an array of shape {array.shape} and type {array.dtype} where a real matrix "
                "is needed: give one of two axes"
            )
        wanted = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
        self.values: Block = array.astype(wanted, copy=False)
        square = array.shape[0] == array.shape[1]
        if symmetric is None:
            symmetric = square and bool(np.array_equal(self.values, self.values.T))
        self._symmetric = symmetric

    @property
    @override
    def shape(self) -> tuple[int, int]:
        n, m = self.values.shape
        return n, m

    @property
    @override
    def dtype(self) -> np.dtype[np.floating[Any]]:
        return self.values.dtype

    @property
    @override
    def symmetric(self) -> bool:
        return self._symmetric

    @property
    @override
    def edge(self) -> int:
        return DENSE_EDGE

    @cached_property
    @override
    def identity(self) -> str:
        return _sha256("dense", self.values)

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        out: Float64 = np.asarray((self.values.T if transposed else self.values) @ V, np.float64)
        return out

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        return self.values[np.ix_(rows, cols)]

    @override
    def diag(self) -> Block:
        _require_symmetric(self)
        return self.values.diagonal().copy()

    @override
    def to_dask(self) -> da.Array:
        import dask.array as da  # here, for it takes pandas along: most of a second

        lazy: da.Array = da.from_array(self.values, chunks=self.edge)
        return lazy


class View(Operator):
    """Another operator of the same samples, `inner`, seen differently; in float64."""

    def __init__(self, inner: Operator) -> None:
        self.inner = inner

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    @override
    def symmetric(self) -> bool:
        return self.inner.symmetric

    @property
    @override
    def edge(self) -> int:
        return self.inner.edge


class Rescaled(View):
    """left[i] * k[i, j] * right[j], of another operator and vectors (n,) and (m,)."""

    def __init__(self, inner: Operator, left: Float64, right: Float64) -> None:
        if (len(left), len(right)) != inner.shape:
            raise ValueError(
                f"found {len(left)} and {len(right)} factors for a matrix of shape {inner.shape}: "
                "give one for each row and each column"
            )
        super().__init__(inner)
        self.left, self.right = left, right
        self._symmetric = inner.symmetric and (left is right or np.array_equal(left, right))

    @property
    @override
    def symmetric(self) -> bool:
        return self._symmetric

    @property
    @override
    def identity(self) -> str:
        return _sha256("rescaled", self.inner.identity, self.left, self.right)

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        first, last = (self.left, self.right) if transposed else (self.right, self.left)
        return last[:, None] * self.inner.product(first[:, None] * V, transposed=transposed)

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        out = self.inner.block(rows, cols).astype(np.float64, copy=False)
        # Each factor by itself, in this order, as for the diagonal: 1 there is the same bits.
        out *= self.left[rows][:, None]
        out *= self.right[cols]
        return out

    @override
    def diag(self) -> Block:
        _require_symmetric(self)
        own: Float64 = self.inner.diag().astype(np.float64, copy=False)
        return own * self.left * self.right

    @override
    def to_dask(self) -> da.Array:
        lazy: da.Array = self.inner.to_dask() * self.left[:, None] * self.right
        return lazy


class Centered(View):
    """k[i, j] - mean_j' k[i, j'] - mean_i' K[i', j] + mean K, with K of the training samples.

    The means are taken when they are first needed, by one product with each matrix.
    """

    def __init__(self, inner: Operator, training: Operator | None = None) -> None:
        if training is None and not inner.symmetric:
            raise ValueError(
                "a rectangular matrix is centred by means over the training samples: give centered "
                "the matrix of those"
            )
        if training is not None and training.shape != (inner.shape[1],) * 2:
            raise ValueError(
                f"found training samples of shape {training.shape} for a matrix of shape "
                f"{inner.shape}: give the square matrix of the samples of its columns"
            )
        super().__init__(inner)
        self.training = training

    @cached_property
    def row_means(self) -> Float64:
        """(n,): of each row over the training samples."""
        m = self.shape[1]
        return self.inner.product(np.full((m, 1), 1.0 / m))[:, 0]

    @cached_property
    def column_means(self) -> Float64:
        """(m,): of each training sample over all of them."""
        if self.training is None:
            return self.row_means
        return Centered(self.training).row_means

    @property
    @override
    def symmetric(self) -> bool:
        return self.training is None

    @property
    @override
    def identity(self) -> str:
        training = "" if self.training is None else self.training.identity
        return _sha256("centered", self.inner.identity, training)

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        rows, cols = self.row_means, self.column_means
        first, last = (rows, cols) if transposed else (cols, rows)
        sums = V.sum(axis=0)
        level = cols.mean() * sums - first @ V
        return self.inner.product(V, transposed=transposed) - last[:, None] * sums + level

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        out = self.inner.block(rows, cols).astype(np.float64, copy=False)
        out -= self.row_means[rows][:, None]
        out -= self.column_means[cols] - self.column_means.mean()
        return out

    @override
    def diag(self) -> Block:
        _require_symmetric(self)
        own: Float64 = self.inner.diag().astype(np.float64, copy=False)
        return own - self.row_means - (self.column_means - self.column_means.mean())

    @override
    def to_dask(self) -> da.Array:
        shift = self.column_means - self.column_means.mean()
        lazy: da.Array = self.inner.to_dask() - self.row_means[:, None] - shift
        return lazy


class WeightedSum(Operator):
    """The sum of operators of one shape, each times a number."""

    def __init__(self, terms: Iterable[tuple[float, Operator]]) -> None:
        self.terms = tuple(term for weight, each in terms for term in _flat(weight, each))
        shapes = [each.shape for _, each in self.terms]
        if len(set(shapes)) > 1:
            raise ValueError(f"cannot add matrices of shapes {shapes}: give them one shape")
        if not all(np.isfinite(weight) for weight, _ in self.terms):
            raise ValueError("cannot multiply a matrix with NaN or infinity: give a finite number")

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.terms[0][1].shape

    @property
    @override
    def symmetric(self) -> bool:
        return all(each.symmetric for _, each in self.terms)

    @property
    @override
    def edge(self) -> int:
        return max(each.edge for _, each in self.terms)

    @property
    @override
    def identity(self) -> str:
        parts = [part for weight, each in self.terms for part in (repr(weight), each.identity)]
        return _sha256("sum", *parts)

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        out = np.zeros((self.shape[1 if transposed else 0], V.shape[1]))
        for weight, each in self.terms:
            out += weight * each.product(V, transposed=transposed)
        return out

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        out = np.zeros((len(rows), len(cols)))
        for weight, each in self.terms:
            out += weight * each.block(rows, cols)
        return out

    @override
    def diag(self) -> Block:
        _require_symmetric(self)
        out = np.zeros(len(self))
        for weight, each in self.terms:
            out += weight * each.diag()
        return out

    @override
    def to_dask(self) -> da.Array:
        lazy: da.Array = sum(weight * each.to_dask() for weight, each in self.terms)
        return lazy


def _flat(weight: float, each: Operator) -> Iterable[tuple[float, Operator]]:
    """A sum of sums is a sum."""
    if isinstance(each, WeightedSum):
        return [(weight * inner, term) for inner, term in each.terms]
    return [(weight, each)]


def _require_symmetric(matrix: Operator) -> None:
    if not matrix.symmetric:
        n, m = matrix.shape
        raise ValueError(f"the {n} x {m} matrix is not symmetric: it has no diagonal of samples")


def _inverse_root(diagonal: ArrayLike) -> Float64:
    values = np.asarray(diagonal, np.float64)
    if not (values >= 0).all():
        at = int(np.flatnonzero(~(values >= 0))[0])
        raise ValueError(
            f"entry {at} of the diagonal is {values[at]}: a kernel of a sample with itself is not "
            "negative"
        )
    root = np.sqrt(values)
    return np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)


def _column(v: Any) -> Float64:
    return np.asarray(v, np.float64).reshape(-1, 1)


def _sha256(*parts: str | NDArray[Any]) -> str:
    """Of texts and arrays, each with its length or its shape before it."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"{len(part)}:{part}".encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
