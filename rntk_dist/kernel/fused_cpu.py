"""The cell inside compiled loops: one row at a time against a block of columns, pairs innermost.

The columns of a block are *lanes*: their features lie side by side, step by step, and the innermost
loops run over lanes, so that the compiler turns them into full-width vector instructions. The state
of all lanes stays in the first-level cache. Columns are sorted by length, longest first; at each
step the lanes that have it are a prefix, rounded up to whole vectors. Features of steps that a lane
does not have are zero, and so is their weight in the readout: what is computed for them is never
seen.

Compiled code is kept on disk by Numba and read by other processes; compilation is announced on
standard error.
"""

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
import numpy as np
from numba.core import event
from numba.core.compiler import Compiler

from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.cell import MAKERS, Operations
from rntk_dist.kernel.packed import Shape, Side, in_given_order, make_shape, make_side
from rntk_dist.kernel.variances import Array, Direction, Slab

LANES = 256
"""Columns of a block."""

BLOCK_BYTES = 32 * 2**20
"""Features of a block of columns."""

VECTOR = 16
"""Lanes are taken in multiples of this: whole vectors on any machine, in either number type."""

# No reassociation: a value must not depend on which of the two sequences is the row.
FAST = {"nnan", "ninf", "nsz", "contract", "afn"}


class _Distinct(Compiler):
    """A compiler that may assume that array arguments do not overlap, as ours never do.

    Loops over many arrays vectorise only then: else the checks for overlap grow too many.
    """

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


def _jit(function: Callable[..., Any], *, keep: bool = False) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(
        function,
        fastmath=FAST,
        error_model="numpy",
        nogil=True,
        cache=keep,
        pipeline_class=_Distinct,
    )
    return compiled


