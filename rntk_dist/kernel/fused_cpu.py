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
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import event
from numpy.typing import NDArray

from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.cell import MAKERS, Operations
from rntk_dist.kernel.variances import Array, Direction, Slab

LANES = 256
"""Columns of a block."""

BLOCK_BYTES = 4 * 2**20
"""Features of a block of columns."""

VECTOR = 16
"""Lanes are taken in multiples of this: whole vectors on any machine, in either number type."""

# No reassociation: a value must not depend on which of the two sequences is the row.
FAST = {"nnan", "ninf", "nsz", "contract", "afn"}


def _jit(function: Callable[..., Any], *, keep: bool = False) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(
        function, fastmath=FAST, error_model="numpy", nogil=True, cache=keep
    )
    return compiled


class _Announce(event.Listener):  # type: ignore[misc]
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
def _loops(activation: str, dtype: str, one_input: bool) -> Callable[..., Any]:
    """The compiled sweep of rows against a block of lanes.

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

    @_jit
    def recur(h: Any, a: Any, b: Any, angle: Any) -> Any:
        """The angle with one more state in it: from the step before, or from the layer below."""
        angle += gain * a * b * h
        if distance:
            angle += combine(a, b)
        return angle

    @_jit
    def sum_inputs(
        angle: Any, row: Any, lanes: Any, at: int, count: int, low: int, n: int
    ) -> None:
        """angle = the combined features at..at+count, four in one pass over the lanes."""
        odd = count % 4
        for j in range(low, n):
            part = zero
            for k in range(at, at + odd):
                part += combine(row[k], lanes[k, j])
            angle[j] = part
        for k in range(at + odd, at + count, 4):
            for j in range(low, n):
                first = combine(row[k], lanes[k, j]) + combine(row[k + 1], lanes[k + 1, j])
                second = combine(row[k + 2], lanes[k + 2, j]) + combine(row[k + 3], lanes[k + 3, j])
                angle[j] += first + second

    @_jit
    def first_layer(
        h: Any, g: Any, angle: Any, row: Any, lanes: Any, trained: bool, low: int, n: int
    ) -> None:
        """One step of the first layer, whose inputs are summed in ``angle`` (or are only one)."""
        a = row[0]
        for j in range(low, n):
            b = lanes[0, j]
            value = recur(h[j], a, b, combine(row[1], lanes[1, j]) if one_input else angle[j])
            if trained:
                h[j], g[j] = tangent(value, gain * a * b * g[j])
            else:
                h[j] = covariance(value)

    @_jit
    def upper_layer(
        h: Any,
        g: Any,
        h_below: Any,
        g_below: Any,
        angle: Any,
        row: Any,
        lanes: Any,
        at: int,
        trained: bool,
        low: int,
        n: int,
    ) -> None:
        """One step of a layer above the first: its memory at ``at``, the layer below after it."""
        a, up = row[at], row[at + 1]
        for j in range(low, n):
            b, lift = lanes[at, j], lanes[at + 1, j]
            value = recur(h[j], a, b, recur(h_below[j], up, lift, angle[j]))
            if trained:
                h[j], g[j] = tangent(value, gain * a * b * g[j] + gain * up * lift * g_below[j])
            else:
                h[j] = covariance(value)

    @_jit
    def advance(state: Any, row: Any, lanes: Any, shape: Any, low: int, n: int) -> None:
        """One step of all layers, of the lanes low..n."""
        h, g, angle, _ = state
        if not one_input:
            sum_inputs(angle, row, lanes, 1, shape.inputs, low, n)
        # The branch is out here so that each loop below is compiled with a constant.
        if shape.first_trained == 0:
            first_layer(h[0], g[0], angle, row, lanes, True, low, n)
        else:
            first_layer(h[0], g[0], angle, row, lanes, False, low, n)
        at = 1 + shape.inputs
        for k in range(1, h.shape[0]):
            sum_inputs(angle, row, lanes, at + 2, shape.bias, low, n)
            below = k - 1
            if k >= shape.first_trained:
                upper_layer(
                    h[k], g[k], h[below], g[below], angle, row, lanes, at, True, low, n
                )
            else:
                upper_layer(
                    h[k], g[k], h[below], g[below], angle, row, lanes, at, False, low, n
                )
            at += 2 + shape.bias

    @_jit
    def add_readout(
        state: Any, total: Any, weight: Any, weights: Any, low: int, n: int
    ) -> None:
        h, g = state[0][-1], state[1][-1]
        for j in range(low, n):
            total[j] += weight * weights[j] * readout(h[j], g[j])

    @_jit
    def begin(state: Any, common: Any, low: int, n: int) -> None:
        """Put the lanes low..n at their start: one common state, or uncorrelated ones."""
        h, g, _, _ = state
        for k in range(h.shape[0]):
            for j in range(low, n):
                h[k, j] = same if common[j] else unrelated
                g[k, j] = zero

    @_jit
    def whole(n: int) -> int:
        return (n + VECTOR - 1) // VECTOR * VECTOR

    @_jit
    def end_aligned(side: Any, i: int, block: Any, state: Any, shape: Any, low: int) -> None:
        """The diagonal that ends in both last steps, added to the total."""
        features, output, firsts, row_lengths = side
        lanes, weights, counts, lengths, common = block
        length, last = row_lengths[i], firsts[i] + row_lengths[i] - 1
        for j in range(low, len(lengths)):
            common[j] = common[j] and lengths[j] == length
        begun = low
        for back in range(min(length, lanes.shape[0]) - 1, -1, -1):
            if counts[back] > begun:
                begin(state, common, begun, counts[back])
                begun = counts[back]
            n = whole(counts[back])
            advance(state, features[last - back], lanes[back], shape, low, n)
            if shape.every_step:
                add_readout(state, state[3], output[last - back], weights[back], low, n)
        if shape.last_step:
            add_readout(state, state[3], output[last], weights[0], low, whole(begun))

    @_jit
    def diagonal(
        side: Any, i: int, block: Any, state: Any, shape: Any, low: int, lag: int, total: Any
    ) -> None:
        """The diagonal t - t' = lag from its first cell, in ``total``."""
        features, output, firsts, row_lengths = side
        lanes, weights, counts, _, common = block
        ahead, behind = max(lag, 0), max(-lag, 0)
        total[:] = zero
        steps = min(row_lengths[i] - ahead, lanes.shape[0] - behind)
        if steps > 0:
            begin(state, common, low, whole(counts[behind]))
        for s in range(steps):
            t, u = firsts[i] + ahead + s, behind + s
            n = whole(counts[u])
            advance(state, features[t], lanes[u], shape, low, n)
            add_readout(state, total, output[t], weights[u], low, n)

    @_jit
    def grid(side: Any, i: int, block: Any, state: Any, shape: Any, low: int) -> None:
        """The whole grid; +lag and -lag in pairs, so that the sum is symmetric to the last bit."""
        lanes, _, _, _, common = block
        total = state[3]
        diagonal(side, i, block, state, shape, low, 0, total)
        common[:] = False  # off the main diagonal no pair starts at both first steps
        plus, minus = np.empty_like(total), np.empty_like(total)
        for lag in range(1, max(side[3][i], lanes.shape[0])):
            diagonal(side, i, block, state, shape, low, lag, plus)
            diagonal(side, i, block, state, shape, low, -lag, minus)
            for j in range(low, len(total)):
                total[j] += plus[j] + minus[j]

    def sweep(side: Any, block: Any, shape: Any, diagonal_at: int, out: Any) -> None:
        """The values of every row of ``side`` with the lanes, in ``out`` (rows, lanes).

        In a symmetric tile lane 0 is row ``diagonal_at``, and lanes left of a row's own are
        skipped; otherwise it is negative.
        """
        width, common = block[0].shape[2], block[4]
        h = np.zeros((shape.depth, width), number)
        state = (h, np.zeros_like(h), np.zeros(width, number), np.zeros(width, number))
        for i in range(len(side[3])):
            own = i - diagonal_at if diagonal_at >= 0 else -1
            low = max(own, 0) // VECTOR * VECTOR
            for j in range(width):
                common[j] = shape.shared_start or j == own
            state[3][:] = zero
            if shape.grid:
                grid(side, i, block, state, shape, low)
            else:
                end_aligned(side, i, block, state, shape, low)
            for j in range(low, out.shape[1]):
                out[i, j] = unit * state[3][j]

    return _jit(sweep, keep=True)


