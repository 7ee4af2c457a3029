"""RNTK: the hyper-parameters of an infinitely wide recurrent network, and its kernel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel import sensitivity
from rntk_dist.kernel.arrays import Recursion, diagonal_values
from rntk_dist.kernel.backends import tile_function
from rntk_dist.kernel.number_types import tile_values_in
from rntk_dist.kernel.scaled import Float64
from rntk_dist.kernel.scaling import scale_block
from rntk_dist.kernel.variances import NORMS, READOUT_POWER, Slab, make_slabs, stacked
from rntk_dist.markup import card, facts, strong
from rntk_dist.sequences import ItemIds, Sequences

Activation = Literal["relu", "erf", "linear"]
Readout = Literal["last", "per_step", "mean", "diagonal_authors"]
InitialState = Literal["shared", "independent"]
Kind = Literal["ntk", "nngp"]
DType = Literal["float64", "float32"]
Backend = Literal["auto", "numpy", "numba", "cupy"]

INITIAL_STATES = ("shared", "independent")
KINDS = ("ntk", "nngp")
DTYPES = ("float64", "float32")
BACKENDS = ("auto", "numpy", "numba", "cupy")


@dataclass(frozen=True)
class RNTK:
    """Recurrent neural tangent kernel of sequences of any length.

    The kernel of the network of Alemohammad, Wang, Balestriero and Baraniuk (ICLR 2021) at infinite
    width: layers l = 1..depth, steps t = 1..T, inputs x_t of m features, weights shared over time,

        g[l,t] = sigma_w/sqrt(n) W_l h[l,t-1] + sigma_u/sqrt(fan_in) U_l in[l,t] + sigma_b b_l
        h[l,t] = phi(g[l,t]),   h[l,0] = sigma_h N(0, I),   f = sigma_v/sqrt(n) V h[L,T]

    Parameters
    ----------
    depth : int
        Number of recurrent layers, L >= 1.
    activation : {"relu", "erf", "linear"}
        phi.
    sigma_w, sigma_u, sigma_b, sigma_h, sigma_v : float
        Standard deviations, >= 0, of recurrent weights, input weights, biases, the initial hidden
        state and the readout. For relu, sigma_w = sqrt(2) weighs all steps alike.
    readout : {"last", "per_step", "mean", "diagonal_authors"}
        What the network's output is: the last step; a readout vector of its own for every step
        counted from the end; one readout of the mean over time. "diagonal_authors" is the published
        "average" of the paper's authors, for comparison only: equal lengths, and no network has it.
    bidirectional : bool
        Sum of the kernel of the sequences and of the sequences reversed in time.
    frozen_layers : int
        The first so many layers are not trained; ``depth`` leaves the readout alone.
    initial_state : {"shared", "independent"}
        Whether different sequences start from one random state (a network does that), or each from
        its own (the paper's). Equal when sigma_h = 0.
    normalize : bool
        k(x, y) / sqrt(k(x, x) k(y, y)), and 0 where a sequence has k(x, x) = 0.

    Examples
    --------
    >>> import rntk_dist as rd
    >>> kernel = rd.RNTK(sigma_w=1.4, readout="per_step")
    >>> kernel([[1.0, 2.0, 0.5], [0.5, -1.0]]).round(4)
    array([[4.8403, 0.7505],
           [0.7505, 0.8088]])
    """

    depth: int = 1
    activation: Activation = "relu"
    sigma_w: float = math.sqrt(2)
    sigma_u: float = 1.0
    sigma_b: float = 0.0
    sigma_h: float = 0.0
    sigma_v: float = 1.0
    readout: Readout = "last"
    bidirectional: bool = False
    frozen_layers: int = 0
    initial_state: InitialState = "shared"
    normalize: bool = False

    def __post_init__(self) -> None:
        for name in ("sigma_w", "sigma_u", "sigma_b", "sigma_h", "sigma_v"):
            object.__setattr__(self, name, _standard_deviation(name, getattr(self, name)))
        for name, lowest in (("depth", 1), ("frozen_layers", 0)):
            object.__setattr__(self, name, _count(name, getattr(self, name), lowest))
        for name in ("bidirectional", "normalize"):
            object.__setattr__(self, name, _flag(name, getattr(self, name)))
        require_one_of("activation", self.activation, tuple(NORMS))
        require_one_of("readout", self.readout, tuple(READOUT_POWER))
        require_one_of("initial_state", self.initial_state, INITIAL_STATES)
        if self.frozen_layers > self.depth:
            raise ValueError(
                f"frozen_layers is {self.frozen_layers} but the network has depth {self.depth}: "
                "at most all layers can be frozen"
            )
        if self.sigma_u == self.sigma_b == self.sigma_h == 0:
            raise ValueError(
                "sigma_u, sigma_b and sigma_h are all 0: the kernel would be 0 everywhere; "
                "give at least one of them a positive value"
            )
        if self.sigma_v == 0:
            raise ValueError("sigma_v is 0: the kernel would be 0 everywhere; the default is 1")

    def __call__(
        self,
        X: Any,
        Y: Any = None,
        *,
        kind: Kind = "ntk",
        dtype: DType | np.dtype[Any] | type = "float64",
        backend: Backend = "auto",
    ) -> NDArray[Any]:
        """Kernel matrix between two batches of sequences.

        Parameters
        ----------
        X, Y : Sequences, or anything `Sequences.from_arrays` takes
            n and m sequences. Without Y, X with itself: one triangle is computed, and entry (i, i)
            is one sample with itself. Sequences of X and Y are different samples even where their
            values agree.
        kind : {"ntk", "nngp"}
            Tangent kernel, or covariance (conjugate) kernel.
        dtype : {"float64", "float32"}
            Number type of the computation over pairs and of the result.
        backend : {"auto", "numpy", "numba", "cupy"}
            The loops over pairs: plain arrays, compiled for the CPU, compiled for a GPU; equal to
            rounding. "auto" takes the GPU where CuPy sees one, else "numba". Compiled loops are
            kept on disk; the first call on a machine says on standard error that it compiles.

        Returns
        -------
        (n, n) or (n, m) ndarray

        Raises
        ------
        OverflowError
            If a value leaves the range of the number type, upwards or downwards, naming the
            sequences.
        ValueError
            If the inputs are unusable, or of different feature counts.
        """
        rows = Sequences.from_arrays(X)
        columns = None if Y is None else Sequences.from_arrays(Y)
        number = check_run_options(kind, dtype, backend)
        self.check_sequences(rows, columns)
        row_side = prepared([self], rows, kind, with_self=columns is None)[0]
        column_side = None
        if columns is not None:
            column_side = prepared([self], columns, kind, with_self=False)[0]
        return self.compare(row_side, column_side, kind=kind, dtype=number, backend=backend)

    def diag(
        self, X: Any, *, kind: Kind = "ntk", dtype: DType | np.dtype[Any] | type = "float64"
    ) -> NDArray[Any]:
        """Kernel value of each sequence with itself, the diagonal of ``kernel(X)``; shape (n,)."""
        sequences = Sequences.from_arrays(X)
        number = check_run_options(kind, dtype, "auto")
        self.check_sequences(sequences, None)
        side = prepared([self], sequences, kind, with_self=True)[0]
        return self._diagonal(side, self.factor(side), number)

    def sensitivity(self, x: Any, y: Any, *, kind: Kind = "ntk") -> Float64:
        """Norm of the gradient of k(x, y) with respect to each step of x.

        Parameters
        ----------
        x, y : (T,) or (T, m) arrays
            Two different samples; the gradient moves x alone.

        Returns
        -------
        (T,) ndarray
            ``|| d k(x, y) / d x_t ||``, exact (a reverse sweep through the recursion), in float64.
        """
        gradient = sensitivity.gradient(self, _single(x, "x"), _single(y, "y"), kind)
        # Squares of what is near 1 stay within float64.
        peak = np.abs(gradient).max(axis=1)
        share = gradient / np.where(peak > 0, peak, 1.0)[:, None]
        norms: Float64 = peak * np.sqrt((share**2).sum(axis=1))
        return norms

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """The kernel of `to_dict`'s options; unknown names are refused."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"unknown kernel options {unknown}: known are {sorted(known)}")
        return cls(**options)

    def _repr_html_(self) -> str:
        """The options for a notebook; those that are not the default stand out."""
        rows = []
        for item in fields(self):
            value = self.__dict__[item.name]
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            rows.append((item.name, text if value == item.default else strong(text)))
        half = (len(rows) + 1) // 2
        columns = facts(rows[:half]), facts(rows[half:])
        return card("RNTK", "recurrent neural tangent kernel", *columns)

    def recursion(self, kind: Kind) -> Recursion:
        """What the loop over pairs must know of this kernel."""
        return Recursion(
            self.activation,
            self.readout,
            self.frozen_layers,
            kind == "ntk" and self.frozen_layers < self.depth,
            self.initial_state == "shared",
            self.sigma_b > 0,
        )

    def check_sequences(self, rows: Sequences, columns: Sequences | None) -> None:
        """Refuse sequences that this kernel cannot compare, before anything is computed.

        Raises
        ------
        ValueError
            If the feature counts differ, or the readout needs equal lengths and they are not.
        """
        other = rows if columns is None else columns
        if (rows.n_items is None) != (other.n_items is None):
            raise ValueError(
                f"X is {rows!r} and Y is {other!r}: compare items with items, or give one_hot()"
            )
        if rows.n_features != other.n_features:
            raise ValueError(
                f"X has {rows.n_features} features a step and Y has {other.n_features}: "
                "a kernel compares sequences of the same features"
            )
        if self.readout != "diagonal_authors":
            return
        lengths = np.unique(np.concatenate([rows.lengths, other.lengths]))
        if len(lengths) > 1:
            raise ValueError(
                f'readout "diagonal_authors" needs equal lengths, found {lengths[0]} and '
                f'{lengths[-1]}: use "last", "per_step" or "mean"'
            )

    def compare(
        self,
        rows: "Prepared",
        columns: "Prepared | None",
        *,
        kind: Kind,
        dtype: np.dtype[Any],
        backend: Backend,
    ) -> NDArray[Any]:
        """The matrix of sequences `prepared` for this kernel; without columns, with themselves.

        Of ``rows`` without columns the self values must be known. Raises OverflowError.
        """
        values = self.compare_unscaled(rows, columns, kind=kind, dtype=dtype, backend=backend)
        other = rows if columns is None else columns
        row_factor = self.factor(rows)
        column_factor = row_factor if columns is None else self.factor(columns)
        scale_block(values, row_factor, column_factor)
        if columns is None:
            np.fill_diagonal(values, self._diagonal(rows, row_factor, dtype))
        _refuse_overflow(values, rows.slab, other.slab)
        return values

    def compare_unscaled(
        self,
        rows: "Prepared",
        columns: "Prepared | None",
        *,
        kind: Kind,
        dtype: np.dtype[Any],
        backend: Backend,
    ) -> NDArray[Any]:
        """As `compare`, in units of the products of the sequences' `factor`; without diagonal."""
        other = rows if columns is None else columns
        if not self.normalize:
            _refuse_small(rows.slab, other.slab, dtype)
        for side in (rows, other):
            _refuse_rounded_ids(side.slab, dtype)
        return tile_values_in(
            dtype,
            tile_function(backend),
            self.recursion(kind),
            rows.slab,
            None if columns is None else columns.slab,
        )

    def factor(self, side: "Prepared") -> Float64:
        """What turns relative values into kernel values, (n,): a factor for each sequence."""
        if not self.normalize:
            _refuse_infinite(side.slab)
            return side.slab.scale
        root = np.sqrt(side.known())
        return np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)

    def _diagonal(self, side: "Prepared", factor: Float64, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Values of each sequence with itself, computed in float64, rounded to ``dtype``."""
        with np.errstate(over="ignore"):  # refused below, with the sequence's name
            if self.normalize:
                exact = (factor > 0).astype(np.float64)
            else:
                exact = side.known() * factor**2
                _refuse_small_self(exact, side.slab, dtype)
            values: NDArray[Any] = exact.astype(dtype)
        _refuse_overflow(values, side.slab, side.slab)
        return values


@dataclass(frozen=True)
class Prepared:
    """Sequences as one kernel compares them.

    Attributes
    ----------
    slab : their features
    self_values : (n,) what each is with itself, in units of its scale squared; None if not needed
    """

    slab: Slab
    self_values: Float64 | None

    def take(self, rows: NDArray[np.int64]) -> "Prepared":
        """Some of the sequences; features are shared."""
        values = self.self_values
        return Prepared(self.slab.take(rows), None if values is None else values[rows])

    def known(self) -> Float64:
        """The self values. Raises ValueError if they were not asked for."""
        if self.self_values is None:
            raise ValueError("these sequences were prepared without self values: ask for them")
        return self.self_values


def prepared(
    kernels: Sequence[RNTK], sequences: Sequences, kind: Kind, *, with_self: bool
) -> list[Prepared]:
    """Sequences for each of some kernels, which are of one `variances.shape_of`.

    ``with_self``: with their self values, which kernels that normalise have in any case. Steps of
    all kernels are taken together. Raises OverflowError as `variances.make_slabs`.
    """
    slabs = make_slabs(kernels, sequences, kind)
    if not (with_self or any(kernel.normalize for kernel in kernels)):
        return [Prepared(slab, None) for slab in slabs]
    values = diagonal_values(kernels[0].recursion(kind), stacked(slabs))
    parts = np.split(values, len(slabs))
    return [Prepared(slab, part) for slab, part in zip(slabs, parts, strict=True)]


def _refuse_rounded_ids(slab: Slab, dtype: np.dtype[Any]) -> None:
    """Loops tell items apart by their ids as numbers, of which float32 has 2^24."""
    items = slab.directions[0].layers[0].items
    if items is not None and dtype == np.float32 and items.max() >= 2**24:
        raise ValueError(
            f"id {items.max():.0f} is no float32 number: number the items that occur from 0 on, "
            "or use dtype float64"
        )


def _refuse_overflow(values: NDArray[Any], rows: Slab, columns: Slab) -> None:
    if np.isfinite(values).all():
        return
    where = np.argwhere(~np.isfinite(values))[0]
    i, j = int(where[0]), int(where[-1])
    for slab, index in ((rows, i), (columns, j)):
        if slab.beyond[index] >= 0:
            _refuse_beyond(slab, index)
    remedy = ", or dtype float64" if values.dtype == np.float32 else ""
    raise OverflowError(
        f"the kernel of {_named(rows, i)} and {_named(columns, j)} exceeds {values.dtype}: "
        f"normalise the inputs, use a smaller sigma_w, normalize=True{remedy}"
    )


def _refuse_infinite(slab: Slab) -> None:
    beyond = np.flatnonzero(np.isinf(slab.scale))
    if len(beyond):
        _refuse_beyond(slab, int(beyond[0]))


def _refuse_beyond(slab: Slab, index: int) -> None:
    where = f" at step {slab.beyond[index]}" if slab.beyond[index] >= 0 else ""
    raise OverflowError(
        f"the variance of {_named(slab, index)} exceeds float64{where}: normalise the inputs, use "
        "a smaller sigma_w or normalize=True"
    )


def _refuse_small(rows: Slab, columns: Slab, dtype: np.dtype[Any]) -> None:
    """Refuse pairs whose values the number type cannot hold with all its digits, or takes for 0."""
    i, j = _smallest(rows), _smallest(columns)
    if i is None or j is None or rows.scale[i] >= np.finfo(dtype).tiny / columns.scale[j]:
        return
    raise OverflowError(
        f"the kernel of {_named(rows, i)} and {_named(columns, j)} is below the smallest {dtype} "
        f"number, {np.finfo(dtype).tiny:.2g}: {_remedy_for_small(dtype)}"
    )


def _refuse_small_self(values: Float64, slab: Slab, dtype: np.dtype[Any]) -> None:
    small = np.flatnonzero((slab.scale > 0) & (values < np.finfo(dtype).tiny))
    if len(small):
        raise OverflowError(
            f"the kernel of {_named(slab, small[0])} with itself is below the smallest {dtype} "
            f"number, {np.finfo(dtype).tiny:.2g}: {_remedy_for_small(dtype)}"
        )


def _remedy_for_small(dtype: np.dtype[Any]) -> str:
    wider = ", or dtype float64" if dtype == np.float32 else ""
    return f"scale the inputs up, use a larger sigma_w, sigma_b or sigma_v, normalize=True{wider}"


def _smallest(slab: Slab) -> int | None:
    """The sequence of the smallest scale that is not 0."""
    scale = np.where(slab.scale > 0, slab.scale, np.inf)
    at = int(scale.argmin())
    return at if np.isfinite(scale[at]) else None


def _named(slab: Slab, index: Any) -> str:
    return f"sequence {index} (length {slab.lengths[index]})"


def check_run_options(kind: str, dtype: Any, backend: str) -> np.dtype[Any]:
    """Refuse an unknown kind, number type or backend; the number type as a NumPy dtype."""
    require_one_of("kind", kind, KINDS)
    require_one_of("backend", backend, BACKENDS)
    try:
        number: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype is {dtype!r}: choose float64 or float32") from error
    if number.name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose float64 or float32")
    return number


def require_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones, naming them."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(known)}")


def _standard_deviation(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {value!r}")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(
            f"{name} is a standard deviation: it must be finite and >= 0, found {value!r}"
        )
    return number


def _count(name: str, value: object, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, found {value!r}")
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, found {value!r}")
    return int(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, found {value!r}")
    return bool(value)


def _single(x: Any, name: str) -> Sequences:
    if isinstance(x, ItemIds):
        return Sequences.from_arrays([x])  # which refuses them
    array = np.asarray(x)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"{name} must be one sequence of shape (T,) or (T, m), found shape {array.shape}"
        )
    return Sequences.from_arrays([array])
