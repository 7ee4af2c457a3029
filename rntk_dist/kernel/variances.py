"""What belongs to one sequence: its variances, and its features normalised by them.

The recursion of a sequence with itself (section 3 of the paper's supplement: Sigma[l,t,t] of one
input) costs O(L T m) a sequence, against O(L T) a *pair*: it is done once a slab, in float64.
Everything that a pair needs afterwards is a product, or a squared difference, of features of the
two sequences, so the loops over pairs know no hyper-parameter.

Symbols: ``u`` are the independent parts of a pre-activation, ``q = |u|^2`` its variance, ``n`` the
norm that divides them:

    relu, linear   n = sqrt(q)             erf   n = sqrt(q + 1/4)
    V(q, q)        relu q/2, linear q, erf 2/pi asin(q / (q + 1/2))
    S = sqrt(V)

The features of erf have a module of their own, `rntk_dist.kernel.erf_features`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.scaled import Float64, Scaled, divided, stacked_rows
from rntk_dist.sequences import Sequences

if TYPE_CHECKING:
    from rntk_dist.kernel.rntk import RNTK

Array = NDArray[Any]

TINY = 1e-280
"""Variances below this are carried with powers of two of their own."""


@dataclass(frozen=True)
class Norm:
    """How the variance ``q`` of a sequence at one step passes through an activation.

    Attributes
    ----------
    variance : V(q, q)
    step : the same, quickly: a digit less will do from step to step
    slope : its derivative
    feature : features are stored times this (see "Haversine" in cell.py)
    homogeneous : whether V is proportional to q
    """

    variance: Callable[[Float64], Float64]
    step: Callable[[Float64], Float64]
    slope: Callable[[Float64], Float64]
    feature: float
    homogeneous: bool

    def scaled(self, q: Scaled, *, step: bool = False) -> Scaled:
        """V(q, q) of variances of any size; ``step``: as from step to step."""
        variance = self.step if step else self.variance
        if self.homogeneous or q.exponent is None:
            return Scaled(variance(q.mantissa), q.exponent)
        plain = q.plain()
        linear = plain < TINY  # V is proportional to q there, to the last bit
        value = np.where(linear, self.slope(np.zeros(())) * q.mantissa, variance(plain))
        return Scaled(value, np.where(linear, q.exponent, 0))


def _erf_variance(q: Float64) -> Float64:
    """2/pi asin(q / (q + 1/2)): half the arc from its tangent, or from 1 what it lacks."""
    small = q < 1
    with np.errstate(over="ignore", invalid="ignore"):  # the infinite are refused by name
        root = np.sqrt(1 + 4 * q)
        arc = 4 / np.pi * np.arctan(np.where(small, 2 * q / (1 + 2 * q + root), 1 / root))
    return np.where(small, arc, 1 - arc)


NORMS: dict[str, Norm] = {
    "relu": Norm(lambda q: q / 2, lambda q: q / 2, lambda q: np.full_like(q, 0.5), 0.5, True),
    "linear": Norm(lambda q: q, lambda q: q, np.ones_like, 1.0, True),
    "erf": Norm(
        _erf_variance,
        lambda q: 4 / np.pi * np.arctan(2 * q / (1 + 2 * q + np.sqrt(1 + 4 * q))),
        lambda q: 2 / np.pi / ((1 + q + q) * np.sqrt(0.25 + q)),
        0.5,
        False,
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
    own : (k, steps) what else the activation needs of a step; see `erf_features`
    """

    recurrent: Array
    below: Array | None
    inputs: Array
    items: Array | None = None
    own: Array | None = None

    def numbers(self) -> list[Array]:
        """All features as (k, steps) arrays: the order in which compiled loops take them."""
        parts = [self.recurrent[None]]
        if self.below is not None:
            parts.append(self.below[None])
        if self.items is None:
            parts.append(self.inputs)
        else:
            parts += [self.inputs[:1], self.items[None], self.inputs[1:]]
        return parts if self.own is None else [*parts, self.own]


