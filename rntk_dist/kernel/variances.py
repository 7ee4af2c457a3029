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

from collections.abc import Callable
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
    """

    recurrent: Array
    below: Array | None
    inputs: Array


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
    views = [sequences, sequences.reversed()] if kernel.bidirectional else [sequences]
    directions = [make_direction(kernel, view)[0] for view in views]
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


def make_direction(kernel: "RNTK", sequences: Sequences) -> tuple[Direction, Float64]:
    """The features of sequences read forward, ``output`` being S; and q, shape (depth, steps)."""
    steps, m = sequences.values.shape
    norm = NORMS[kernel.activation]
    scaled = sequences.values.astype(np.float64) * (kernel.sigma_u / np.sqrt(m))
    variances = np.empty((kernel.depth, steps))
    layers = []
    from_below, lift = np.einsum("ik,ik->i", scaled, scaled), None
    for k in range(kernel.depth):
        q = variances[k] = _variances(kernel, norm, from_below + kernel.sigma_b**2, sequences)
        n, output = norm.norm(q) / norm.feature, norm.output(q)
        parts = [*scaled.T] if k == 0 else []
        parts += [np.full(steps, kernel.sigma_b)] if kernel.sigma_b > 0 else []
        layers.append(
            Layer(
                recurrent=_ratio(_memory(kernel, output, sequences), n),
                below=None if lift is None else _ratio(lift, n),
                inputs=np.array([_ratio(part, n) for part in parts]).reshape(-1, steps),
            )
        )
        from_below, lift = kernel.sigma_u**2 * norm.variance(q), kernel.sigma_u * output
    return Direction(tuple(layers), kernel.sigma_v * output), variances


def _memory(kernel: "RNTK", output: Float64, sequences: Sequences) -> Float64:
    """The recurrent part of u at every step (the factor of f)."""
    memory = np.empty_like(output)
    np.multiply(output[:-1], kernel.sigma_w, out=memory[1:])
    memory[sequences.offsets[:-1]] = kernel.sigma_w * kernel.sigma_h
    return memory


def _variances(kernel: "RNTK", norm: Norm, drive: Float64, sequences: Sequences) -> Float64:
    """q of one layer at every step, given what the recurrent part does not bring.

    Only this follows the sequences step by step; it takes one step of all of them at once.
    """
    order = np.argsort(-sequences.lengths, kind="stable")
    first, lengths = sequences.offsets[:-1][order], sequences.lengths[order]
    counts = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")
    q = np.empty_like(drive)
    memory = np.full(len(order), (kernel.sigma_w * kernel.sigma_h) ** 2)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, with the sequence's name
        for t, active in enumerate(counts):
            at = first[:active] + t
            now = memory[:active] + drive[at]
            q[at] = now
            memory = kernel.sigma_w**2 * norm.variance(now)
    _refuse_overflow(q, sequences)
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