class _Shape(NamedTuple):
    """Run-time facts of a sweep, as compiled code takes them."""

    depth: int
    inputs: int
    bias: int
    first_trained: int
    grid: bool
    every_step: bool
    last_step: bool
    shared_start: bool


# -- tiles ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """One direction of a slab, sorted by length: features packed step by step, shape (steps, F)."""

    features: Array
    output: Array
    first: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def rows(self, stop: int) -> tuple[Array, Array, Array, Array]:
        """The first rows, as compiled code takes them."""
        return self.features, self.output, self.first[:stop], self.lengths[:stop]


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
    row_order, column_order = _longest_first(rows), _longest_first(other)
    total: Array | None = None
    for row, column in zip(rows.directions, other.directions, strict=True):
        row_side = _side(row, rows, row_order)
        column_side = row_side if columns is None else _side(column, other, column_order)
        part = _values(recursion, row, row_side, column_side, columns is None, threads)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return _in_given_order(total, row_order, column_order, symmetric=columns is None)


def _longest_first(slab: Slab) -> NDArray[np.int64]:
    return np.argsort(-slab.lengths, kind="stable")


def _side(direction: Direction, slab: Slab, order: NDArray[np.int64]) -> _Side:
    parts = []
    for layer in direction.layers:
        parts.append(layer.recurrent[None])
        if layer.below is not None:
            parts.append(layer.below[None])
        parts.append(layer.inputs)
    features = np.ascontiguousarray(np.concatenate(parts).T)
    return _Side(features, direction.output, slab.first[order], slab.lengths[order])