@dataclass(frozen=True)
class Direction:
    """One network's view of a slab: forward in time, or backward.

    Attributes
    ----------
    layers : one Layer a layer
    output : (k, steps) weights of the last layer in the readout, in units of the sequence's
        ``scale``: S, and of erf that of the tangent part
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
    scale : (n,) float64, the largest weight that is read of each sequence; values are products of
        two scales. Infinite, or float64's smallest number, where it leaves the range of float64.
    beyond : (n,) the first step whose variance is no float64 number; -1 where all are
    """

    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    directions: tuple[Direction, ...]
    scale: Float64
    beyond: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    def longest_first(self) -> NDArray[np.int64]:
        """Sequence numbers in the order in which all loops take them; ties keep their order."""
        return np.argsort(-self.lengths, kind="stable")

    def take(self, rows: Any) -> "Slab":
        """The slab of some of the sequences; the packed features are shared."""
        return replace(
            self,
            lengths=self.lengths[rows],
            first=self.first[rows],
            scale=self.scale[rows],
            beyond=self.beyond[rows],
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
                        None if layer.own is None else convert(layer.own),
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


def make_slab(kernel: "RNTK", sequences: Sequences, kind: str = "ntk") -> Slab:
    """Variances and normalised features of every sequence, for the tangent kernel or "nngp".

    Raises
    ------
    OverflowError
        If an input of erf is too large, naming the sequence and the step.
    """
    return make_slabs([kernel], sequences, kind)[0]


def make_slabs(kernels: Sequence["RNTK"], sequences: Sequences, kind: str = "ntk") -> list[Slab]:
    """The slab of each kernel; they walk through time together, so they must be of one `shape_of`.

    Raises
    ------
    OverflowError
        As `make_slab`, of the first kernel for which that is so.
    """
    views = [sequences, sequences.reversed()] if kernels[0].bidirectional else [sequences]
    found = [weighted(kernels, view, kind) for view in views]
    return [
        _slab(kernel, sequences, [directions[k] for directions in found])
        for k, kernel in enumerate(kernels)
    ]


def shape_of(kernel: "RNTK") -> tuple[object, ...]:
    """What kernels must have in common to be computed side by side."""
    layers = kernel.depth, kernel.activation, kernel.bidirectional, kernel.sigma_b > 0
    return *layers, kernel.readout, kernel.frozen_layers, kernel.initial_state


@dataclass(frozen=True)
class Weighted:
    """The layers of a direction.

    Attributes
    ----------
    layers : their features
    steps : what they were made of, if that was asked for
    q : (steps,) variances of the last one
    weights : (k, steps) in the readout
    """

    layers: tuple[Layer, ...]
    steps: tuple["Step", ...]
    q: Scaled
    weights: Scaled


def _slab(kernel: "RNTK", sequences: Sequences, directions: list[Weighted]) -> Slab:
    scale = _scale(kernel.readout, sequences, [direction.weights for direction in directions])
    outputs = [_relative(kernel.readout, each.weights, scale, sequences) for each in directions]
    return Slab(
        lengths=sequences.lengths,
        first=sequences.offsets[:-1],
        directions=tuple(
            Direction(each.layers, output) for each, output in zip(directions, outputs, strict=True)
        ),
        scale=_seen(scale),
        beyond=_beyond_float64(sequences, directions),
    )


def _relative(readout: str, weights: Scaled, scale: Scaled, sequences: Sequences) -> Float64:
    """Each step's weights (k, steps) in the readout, in units of its sequence's scale.

    Of steps that are not read they are 0.
    """
    if readout == "last":
        last = sequences.offsets[1:] - 1
        relative = np.zeros_like(weights.mantissa)
        relative[:, last] = weights[:, last].over(scale)
        return relative
    lengths = sequences.lengths
    share = lengths.astype(np.float64) ** -READOUT_POWER[readout]
    factor = np.repeat(divided(share, scale.mantissa), lengths)
    powers = None if scale.exponent is None else -np.repeat(scale.exponent, lengths)
    return (weights * factor).shifted(powers).plain()


def _seen(scale: Scaled) -> Float64:
    """As float64; what is too small for it is its smallest number, and not 0."""
    least = np.nextafter(0.0, 1.0)
    return np.where(scale.mantissa > 0, np.maximum(scale.plain(), least), 0.0)


def _beyond_float64(sequences: Sequences, directions: list[Weighted]) -> NDArray[np.int64]:
    """The first step of each sequence whose variance is no float64 number; -1 if none is."""
    found = np.full(len(sequences), -1)
    for direction in directions:
        if direction.q.exponent is None:
            continue
        # From the last to the first: of several steps of a sequence the first stays.
        positions = np.flatnonzero(np.isinf(direction.q.plain()))[::-1]
        owners = np.searchsorted(sequences.offsets, positions, side="right") - 1
        found[owners] = positions - sequences.offsets[owners]
    return found


def sequence_at(sequences: Sequences, position: Any) -> int:
    """Which sequence a packed step belongs to."""
    return int(np.searchsorted(sequences.offsets, position, side="right")) - 1


def _scale(readout: str, sequences: Sequences, weights: list[Scaled]) -> Scaled:
    """The largest weight that is read of each sequence, in any direction."""
    if all(each.exponent is None for each in weights):
        return Scaled(_peak(readout, sequences, [each.mantissa for each in weights]))
    # The same number as above, whatever other sequences are there: first its exponent, then it.
    parts = [each.canonical() for each in weights]
    top = _peak(readout, sequences, [part.exponents for part in parts])
    spread = np.repeat(top, sequences.lengths)
    near = [part.shifted(-spread).plain() for part in parts]
    mantissa = _peak(readout, sequences, near)
    return Scaled(mantissa, np.where(mantissa > 0, top, 0))


def _peak(readout: str, sequences: Sequences, weights: list[NDArray[Any]]) -> NDArray[Any]:
    """The largest of each sequence's numbers, or of its last step's if no other is read."""
    starts, last = sequences.offsets[:-1], sequences.offsets[1:] - 1
    every = [each.max(axis=0) for each in weights]
    if readout == "last":
        peaks = [each[last] for each in every]
    else:
        peaks = [np.maximum.reduceat(each, starts) for each in every]
    peak: NDArray[Any] = np.maximum.reduce(peaks)
    return peak


def stacked(slabs: Sequence[Slab]) -> Slab:
    """The slabs of several kernels of one `shape_of` as one: the sequences of one after another."""
    if len(slabs) == 1:
        return slabs[0]
    steps = [slab.directions[0].output.shape[1] for slab in slabs]
    starts = np.cumsum([0, *steps[:-1]])
    return Slab(
        lengths=np.concatenate([slab.lengths for slab in slabs]),
        first=np.concatenate([slab.first + at for slab, at in zip(slabs, starts, strict=True)]),
        directions=tuple(
            map(_side_by_side, zip(*(slab.directions for slab in slabs), strict=True))
        ),
        scale=np.concatenate([slab.scale for slab in slabs]),
        beyond=np.concatenate([slab.beyond for slab in slabs]),
    )


def _side_by_side(directions: tuple[Direction, ...]) -> Direction:
    layers = zip(*(direction.layers for direction in directions), strict=True)
    return Direction(
        tuple(map(_joined, layers)),
        np.concatenate([each.output for each in directions], axis=1),
    )


def _joined(layers: tuple[Layer, ...]) -> Layer:
    def joined(parts: list[Array | None]) -> Array | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known, axis=-1) if known else None

    recurrent = np.concatenate([layer.recurrent for layer in layers])
    inputs = np.concatenate([layer.inputs for layer in layers], axis=1)
    return Layer(
        recurrent,
        joined([layer.below for layer in layers]),
        inputs,
        joined([layer.items for layer in layers]),
        joined([layer.own for layer in layers]),
    )


