"""What the UCR experiment compares: kernels on sequences seen in some way, by method.

A method is a tuple of variants, of which cross-validation chooses one. The first of them is its
default: it is in every reduced grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from rntk_dist.experiments.inputs import (
    AsTheyAre,
    Averaged,
    Delays,
    Inputs,
    Padded,
    Rescaled,
    WithDifferences,
)
from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences
from rntk_dist.solve.selection import cosine

type Float64 = NDArray[np.float64]

ROOT_2 = 2**0.5

# Alemohammad et al. 2021: 15 x 12 x 5 = 900 kernels, the default of each first.
PAPER_SIGMA_W = (ROOT_2, *(round(1.34 + 0.01 * k, 2) for k in range(14)))
PAPER_SIGMA_B = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0, 2.0)
PAPER_SIGMA_H = (0.0, 0.01, 0.1, 0.5, 1.0)

# Coarser and wider, for readouts that the paper does not have.
SIGMA_W = (ROOT_2, 1.34, 1.47, 1.2, 1.6, 1.0, 0.7)
SIGMA_B = (0.1, 0.0, 0.5, 1.0, 2.0)
DELAY_SIGMAS = ((ROOT_2, 0.1), (1.2, 0.1), (1.0, 0.1), (0.7, 0.1))
WINDOWS = (8, 2, 4, 16, 32, 64)

MEAN_WORK = 3e7
"""The readout "mean" compares every step with every other one. Where n² T² of the training part
exceeds this, a sixth of a second of one core, it sees sequences averaged over parts of their
time."""

JUDGED = 10
"""The matrix of the test part may take so many times that work: it is computed for what is chosen,
and not for a whole grid."""


class Kernel(Protocol):
    """What a variant needs of a kernel; RNTK is one."""

    def __call__(self, X: Sequences, Y: Sequences | None = None) -> Float64:
        """(n, n), or (n, m) with Y."""
        ...

    def diag(self, X: Sequences) -> Float64:
        """(n,): each sequence with itself."""
        ...


@dataclass(frozen=True)
class RBF:
    """exp(-gamma |x - y|² / d) on sequences of one step of d features.

    >>> RBF(0.5)(Sequences.from_arrays([[[1.0, 1.0]], [[1.0, 3.0]]])).round(4).tolist()
    [[1.0, 0.3679], [0.3679, 1.0]]
    """

    gamma: float = 1.0

    def __call__(self, X: Sequences, Y: Sequences | None = None) -> Float64:
        """(n, n) or (n, m)."""
        other = X if Y is None else Y
        X.require_numbers("an RBF kernel")
        other.require_numbers("an RBF kernel")
        squares: Float64 = cdist(X.values, other.values, "sqeuclidean")
        values: Float64 = np.exp(squares * (-self.gamma / X.n_features))
        return values

    def diag(self, X: Sequences) -> Float64:
        """(n,): ones."""
        return np.ones(len(X))


@dataclass(frozen=True)
class Polynomial:
    """(<x, y> / d + offset)^degree on sequences of one step of d features.

    >>> Polynomial(2, 1.0)(Sequences.from_arrays([[[2.0, 0.0]], [[1.0, 5.0]]])).tolist()
    [[9.0, 4.0], [4.0, 196.0]]
    """

    degree: int = 1
    offset: float = 0.0

    def __call__(self, X: Sequences, Y: Sequences | None = None) -> Float64:
        """(n, n) or (n, m)."""
        other = X if Y is None else Y
        X.require_numbers("a polynomial kernel")
        other.require_numbers("a polynomial kernel")
        products = np.asarray(X.values @ other.values.T, dtype=np.float64)
        values: Float64 = (products / X.n_features + self.offset) ** self.degree
        return values

    def diag(self, X: Sequences) -> Float64:
        """(n,)."""
        X.require_numbers("a polynomial kernel")
        squares = (X.values**2).mean(axis=1, dtype=np.float64)
        values: Float64 = (squares + self.offset) ** self.degree
        return values


@dataclass(frozen=True)
class Variant:
    """A kernel on sequences seen in one way."""

    inputs: Inputs
    kernel: Kernel

    @property
    def name(self) -> str:
        """Both, by what differs from their defaults."""
        seen = "" if isinstance(self.inputs, AsTheyAre) else f" on {_short(self.inputs)}"
        return _short(self.kernel) + seen

    def square(self, train: Sequences) -> Float64:
        """(n, n)."""
        return self.kernel(self.inputs(train))

    def across(self, test: Sequences, train: Sequences) -> Float64:
        """(m, n)."""
        return self.kernel(self.inputs(test), self.inputs(train))

    def diagonal(self, sequences: Sequences) -> Float64:
        """(m,)."""
        return self.kernel.diag(self.inputs(sequences))


@dataclass(frozen=True)
class MeanOf:
    """The mean of the cosine-normalised kernels of several variants."""

    parts: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """All parts."""
        return " + ".join(part.name for part in self.parts)

    def square(self, train: Sequences) -> Float64:
        """(n, n)."""
        return mean_of([normalised(part.square(train)) for part in self.parts])

    def across(self, test: Sequences, train: Sequences) -> Float64:
        """(m, n)."""
        return mean_of(
            [
                cosine(part.across(test, train), part.diagonal(test), part.diagonal(train))
                for part in self.parts
            ]
        )

    def diagonal(self, sequences: Sequences) -> Float64:
        """(m,): of each part 1, or 0 where its kernel is."""
        return np.mean([part.diagonal(sequences) > 0 for part in self.parts], axis=0)


def normalised(square: Float64) -> Float64:
    """k(x, y) / sqrt(k(x, x) k(y, y))."""
    diagonal = np.diagonal(square)
    return cosine(square, diagonal, diagonal)


def mean_of(kernels: Sequence[Float64]) -> Float64:
    """The mean of matrices of one shape."""
    values: Float64 = np.mean(kernels, axis=0)
    return values


@dataclass(frozen=True)
class Method:
    """A name, and the variants of which one is chosen for each data set."""

    name: str
    variants: tuple[Variant, ...]


def methods(train: Sequences, mean_work: float = MEAN_WORK, n_test: int = 0) -> tuple[Method, ...]:
    """All methods for one data set; of its training part the lengths alone are used.

    Readout "mean" sees sequences averaged where n² T² exceeds `mean_work`, or where n `n_test` T²,
    with the number of test samples, exceeds `JUDGED` times that.
    """
    paper = _grid(
        RNTK(sigma_w=w, sigma_b=b, sigma_h=h, initial_state="independent")
        for w, b, h in product(PAPER_SIGMA_W, PAPER_SIGMA_B, PAPER_SIGMA_H)
    )
    return (
        Method("RNTK last", paper),
        *_further_rntk(_mean_inputs(train, mean_work, n_test)),
        *_beyond(train),
        *_vector_methods(train),
    )


def _grid(kernels: Any, inputs: Inputs | None = None) -> tuple[Variant, ...]:
    return tuple(Variant(inputs or AsTheyAre(), kernel) for kernel in kernels)


def _further_rntk(mean_inputs: Inputs) -> list[Method]:
    """The three readouts, bidirectional and of two layers; 'last' as it is has the paper's grid."""
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        ", bidirectional": {"bidirectional": True},
        ", depth 2": {"depth": 2},
    }
    found = []
    for readout, (suffix, options) in product(("last", "per_step", "mean"), kinds.items()):
        if readout == "last" and not suffix:
            continue
        usual = {"readout": readout, **options}
        sigmas = product(SIGMA_W, SIGMA_B)
        kernels = [RNTK.from_dict(usual | {"sigma_w": w, "sigma_b": b}) for w, b in sigmas]
        inputs = mean_inputs if readout == "mean" else AsTheyAre()
        found.append(Method(f"RNTK {readout}{suffix}", _grid(kernels, inputs)))
    return found