def _values(
    recursion: Recursion,
    direction: Direction,
    rows: _Side,
    columns: _Side,
    symmetric: bool,
    threads: int,
) -> Array:
    """The values of one network, rows and columns longest first; of a triangle, i <= j."""
    shape = _shape(recursion, direction)
    dtype = rows.output.dtype
    one_input = shape.inputs == 1
    loops = _loops(recursion.activation, dtype.name, one_input)
    out = np.empty((len(rows.lengths), len(columns.lengths)), dtype)

    def block(start: int, stop: int) -> None:
        lanes = _lanes(columns, start, stop, late=not shape.grid)
        used = stop if symmetric else len(rows.lengths)
        loops(rows.rows(used), lanes, shape, start if symmetric else -1, out[:used, start:stop])

    spans = list(_spans(columns))
    with _announced():
        block(*spans[0])  # compiles, if need be
    if threads == 1:
        for span in spans[1:]:
            block(*span)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda span: block(*span), spans[1:]))
    return out


def _shape(recursion: Recursion, direction: Direction) -> _Shape:
    depth = len(direction.layers)
    return _Shape(
        depth=depth,
        inputs=len(direction.layers[0].inputs),
        bias=len(direction.layers[-1].inputs) if depth > 1 else 0,
        first_trained=recursion.frozen if recursion.tangent else depth,
        grid=recursion.readout == "mean",
        every_step=recursion.readout in ("per_step", "diagonal_authors"),
        last_step=recursion.readout in ("last", "diagonal_authors"),
        shared_start=recursion.shared_start,
    )


def _spans(columns: _Side) -> Iterator[tuple[int, int]]:
    """Blocks of columns whose features take a few MiB."""
    count = len(columns.lengths)
    step_bytes = columns.features.shape[1] * columns.features.itemsize
    start = 0
    while start < count:
        fitting = BLOCK_BYTES // (int(columns.lengths[start]) * step_bytes)
        width = min(LANES, max(VECTOR, fitting // VECTOR * VECTOR))
        yield start, min(start + width, count)
        start += width


def _lanes(columns: _Side, start: int, stop: int, *, late: bool) -> tuple[Array, ...]:
    """Features and readout weights of some columns side by side: step, feature, lane.

    Steps count from the end if ``late``, else from the beginning. Returns them with the number of
    lanes that have each step, the lanes' lengths and a scratch mask.
    """
    lengths = columns.lengths[start:stop]
    width = -(-(stop - start) // VECTOR) * VECTOR
    steps, count = int(lengths[0]), columns.features.shape[1]
    lanes = np.zeros((steps, count, width), columns.features.dtype)
    weights = np.zeros((steps, width), columns.features.dtype)
    for j, (first, length) in enumerate(zip(columns.first[start:stop], lengths, strict=True)):
        steps_of_lane = slice(first, first + length)
        turn = slice(None, None, -1 if late else 1)
        lanes[:length, :, j] = columns.features[steps_of_lane][turn]
        weights[:length, j] = columns.output[steps_of_lane][turn]
    counts = np.searchsorted(-lengths, -np.arange(steps), side="left")
    padded = np.zeros(width, np.int64)
    padded[: stop - start] = lengths
    return lanes, weights, counts, padded, np.zeros(width, np.bool_)


def _in_given_order(
    values: Array, rows: NDArray[np.int64], columns: NDArray[np.int64], *, symmetric: bool
) -> Array:
    """From longest-first to the order of the slabs, the lower triangle filled in."""
    if symmetric:
        for start in range(0, len(values), LANES):
            stop = start + LANES
            square = values[start:stop, start:stop]
            square[...] = np.triu(square) + np.triu(square, 1).T
            values[stop:, start:stop] = values[start:stop, stop:].T
    if (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all():
        return values
    given = np.empty_like(values)
    given[rows[:, None], columns] = values
    return given


@contextmanager
def _announced() -> Iterator[None]:
    """Say on standard error when a compilation begins."""
    listener = _Announce()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
