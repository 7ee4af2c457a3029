"""What belongs to one sequence: its variances, and its features normalised by them.

The recursion of a sequence with itself (section 3 of the paper's supplement: Sigma[l,t,t] of one
input) costs O(L T m) a sequence, against O(L T) a *pair*: it is done once a slab, in float64.
Everything that a pair needs afterwards is a product, or a squared difference, of features of the
two sequences, so the loops over pairs know no hyper-parameter.

Symbols: ``u`` are the independent parts of a pre-activation, ``q = |u|^2`` its variance, ``n(q)``
its norm:

    relu, linear   n = sqrt(q)             erf   n = sqrt(q + 1/2)
    V(q, q)        relu q/2, linear q, erf 2/pi asin(q / n^2)
    S = sqrt(V)    relu, linear            erf   S = 1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.sequences import Sequences

if TYPE_CHECKING:
    from rntk_dist.kernel.rntk import RNTK

Array = NDArray[Any]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Norm:
    """How one activation normalises, as functions of the variance ``q`` of a sequence at one step.

    Attributes
    ----------
    variance : V(q, q) and its derivative, for ``sensitivity``
    norm : n(q)
    output : S(q), the factor that turns f(c) into V
    feature : features are stored times this (see "Haversine" in cell.py)
    """

    variance: Callable[[Float64], Float64]
    variance_slope: Callable[[Float64], Float64]
    norm: Callable[[Float64], Float64]
    norm_slope: Callable[[Float64], Float64]
    output: Callable[[Float64], Float64]
    output_slope: Callable[[Float64], Float64]
    feature: float = 1.0


def _ratio(part: Float64, norm: Float64) -> Float64:
    """part / norm; 0 where the norm is 0: a sequence that is zero so far has no direction.

    A true division, so that a norm made of one part alone gives exactly 1.
    """
    return np.divide(part, norm, out=np.zeros_like(part), where=norm > 0)


def _reciprocal(norm: Float64) -> Float64:
    return _ratio(np.ones_like(norm), norm)


NORMS: dict[str, Norm] = {
    "relu": Norm(
        variance=lambda q: q / 2,
        variance_slope=lambda q: np.full_like(q, 0.5),
        norm=np.sqrt,
        norm_slope=lambda q: _reciprocal(2 * np.sqrt(q)),
        output=lambda q: np.sqrt(q / 2),
        output_slope=lambda q: _reciprocal(2 * np.sqrt(2 * q)),
        feature=0.5,
    ),
    "linear": Norm(
        variance=lambda q: q,
        variance_slope=np.ones_like,
        norm=np.sqrt,
        norm_slope=lambda q: _reciprocal(2 * np.sqrt(q)),
        output=np.sqrt,
        output_slope=lambda q: _reciprocal(2 * np.sqrt(q)),
    ),
    "erf": Norm(
        variance=lambda q: 2 / np.pi * np.arcsin(q / (q + 0.5)),
        variance_slope=lambda q: 2 / np.pi / ((1 + q + q) * np.sqrt(0.25 + q)),
        norm=lambda q: np.sqrt(q + 0.5),
        norm_slope=lambda q: 0.5 / np.sqrt(q + 0.5),
        output=np.ones_like,
        output_slope=np.zeros_like,
    ),
}


@dataclass(frozen=True)
class Layer:
    """Normalised features of one layer, packed over the steps of all sequences of a slab.

    Attributes
    ----------
    recurrent : (steps,) the share of the previous step, A in cell.py
    below : (steps,) the share of the layer below, B; None in the first layer
    inputs : (k, steps) the inputs (first layer) and the bias where there is one
    items : (steps,) where the first of the inputs is one-hot, its coordinate at each step, as a
        number that is an integer; else None
    """

    recurrent: Array
    below: Array | None
    inputs: Array
    items: Array | None = None

    def numbers(self) -> list[Array]:
        """All features as (k, steps) arrays: the order in which compiled loops take them."""
        parts = [self.recurrent[None]]
        if self.below is not None:
            parts.append(self.below[None])
        if self.items is None:
            return [*parts, self.inputs]
        return [*parts, self.inputs[:1], self.items[None], self.inputs[1:]]


@dataclass(frozen=True)
class Direction:
    """One network's view of a slab: forward in time, or backward.

    Attributes
    ----------
    layers : one Layer a layer
    output : (steps,) S of the last layer in units of the sequence's ``scale``, with the readout's
    weight
    """

    layers: tuple[Layer, ...]
    output: Array


@dataclass(frozen=True)
class Slab:
    """The sequences of one side of a tile, ready for the loop over pairs.

    Attributes
    ----------
    lengths : (n,) int64
    first : (n,) int64, where each sequence's steps begin in the packed features
    directions : one, or two if the kernel is bidirectional
    scale : (n,) float64, the largest S of each sequence; values are products of two scales
    """

    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    directions: tuple[Direction, ...]
    scale: Float64

    def __len__(self) -> int:
        return len(self.lengths)

    def longest_first(self) -> NDArray[np.int64]:
        """Sequence numbers in the order in which all loops take them; ties keep their order."""
        return np.argsort(-self.lengths, kind="stable")

    def take(self, rows: Any) -> "Slab":
        """The slab of some of the sequences; the packed features are shared."""
        return replace(
            self, lengths=self.lengths[rows], first=self.first[rows], scale=self.scale[rows]
        )

    def transfer(self, convert: Callable[[Array], Array]) -> "Slab":
        """The slab with every packed feature array converted (a number type, a device)."""
        directions = tuple(
            Direction(
                tuple(
                    Layer(
                        convert(layer.recurrent),
                        None if layer.below is None else convert(layer.below),
                        convert(layer.inputs),
                        None if layer.items is None else convert(layer.items),
                    )
                    for layer in direction.layers
                ),
                convert(direction.output),
            )
            for direction in self.directions
        )
        return replace(self, directions=directions)


READOUT_POWER = {"last": 0.0, "per_step": 0.5, "diagonal_authors": 0.5, "mean": 1.0}
"""A sequence of T steps has the weight T^-power in its readout."""


def make_slab(kernel: "RNTK", sequences: Sequences) -> Slab:
    """Variances and normalised features of every sequence.

    Raises
    ------
    OverflowError
        If a variance exceeds float64, naming the sequence and the step.
    """
    return make_slabs([kernel], sequences)[0]


def make_slabs(kernels: Sequence["RNTK"], sequences: Sequences) -> list[Slab]:
    """The slab of each kernel; they walk through time together, so they must be of one `shape_of`.

    Raises
    ------
    OverflowError
        As `make_slab`, of the first kernel for which that is so.
    """
    views = [sequences, sequences.reversed()] if kernels[0].bidirectional else [sequences]
    found = [make_directions(kernels, view) for view in views]
    return [
        _slab(kernel, sequences, [directions[k][0] for directions in found])
        for k, kernel in enumerate(kernels)
    ]


def shape_of(kernel: "RNTK") -> tuple[object, ...]:
    """What kernels must have in common to be computed side by side."""
    layers = kernel.depth, kernel.activation, kernel.bidirectional, kernel.sigma_b > 0
    return *layers, kernel.readout, kernel.frozen_layers, kernel.initial_state


def _slab(kernel: "RNTK", sequences: Sequences, directions: list[Direction]) -> Slab:
    starts = sequences.offsets[:-1]
    peaks = [np.maximum.reduceat(direction.output, starts) for direction in directions]
    scale: Float64 = np.maximum.reduce(peaks)
    weight = _reciprocal(scale) * sequences.lengths ** -READOUT_POWER[kernel.readout]
    relative = np.repeat(weight, sequences.lengths)
    return Slab(
        lengths=sequences.lengths,
        first=starts,
        directions=tuple(replace(d, output=d.output * relative) for d in directions),
        scale=scale,
    )


def stacked(slabs: Sequence[Slab]) -> Slab:
    """The slabs of several kernels of one `shape_of` as one: the sequences of one after another."""
    if len(slabs) == 1:
        return slabs[0]
    steps = [len(slab.directions[0].output) for slab in slabs]
    starts = np.cumsum([0, *steps[:-1]])
    return Slab(
        lengths=np.concatenate([slab.lengths for slab in slabs]),
        first=np.concatenate([slab.first + at for slab, at in zip(slabs, starts, strict=True)]),
        directions=tuple(
            map(_side_by_side, zip(*(slab.directions for slab in slabs), strict=True))
        ),
        scale=np.concatenate([slab.scale for slab in slabs]),
    )


def _side_by_side(directions: tuple[Direction, ...]) -> Direction:
    layers = zip(*(direction.layers for direction in directions), strict=True)
    return Direction(
        tuple(map(_joined, layers)), np.concatenate([each.output for each in directions])
    )


def _joined(layers: tuple[Layer, ...]) -> Layer:
    below = [layer.below for layer in layers if layer.below is not None]
    items = [layer.items for layer in layers if layer.items is not None]
    return Layer(
        np.concatenate([layer.recurrent for layer in layers]),
        np.concatenate(below) if below else None,
        np.concatenate([layer.inputs for layer in layers], axis=1),
        np.concatenate(items) if items else None,
    )


def make_direction(kernel: "RNTK", sequences: Sequences) -> tuple[Direction, Float64]:
    """The features of sequences read forward, ``output`` being S; and q, shape (depth, steps)."""
    return make_directions([kernel], sequences)[0]


def make_directions(
    kernels: Sequence["RNTK"], sequences: Sequences
) -> list[tuple[Direction, Float64]]:
    """`make_direction` of each kernel, all of one `shape_of`."""
    steps, m = len(sequences.values), sequences.n_features
    norm, depth = NORMS[kernels[0].activation], kernels[0].depth
    (values, items), walk = _inputs(sequences), _Walk.through(sequences)
    scaled = [values * (kernel.sigma_u / np.sqrt(m)) for kernel in kernels]
    from_below = [np.einsum("ik,ik->i", each, each) for each in scaled]
    lift: list[Float64 | None] = [None] * len(kernels)
    variances = np.empty((len(kernels), depth, steps))
    layers: list[list[Layer]] = [[] for _ in kernels]
    outputs = [np.empty(0)] * len(kernels)
    for k in range(depth):
        drives = [
            below + kernel.sigma_b**2 for below, kernel in zip(from_below, kernels, strict=True)
        ]
        variances[:, k] = walk.variances(kernels, norm, drives)
        for i, kernel in enumerate(kernels):
            q = variances[i, k]
            outputs[i] = output = norm.output(q)
            parts = [*scaled[i].T] if k == 0 else []
            layer = _layer(kernel, sequences, q, output, parts, lift[i])
            layers[i].append(replace(layer, items=items) if k == 0 else layer)
            from_below[i], lift[i] = kernel.sigma_u**2 * norm.variance(q), kernel.sigma_u * output
    return [
        (Direction(tuple(layers[i]), kernel.sigma_v * outputs[i]), variances[i])
        for i, kernel in enumerate(kernels)
    ]


def _inputs(sequences: Sequences) -> tuple[Float64, Float64 | None]:
    """The inputs (steps, k), and of items, whose one-hot vectors have the one 1, which it is."""
    values = sequences.values.astype(np.float64)
    if sequences.n_items is None:
        return values, None
    return np.ones_like(values), values[:, 0]


def _layer(
    kernel: "RNTK",
    sequences: Sequences,
    q: Float64,
    output: Float64,
    inputs: list[Float64],
    lift: Float64 | None,
) -> Layer:
    """One layer's features: its variances, its outputs, what comes in and what from below."""
    norm = NORMS[kernel.activation]
    n = norm.norm(q) / norm.feature
    bias = [np.full(len(q), kernel.sigma_b)] if kernel.sigma_b > 0 else []
    return Layer(
        recurrent=_ratio(_memory(kernel, output, sequences), n),
        below=None if lift is None else _ratio(lift, n),
        inputs=np.array([_ratio(part, n) for part in [*inputs, *bias]]).reshape(-1, len(q)),
    )