# -- the way through the layers --------------------------------------------------------------------


@dataclass(frozen=True)
class Drive:
    """What a layer takes in at every step, beside its own past and its bias.

    Attributes
    ----------
    inputs : (steps, k) of the first layer, times sigma_u / sqrt(m); None above
    lift : (steps,) of every other layer, sigma_u S of the layer below; None of the first
    variance : (steps,) the square of either
    items : whether the inputs are the lengths of one-hot vectors
    """

    inputs: Float64 | None
    lift: Scaled | None
    variance: Scaled
    items: bool = False


def weighted(
    kernels: Sequence["RNTK"], sequences: Sequences, kind: str, *, with_steps: bool = False
) -> list[Weighted]:
    """Sequences read forward, for each of some kernels, all of one `shape_of`.

    ``with_steps``: keep what the layers are made of.
    """
    # That module stands on this one's classes; there is no other way round at import.
    from rntk_dist.kernel.erf_features import Tangents, erf_layer

    norm, depth = NORMS[kernels[0].activation], kernels[0].depth
    frozen = kernels[0].frozen_layers if kind == "ntk" else depth
    (values, items), walk = _inputs(sequences), Walk.through(sequences)
    root_m = np.sqrt(sequences.n_features)
    drives = [_first_drive(values * (k.sigma_u / root_m), items is not None) for k in kernels]
    layers: list[list[Layer]] = [[] for _ in kernels]
    steps: list[list[Step]] = [[] for _ in kernels]
    variances: list[Scaled] = []
    weights: list[Scaled] = []
    tangents: list[Tangents | None] = [None] * len(kernels)
    for k in range(depth):
        variances = walk.variances(kernels, norm, [drive.variance for drive in drives])
        weights = []
        for i, (kernel, q) in enumerate(zip(kernels, variances, strict=True)):
            outputs = norm.scaled(q)
            root = outputs.root()
            memory = _memory(kernel, root, sequences)
            step = Step(kernel, q, outputs, root, memory, drives[i])
            if with_steps:
                steps[i].append(step)
            if kernel.activation == "erf":
                layer, tangents[i], weight = erf_layer(step, walk, tangents[i], k >= frozen)
            else:
                layer, weight = _layer(step, norm.feature), _only(root * kernel.sigma_v)
            layers[i].append(replace(layer, items=items) if k == 0 else layer)
            weights.append(weight)
            drives[i] = Drive(None, root * kernel.sigma_u, outputs * kernel.sigma_u**2)
    return [
        Weighted(tuple(layers[i]), tuple(steps[i]), variances[i], weights[i])
        for i in range(len(kernels))
    ]