class _Announce(event.Listener):
    """Says once on standard error that a compilation begins."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said:
            sys.stderr.write("rntk_dist: compiling the kernel's loops, once for this machine ...\n")
            self.said = True

    def on_end(self, event: event.Event) -> None:
        pass


@cache
def _operations() -> Operations:
    """Elementwise operations on scalars as selections, which vectorise; no branches."""
    return Operations(
        sqrt=_jit(lambda x: math.sqrt(x)),
        minimum=_jit(lambda x, y: x if x < y else y),
        maximum=_jit(lambda x, y: x if x > y else y),
        absolute=_jit(lambda x: abs(x)),
        copysign=_jit(lambda x, y: math.copysign(x, y)),
    )


# -- the loops ------------------------------------------------------------------------------------


@cache
def _loops(  # noqa: C901 - a closure of small functions, as compiled code needs them
    activation: str, dtype: str, one_input: bool, width: int
) -> Callable[..., Any]:
    """The compiled sweep of rows against a block of ``width`` lanes.

    ``one_input``: the first layer has exactly one input feature (and no bias), taken inline.
    """
    number = np.dtype(dtype).type
    cell = MAKERS[activation](number, _operations(), _jit)
    combine, covariance, tangent, readout = (
        cell.combine,
        cell.covariance,
        cell.tangent,
        cell.readout,
    )
    distance, gain, unit = cell.distance, cell.gain, cell.unit
    same, unrelated = cell.same, cell.unrelated
    zero = number(0)

    # Every array is flat, and a block of lanes always has the same width: a view of its own for
    # each feature would cost more than the arithmetic of a step. Unsigned indices, as an index that
    # cannot be negative is not tested for it.
    wide, deep = np.uint64(width), np.uint64(3 * width)

    @_jit
    def unsigned(n: Any) -> Any:
        return np.uint64(n)

    @_jit
    def recur(h: Any, a: Any, b: Any, angle: Any) -> Any:
        """The angle with one more state in it: from the step before, or from the layer below."""
        angle += gain * a * b * h
        if distance:
            angle += combine(a, b)
        return angle

    @_jit
    def add_input(state: Any, angle: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any) -> None:
        for j in range(low, n):
            state[angle + j] += combine(x, lanes[y + j])

    @_jit
    def add_four_inputs(
        state: Any, angle: Any, row: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        x0, x1, x2, x3 = row[x], row[x + 1], row[x + 2], row[x + 3]
        for j in range(low, n):
            i = y + j
            first = combine(x0, lanes[i]) + combine(x1, lanes[i + wide])
            i += wide + wide
            second = combine(x2, lanes[i]) + combine(x3, lanes[i + wide])
            state[angle + j] += first + second

    @_jit
    def sum_inputs(
        state: Any, angle: Any, row: Any, x: Any, lanes: Any, y: Any, count: int, low: Any, n: Any
    ) -> None:
        """Angle = the combined features, four in one pass over the lanes."""
        for j in range(low, n):
            state[angle + j] = zero
        odd = unsigned(count % 4)
        for k in range(odd):
            add_input(state, angle, row[x + k], lanes, y + k * wide, low, n)
        for k in range(odd, unsigned(count), unsigned(4)):
            add_four_inputs(state, angle, row, x + k, lanes, y + k * wide, low, n)

    # Each loop exists with and without the tangent part: nothing is decided inside it. A layer's
    # state is three rows: h, g and the angle made of its inputs.

    @_jit
    def first_tangent(state: Any, a: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any) -> None:
        for j in range(low, n):
            b = lanes[y + j]
            inputs = combine(x, lanes[y + wide + j]) if one_input else state[wide + wide + j]
            value = recur(state[j], a, b, inputs)
            state[j], state[wide + j] = tangent(value, gain * a * b * state[wide + j])

    @_jit
    def first_covariance(state: Any, a: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any) -> None:
        for j in range(low, n):
            b = lanes[y + j]
            inputs = combine(x, lanes[y + wide + j]) if one_input else state[wide + wide + j]
            state[j] = covariance(recur(state[j], a, b, inputs))

    @_jit
    def upper_tangent(
        state: Any, at: Any, a: Any, up: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        for j in range(low, n):
            b, lift = lanes[y + j], lanes[y + wide + j]
            h = at + j
            g = h + wide
            value = recur(state[h - deep], up, lift, state[g + wide])
            value = recur(state[h], a, b, value)
            carry = gain * a * b * state[g] + gain * up * lift * state[g - deep]
            state[h], state[g] = tangent(value, carry)

    @_jit
    def upper_covariance(
        state: Any, at: Any, a: Any, up: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        for j in range(low, n):
            h = at + j
            value = recur(state[h - deep], up, lanes[y + wide + j], state[h + wide + wide])
            state[h] = covariance(recur(state[h], a, lanes[y + j], value))

    @_jit
    def advance(
        state: Any, row: Any, x: Any, lanes: Any, y: Any, shape: Any, low: Any, n: Any
    ) -> None:
        """One step of all layers, of the lanes low..n: features of the row at x, of lanes at y."""
        inputs, bias, one = unsigned(shape.inputs), unsigned(shape.bias), unsigned(1)
        if not one_input:
            sum_inputs(state, wide + wide, row, x + one, lanes, y + wide, shape.inputs, low, n)
        if shape.first_trained == 0:
            first_tangent(state, row[x], row[x + one], lanes, y, low, n)
        else:
            first_covariance(state, row[x], row[x + one], lanes, y, low, n)
        at = unsigned(0)
        x += one + inputs
        y += (one + inputs) * wide
        for k in range(1, shape.depth):
            at += deep
            sum_inputs(
                state,
                at + wide + wide,
                row,
                x + one + one,
                lanes,
                y + wide + wide,
                shape.bias,
                low,
                n,
            )
            if k >= shape.first_trained:
                upper_tangent(state, at, row[x], row[x + one], lanes, y, low, n)
            else:
                upper_covariance(state, at, row[x], row[x + one], lanes, y, low, n)
            x += one + one + bias
            y += (one + one + bias) * wide

    @_jit
    def add_readout(
        total: Any, state: Any, shape: Any, weight: Any, weights: Any, y: Any, low: Any, n: Any
    ) -> None:
        at = unsigned(shape.depth - 1) * deep
        for j in range(low, n):
            h = at + j
            total[j] += weight * weights[y + j] * readout(state[h], state[h + wide])

    @_jit
    def begin(state: Any, shape: Any, common: Any, low: Any, n: Any) -> None:
        """Put the lanes low..n at their start: one common state, or uncorrelated ones."""
        for k in range(shape.depth):
            at = unsigned(k) * deep
            for j in range(low, n):
                state[at + j] = same if common[j] else unrelated
                state[at + wide + j] = zero

    @_jit
    def whole(n: int) -> Any:
        return np.uint64((n + VECTOR - 1) // VECTOR * VECTOR)

    @_jit
    def end_aligned(
        side: Any, i: int, block: Any, state: Any, shape: Any, low: int, total: Any
    ) -> None:
        """The diagonal that ends in both last steps, added to the total."""
        features, output, firsts, row_lengths = side
        lanes, weights, counts, lengths, common = block
        length, last = row_lengths[i], firsts[i] + row_lengths[i] - 1
        size, left = unsigned(shape.features), unsigned(low)
        for j in range(low, width):
            common[j] = common[j] and lengths[j] == length
        begun = low
        for back in range(min(length, len(counts)) - 1, -1, -1):
            count = counts[back]
            if count > begun:
                begin(state, shape, common, unsigned(begun), unsigned(count))
                begun = count
            n, t, y = whole(count), unsigned(last - back), unsigned(back)
            advance(state, features, t * size, lanes, y * size * wide, shape, left, n)
            if shape.every_step:
                add_readout(total, state, shape, output[t], weights, y * wide, left, n)
        if shape.last_step:
            y = unsigned(0)
            add_readout(total, state, shape, output[last], weights, y, left, whole(begun))

    @_jit
    def diagonal(
        side: Any, i: int, block: Any, state: Any, shape: Any, low: int, lag: int, total: Any
    ) -> None:
        """The diagonal t - t' = lag from its first cell, in ``total``."""
        features, output, firsts, row_lengths = side
        lanes, weights, counts, _, common = block
        size, left = unsigned(shape.features), unsigned(low)
        ahead, behind = max(lag, 0), max(-lag, 0)
        total[:] = zero
        steps = min(row_lengths[i] - ahead, len(counts) - behind)
        if steps > 0:
            begin(state, shape, common, left, whole(counts[behind]))
        for s in range(steps):
            t, y = unsigned(firsts[i] + ahead + s), unsigned(behind + s)
            n = whole(counts[y])
            advance(state, features, t * size, lanes, y * size * wide, shape, left, n)
            add_readout(total, state, shape, output[t], weights, y * wide, left, n)

    @_jit
    def grid(side: Any, i: int, block: Any, state: Any, shape: Any, low: int, total: Any) -> None:
        """The whole grid; +lag and -lag in pairs, so that the sum is symmetric to the last bit."""
        _, _, counts, _, common = block
        diagonal(side, i, block, state, shape, low, 0, total)
        common[:] = False  # off the main diagonal no pair starts at both first steps
        plus, minus = np.empty_like(total), np.empty_like(total)
        for lag in range(1, max(side[3][i], len(counts))):
            diagonal(side, i, block, state, shape, low, lag, plus)
            diagonal(side, i, block, state, shape, low, -lag, minus)
            for j in range(low, width):
                total[j] += plus[j] + minus[j]

    def sweep(side: Any, block: Any, shape: Any, diagonal_at: int, out: Any) -> None:
        """The values of every row of ``side`` with the lanes, in ``out`` (rows, lanes).

        In a symmetric tile lane 0 is row ``diagonal_at``, and lanes left of a row's own are
        skipped; otherwise it is negative.
        """
        common = block[4]
        state, total = np.zeros(3 * width * shape.depth, number), np.zeros(width, number)
        for i in range(len(side[3])):
            own = i - diagonal_at if diagonal_at >= 0 else -1
            low = max(own, 0) // VECTOR * VECTOR
            for j in range(width):
                common[j] = shape.shared_start or j == own
            total[:] = zero
            if shape.grid:
                grid(side, i, block, state, shape, low, total)
            else:
                end_aligned(side, i, block, state, shape, low, total)
            for j in range(low, out.shape[1]):
                out[i, j] = unit * total[j]

    return _jit(sweep, keep=True)