def _memory(kernel: "RNTK", output: Float64, sequences: Sequences) -> Float64:
    """The recurrent part of u at every step (the factor of f)."""
    memory = np.empty_like(output)
    np.multiply(output[:-1], kernel.sigma_w, out=memory[1:])
    memory[sequences.offsets[:-1]] = kernel.sigma_w * kernel.sigma_h
    return memory


@dataclass(frozen=True)
class _Walk:
    """A way through the packed steps of sequences: one step of all of them at once.

    Attributes
    ----------
    sequences : whose steps they are
    longest_first : (n,) the order of the sequences within a step
    counts : how many sequences have the step, for each one
    places : (steps,) packed positions, step by step
    """

    sequences: Sequences
    longest_first: NDArray[np.int64]
    counts: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def through(cls, sequences: Sequences) -> "_Walk":
        order = np.argsort(-sequences.lengths, kind="stable")
        first, lengths = sequences.offsets[:-1][order], sequences.lengths[order]
        counts = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")
        places = np.concatenate([first[:active] + t for t, active in enumerate(counts)])
        return cls(sequences, order, counts, places)

    def variances(self, kernels: Sequence["RNTK"], norm: Norm, drives: list[Float64]) -> Float64:
        """q of one layer at every step, (kernels, steps), given what the recurrent part lacks.

        Only this follows the sequences step by step. Raises OverflowError.
        """
        walked = np.array([drive[self.places] for drive in drives])
        memory = np.array([(kernel.sigma_w * kernel.sigma_h) ** 2 for kernel in kernels])
        gains = np.array([kernel.sigma_w**2 for kernel in kernels])[:, None]
        now = np.repeat(memory[:, None], len(self.longest_first), axis=1)
        start = 0
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # refused below, with the sequence's name
            for active in self.counts:
                part = walked[:, start : start + active]
                part += now[:, :active]
                now = gains * norm.variance(part)
                start += active
        q = np.empty_like(walked)
        q[:, self.places] = walked
        for each in q:
            _refuse_overflow(each, self.sequences)
        return q


def _refuse_overflow(q: Float64, sequences: Sequences) -> None:
    finite = np.isfinite(q)
    if finite.all():
        return
    position = np.flatnonzero(~finite)[0]
    index = int(np.searchsorted(sequences.offsets, position, side="right")) - 1
    length, step = sequences.lengths[index], position - sequences.offsets[index]
    raise OverflowError(
        f"the variance of sequence {index} (length {length}) exceeds float64 at step {step}: "
        "normalise the inputs, or use a smaller sigma_w"
    )