@dataclass(frozen=True)
class Step:
    """One layer of one kernel at every step of packed sequences.

    Attributes
    ----------
    q, outputs, root : (steps,) variance of the pre-activation, V(q, q) and its root S
    memory : (steps,) sigma_w S of the step before; at a first step sigma_w sigma_h
    drive : what comes in
    """

    kernel: "RNTK"
    q: Scaled
    outputs: Scaled
    root: Scaled
    memory: Scaled
    drive: Drive


def _only(weight: Scaled) -> Scaled:
    return weight[None]


def _inputs(sequences: Sequences) -> tuple[Float64, Float64 | None]:
    """The inputs (steps, k), and of items, whose one-hot vectors have the one 1, which it is."""
    values = sequences.values.astype(np.float64)
    if sequences.n_items is None:
        return values, None
    return np.ones_like(values), values[:, 0]


def _first_drive(inputs: Float64, items: bool) -> Drive:
    """Of the first layer; squares of numbers that are very small or large get powers of two."""
    with np.errstate(over="ignore", under="ignore"):
        squares = Scaled(np.einsum("ik,ik->i", inputs, inputs))
    if not _usual(squares.mantissa, lambda few: inputs[few].any(axis=1)):
        squares = Scaled.sum_of_squares(inputs)
    return Drive(inputs, None, squares, items)


def _usual(numbers: Float64, positive: Callable[[Any], NDArray[np.bool_]]) -> bool:
    """Whether all numbers are finite, and none but true zeros is too small for its digits.

    ``positive`` tells of the places of some small numbers whether they stand for more than 0.
    """
    if not numbers.max() < np.inf:  # NaN, too
        return False
    if numbers.min() >= TINY:
        return True
    few = np.nonzero(numbers < TINY)
    return not (positive(few) | (numbers[few] > 0)).any()


def _layer(step: Step, feature: float) -> Layer:
    """One layer's features: its variances, its outputs, what comes in and what from below."""
    kernel, drive, n = step.kernel, step.drive, step.q.root() * (1 / feature)
    parts = [] if drive.inputs is None else [*drive.inputs.T]
    if kernel.sigma_b > 0:
        parts.append(np.full(len(n.mantissa), kernel.sigma_b))
    return Layer(
        recurrent=step.memory.over(n),
        below=None if drive.lift is None else drive.lift.over(n),
        inputs=np.array([Scaled(part).over(n) for part in parts]).reshape(-1, len(n.mantissa)),
    )


def _memory(kernel: "RNTK", root: Scaled, sequences: Sequences) -> Scaled:
    """The recurrent part of u at every step (the factor of f)."""
    starts = sequences.offsets[:-1]
    mantissa = np.empty_like(root.mantissa)
    np.multiply(root.mantissa[:-1], kernel.sigma_w, out=mantissa[1:])
    mantissa[starts] = kernel.sigma_w * kernel.sigma_h
    if root.exponent is None:
        return Scaled(mantissa)
    exponent = np.empty_like(root.exponent)
    exponent[1:] = root.exponent[:-1]
    exponent[starts] = 0
    return Scaled(mantissa, exponent)