@cache
def _packing() -> Callable[..., Any]:
    """Compiled: features and readout weights of some columns, side by side."""

    def pack(side: Any, late: bool, size: int, width: int, lanes: Any, weights: Any) -> None:
        features, output, firsts, lengths = side
        for j in range(len(lengths)):
            for s in range(lengths[j]):
                t = firsts[j] + (lengths[j] - 1 - s if late else s)
                weights[s * width + j] = output[t]
                for k in range(size):
                    lanes[(s * size + k) * width + j] = features[t * size + k]

    return _jit(pack, keep=True)


# -- tiles ----------------------------------------------------------------------------------------


def fused_tile_values(
    recursion: Recursion, rows: Slab, columns: Slab | None, *, threads: int = 1
) -> Array:
    """Kernel values of a tile in units of the product of the two sequences' scales.

    The same values as `rntk_dist.kernel.arrays.tile_values`, to rounding.

    Parameters
    ----------
    rows, columns : the slabs; with ``columns=None`` the tile is symmetric and one triangle is
        computed
    threads : blocks of columns that are computed at the same time

    Returns
    -------
    (rows, columns) array of the slabs' dtype.
    """
    other = rows if columns is None else columns
    row_order, column_order = rows.longest_first(), other.longest_first()
    total: Array | None = None
    for row, column in zip(rows.directions, other.directions, strict=True):
        row_side = make_side(row, rows, row_order)
        column_side = row_side if columns is None else make_side(column, other, column_order)
        part = _values(recursion, row, row_side, column_side, columns is None, threads)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return in_given_order(total, row_order, column_order, symmetric=columns is None)