def _mean_inputs(train: Sequences, work: float, n_test: int) -> Inputs:
    """As they are where that is affordable, else averaged to half, a quarter ... of the steps."""
    longest = steps = int(train.lengths.max())
    pairs = len(train) * max(len(train), n_test / JUDGED)
    while steps > 8 and pairs * steps**2 > work:
        steps //= 2
    return AsTheyAre() if steps == longest else Averaged(steps)


def _beyond(train: Sequences) -> list[Method]:
    """Windows and differences; windows of which training sequences have at least two."""
    per_step = [RNTK(sigma_w=w, sigma_b=b, readout="per_step") for w, b in DELAY_SIGMAS]
    windows = [w for w in WINDOWS if w < int(train.lengths.max())] or [1]
    delays = [variant for w in windows for variant in _grid(per_step, Delays(w))]
    kernels = [RNTK(sigma_w=w, sigma_b=b, readout="per_step") for w, b in product(SIGMA_W, SIGMA_B)]
    return [
        Method("RNTK per_step, delays", tuple(delays)),
        Method("RNTK per_step, differences", _grid(kernels, WithDifferences())),
    ]


def _vector_methods(train: Sequences) -> list[Method]:
    """The kernels that need vectors; in three ways where lengths vary."""
    ntk = [RNTK(depth=d, sigma_b=b) for d, b in product((1, 2, 3, 5), (0.1, 0.0, 0.5, 1.0))]
    rbf = [RBF(10.0 ** (k / 2)) for k in (0, -4, -3, -2, -1, 1, 2, 3, 4)]
    polynomial = [Polynomial(d, r) for d, r in product((1, 2, 3, 4, 5), (0.0, 0.1, 1.0))]
    shortest, longest = int(train.lengths.min()), int(train.lengths.max())
    seen: dict[str, Inputs] = {"": Padded(longest)}
    if not train.equal_length:
        seen = {
            ", padded": Padded(longest),
            ", truncated": Padded(shortest),
            ", rescaled": Rescaled(longest),
        }
    return [
        Method(name + suffix, _grid(kernels, inputs))
        for suffix, inputs in seen.items()
        for name, kernels in {"NTK": ntk, "RBF": rbf, "polynomial": polynomial}.items()
    ]


def _short(options: Any) -> str:
    """A dataclass by the fields that differ from their defaults."""
    told = [
        f"{field.name}={_number(value)}"
        for field, value in ((field, options.__dict__[field.name]) for field in fields(options))
        if field.default is MISSING or value != field.default
    ]
    return f"{type(options).__name__}({', '.join(told)})"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