type PlainStep = Callable[[Float64, slice], Float64]
type ScaledStep = Callable[[Scaled, slice], Scaled]
"""What one step leaves to the next: from values (kernels, sequences) and their places in a walk."""


@dataclass(frozen=True)
class Walk:
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
    def through(cls, sequences: Sequences) -> "Walk":
        """The way through the steps of some sequences."""
        order = np.argsort(-sequences.lengths, kind="stable")
        first, lengths = sequences.offsets[:-1][order], sequences.lengths[order]
        counts = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")
        places = np.concatenate([first[:active] + t for t, active in enumerate(counts)])
        return cls(sequences, order, counts, places)

    def variances(
        self, kernels: Sequence["RNTK"], norm: Norm, drives: list[Scaled]
    ) -> list[Scaled]:
        """q of one layer at every step, for each kernel, given what its inputs bring."""
        gains = np.array([kernel.sigma_w**2 for kernel in kernels])[:, None]
        whole = [
            self._with_start(drive, kernel) for drive, kernel in zip(drives, kernels, strict=True)
        ]

        def plain(q: Float64, _: slice) -> Float64:
            left: Float64 = gains * norm.step(q)
            return left

        def scaled(q: Scaled, _: slice) -> Scaled:
            return norm.scaled(q, step=True) * gains

        q = self._follow(stacked_rows(whole), plain, scaled)
        return [q[i] for i in range(len(kernels))]

    def _with_start(self, drive: Scaled, kernel: "RNTK") -> Scaled:
        """The drive, the bias, and at first steps what comes of the initial state."""
        starts, bias = self.sequences.offsets[:-1], kernel.sigma_b**2
        first = (kernel.sigma_w * kernel.sigma_h) ** 2
        if drive.exponent is None:
            mantissa = drive.mantissa + bias
            mantissa[starts] += first
            return Scaled(mantissa)
        others = np.full_like(drive.mantissa, bias)
        others[starts] += first
        return drive + Scaled(others)

    def sums(self, drive: Scaled, gains: Float64) -> Scaled:
        """y[t] = drive[t] + gains[t + 1] y[t - 1] of each sequence, all (steps,).

        ``gains`` belong to the step that they lead to, and are 0 at first steps.
        """
        # A sequence's next step has the next place; the gain of a first step is 0.
        led = np.append(gains, 0.0)[self.places + 1]

        def plain(y: Float64, at: slice) -> Float64:
            left: Float64 = y * led[at]
            return left

        def scaled(y: Scaled, at: slice) -> Scaled:
            return y * led[at]

        return self._follow(drive[None], plain, scaled)[0]

    def _follow(self, drive: Scaled, plain: PlainStep, scaled: ScaledStep) -> Scaled:
        """y[t] = drive[t] + step(y[t - 1]), (kernels, steps); only this goes step by step.

        In float64 if all numbers stay within its range, otherwise with powers of two.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused by name
            if drive.exponent is None:
                found = self._follow_plain(drive.mantissa, plain)
                # What falls to 0 passes by what is merely small: its fall is seen there.
                if _usual(found, lambda few: np.zeros(few[0].shape, np.bool_)):
                    return Scaled(found)
            return self._follow_scaled(drive, scaled)

    def _follow_plain(self, drive: Float64, step: PlainStep) -> Float64:
        walked = drive[:, self.places]
        now, start = np.zeros((len(drive), len(self.longest_first))), 0
        for active in self.counts:
            at = slice(start, start + active)
            part = walked[:, at]
            part += now[:, :active]
            now = step(part, at)
            start += active
        found = np.empty_like(walked)
        found[:, self.places] = walked
        return found

    def _follow_scaled(self, drive: Scaled, step: ScaledStep) -> Scaled:
        walked = drive[:, self.places].with_exponents()
        now = Scaled(np.zeros((len(drive.mantissa), len(self.longest_first)))).with_exponents()
        start = 0
        mantissa, exponent = np.empty_like(walked.mantissa), np.empty_like(walked.exponents)
        for active in self.counts:
            at = slice(start, start + active)
            part = walked[:, at] + now[:, :active]
            places = self.places[at]
            mantissa[:, places], exponent[:, places] = part.mantissa, part.exponents
            now = step(part, at).with_exponents()
            start += active
        return Scaled(mantissa, exponent)