def _values(
    recursion: Recursion,
    direction: Direction,
    rows: Side,
    columns: Side,
    symmetric: bool,
    threads: int,
) -> Array:
    """The values of one network, rows and columns longest first; of a triangle, i <= j."""
    shape = make_shape(recursion, direction)
    dtype = rows.output.dtype
    width = _width(columns, shape)
    out = np.empty((len(rows.lengths), len(columns.lengths)), dtype)

    def block(start: int) -> None:
        stop = min(start + width, len(columns.lengths))
        lanes = _lanes(columns.part(start, stop), shape, width)
        side = rows.part(0, stop if symmetric else len(rows.lengths))
        loops = _loops(recursion.activation, dtype.name, shape.inputs == 1, width)
        loops(side, lanes, shape, start if symmetric else -1, out[:, start:stop])

    starts = range(0, len(columns.lengths), width)
    with _announced():
        block(0)  # compiles, if need be
    if threads == 1:
        for start in starts[1:]:
            block(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(block, starts[1:]))
    return out


def _width(columns: Side, shape: Shape) -> int:
    """Lanes of a block: fewer where their features would fill the memory."""
    lane_bytes = int(columns.lengths[0]) * shape.features * columns.features.itemsize
    return LANES if lane_bytes * LANES <= BLOCK_BYTES else VECTOR


def _lanes(
    columns: tuple[Array, Array, Array, Array], shape: Shape, width: int
) -> tuple[Array, ...]:
    """A block of columns as compiled code takes it.

    Features by step, feature, lane; readout weights by step, lane; the number of lanes that have
    each step; the lanes' lengths; a scratch mask. Steps count from the beginning for a grid, else
    from the end.
    """
    features, _, _, lengths = columns
    steps = int(lengths[0])
    lanes = np.zeros(steps * shape.features * width, features.dtype)
    weights = np.zeros(steps * width, features.dtype)
    _packing()(columns, not shape.grid, shape.features, width, lanes, weights)
    counts = np.searchsorted(-lengths, -np.arange(steps), side="left")
    padded = np.zeros(width, np.int64)
    padded[: len(lengths)] = lengths
    return lanes, weights, counts, padded, np.zeros(width, np.bool_)


@contextmanager
def _announced() -> Iterator[None]:
    """Say on standard error when a compilation begins."""
    listener = _Announce()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
