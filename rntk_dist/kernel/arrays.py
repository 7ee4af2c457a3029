"""The loop over time on whole blocks of pairs, with array operations.

A block is some rows times some columns, small enough that its few temporaries stay in the cache.
The same code runs on NumPy and on CuPy arrays, whose namespace is the argument ``xp``. A *sweep*
walks one diagonal of the (t, t') grid for all pairs of a block at once. Sequences are sorted by
length, longest first, so the pairs that have a step are always the leading rows and columns of the
block, and sequences of different length cost what they contain.

Every operation is elementwise and symmetric in the two sequences: the value of a pair does not
depend on the block, the tile or the order in which it is computed, to the last bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.cell import MAKERS, Cell, Operations
from rntk_dist.kernel.erf_cell import ErfCell, make_erf
from rntk_dist.kernel.variances import Array, Direction, Layer, Slab

BLOCK_BYTES = 128 * 1024
"""One temporary of a block: a handful of them fit a core's second-level cache."""

DIAGONAL_PAIRS = 32 * 1024
"""Diagonals of self values that are swept at once."""


@dataclass(frozen=True)
class Recursion:
    """What the loop over pairs must know of a kernel.

    Attributes
    ----------
    activation, readout : as in RNTK
    frozen : number of first layers whose tangent part is zero
    tangent : False for the NNGP kernel
    shared_start : True if different sequences start from the same hidden state
    bias : whether there is one
    """

    activation: str
    readout: str
    frozen: int
    tangent: bool
    shared_start: bool
    bias: bool = False


@dataclass(frozen=True)
class Sweep:
    """One diagonal of the (t, t') grid of many pairs, walked step by step.

    The first axis of all arrays runs over rows, the last over columns: they are (r, 1) and (1, c)
    to meet as an (r, c) block, or both (p,) for p single pairs. Both are sorted by steps, most
    first.

    Attributes
    ----------
    rows, columns : packed position of each sequence's first step, or if ``late`` its last
    row_steps, column_steps : (r,), (c,) or (p,) number of steps each sequence has
    late : True if a sequence with n steps enters n steps before the end (the ends are aligned),
        False if all enter at once and leave after n steps
    same_start : mask of the pairs whose first steps meet and follow one common initial state
    """

    rows: Array
    columns: Array
    row_steps: NDArray[np.int64]
    column_steps: NDArray[np.int64]
    late: bool
    same_start: Array

    def steps(self) -> Iterator[tuple[Array, Array, tuple[slice, ...]]]:
        """At each step: the packed positions of rows and columns, and their part of the block."""
        count = int(min(self.row_steps[0], self.column_steps[0]))
        single = self.rows.ndim == 1
        for done in range(count):
            needed = count - 1 - done if self.late else done
            a = int(np.searchsorted(-self.row_steps, -needed))
            b = int(np.searchsorted(-self.column_steps, -needed))
            view = (slice(a),) if single else (slice(a), slice(b))
            offset = -needed if self.late else done
            yield self.rows[:a] + offset, self.columns[..., :b] + offset, view


def _operations(xp: Any) -> Operations:
    return Operations(
        xp.sqrt, xp.minimum, xp.maximum, xp.abs, xp.copysign, xp.where, lambda x, y: x < y
    )


@cache
def cell_for(activation: str, dtype: str, xp: Any) -> Cell:
    """The cell of relu or linear, in the elementwise operations of an array namespace."""
    return MAKERS[activation](np.dtype(dtype).type, _operations(xp))


@cache
def erf_cell_for(dtype: str, xp: Any, *, bias: bool, single: bool) -> ErfCell:
    """The cell of erf, in the elementwise operations of an array namespace."""
    return make_erf(np.dtype(dtype).type, _operations(xp), bias=bias, single=single)


def block_edge(dtype: np.dtype[Any]) -> int:
    """Rows (and columns) of a block whose temporaries stay in the cache."""
    return int((BLOCK_BYTES // dtype.itemsize) ** 0.5)


def tile_values(
    recursion: Recursion, rows: Slab, columns: Slab | None, *, edge: int, xp: Any = np
) -> Array:
    """Kernel values of a tile in units of the product of the two sequences' scales.

    Parameters
    ----------
    rows, columns : the slabs; with ``columns=None`` the tile is symmetric, one triangle is computed
        and the samples on the diagonal are the same
    edge : rows and columns of the blocks computed at once
    xp : the namespace of the slabs' arrays

    Returns
    -------
    (rows, columns) array of the slabs' dtype.
    """
    symmetric = columns is None
    other = rows if columns is None else columns
    out: Array = xp.empty((len(rows), len(other)), _dtype(rows))
    row_blocks, column_blocks = _blocks(rows, edge), _blocks(other, edge)
    for i, row_block in enumerate(row_blocks):
        for column_block in column_blocks[i if symmetric else 0 :]:
            same = symmetric and column_block is column_blocks[i]
            a, b = rows.take(row_block), other.take(column_block)
            values = _block_values(recursion, a, b, same, xp)
            _scatter(out, row_block, column_block, values, xp)
            if symmetric and not same:
                _scatter(out, column_block, row_block, values.T, xp)
    return out


def diagonal_values(recursion: Recursion, slab: Slab) -> Array:
    """Kernel value of each sequence with itself, in units of its scale squared; shape (n,)."""
    return np.concatenate(
        [_piece_of_diagonal(recursion, slab.take(piece)) for piece in _pieces(recursion, slab)]
    )


def _pieces(recursion: Recursion, slab: Slab) -> Iterator[slice]:
    """Runs of sequences whose diagonals, all swept at once, fit the cache."""
    pairs = np.cumsum(_diagonals(recursion, slab.lengths))
    start = 0
    while start < len(slab):
        done = pairs[start - 1] if start else 0
        stop = int(np.searchsorted(pairs, done + DIAGONAL_PAIRS, side="right"))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def _diagonals(recursion: Recursion, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many diagonals t - t' >= 0 of its own grid each sequence needs."""
    return lengths if recursion.readout == "mean" else np.ones_like(lengths)


def _piece_of_diagonal(recursion: Recursion, slab: Slab) -> Array:
    if recursion.readout != "mean" and recursion.activation == "relu":
        return _coinciding(recursion, slab)
    if recursion.readout != "mean" and recursion.activation == "erf":
        return _read_weights(recursion, slab)
    at, lag, steps = _self_pairs(_diagonals(recursion, slab.lengths), slab.lengths)
    first = slab.first[at]
    if recursion.readout == "mean":
        sweep = Sweep(first + lag, first, steps, steps, False, lag == 0)
    else:
        last = first + steps - 1
        sweep = Sweep(last, last, steps, steps, True, lag == 0)
    weight = np.where(lag == 0, 1.0, 2.0)  # the grid of a sequence with itself is symmetric
    total = np.zeros(len(slab))
    for direction in slab.directions:
        values = np.zeros(len(at), _dtype(slab))
        _run(recursion, sweep, direction, direction, values, np)
        total += np.bincount(at, weights=weight * values, minlength=len(slab))
    return total


def _read_weights(recursion: Recursion, slab: Slab) -> Array:
    """Self values where the weights of a step in the readout are the roots of its self values."""
    last, total = slab.first + slab.lengths - 1, np.zeros(len(slab))
    for direction in slab.directions:
        parts = direction.output if recursion.tangent else direction.output[:1]
        steps = (parts * parts).sum(axis=0)
        if recursion.readout in ("last", "diagonal_authors"):
            total += steps[last]
        if recursion.readout != "last":
            total += _sums(steps, slab)
    return total


def _sums(steps: Array, slab: Slab) -> Array:
    """The sums of the numbers of each sequence's steps."""
    order = np.argsort(slab.first, kind="stable")
    bounds = np.stack([slab.first[order], slab.first[order] + slab.lengths[order]], axis=1)
    padded = np.append(steps, 0.0)
    total = np.empty(len(slab))
    total[order] = np.add.reduceat(padded, bounds.ravel())[::2]
    return total


def _coinciding(recursion: Recursion, slab: Slab) -> Array:
    """Self values where the state is a distance: it stays 0, and only the tangent part is left.

    What `_run` gives to the last bit, for it adds zeros to the same numbers.
    """
    total = np.zeros(len(slab))
    order = slab.longest_first()
    last, lengths = (slab.first + slab.lengths - 1)[order], slab.lengths[order]
    for direction in slab.directions:
        values = np.zeros(len(slab))
        _run_coinciding(recursion, direction, last, lengths, values)
        total[order] += values
    return total


def _run_coinciding(
    recursion: Recursion,
    direction: Direction,
    last: NDArray[np.int64],
    lengths: NDArray[np.int64],
    total: Array,
) -> None:
    """As `_run`, of sequences with themselves, end-aligned, longest first; w = 0 throughout."""
    cell = cell_for(recursion.activation, total.dtype.name, np)
    depth, h = len(direction.layers), np.zeros(())
    first_trained = recursion.frozen if recursion.tangent else depth
    carried = np.zeros((depth, len(last)))
    (weights,) = direction.output

    def output() -> Array:
        value: Array = cell.readout(h, carried[-1, :n])
        value *= weights[at] * weights[at]
        return value

    counts = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")
    for needed in range(lengths[0] - 1, -1, -1):
        n = int(counts[needed])
        at = last[:n] - needed
        for k in range(first_trained, depth):
            carried[k, :n] = 0.5 + _carry(cell, direction.layers[k], at, carried[:, :n], k)
        if recursion.readout != "last":
            total[:n] += output()
    if recursion.readout in ("last", "diagonal_authors"):
        total += output()
    total *= cell.unit


def _carry(cell: Cell, layer: Layer, at: Array, carried: Array, k: int) -> Array:
    """What the tangent part of layer k carries over at the next step of sequences themselves."""
    a = layer.recurrent[at]
    carry: Array = (cell.gain * a) * a
    carry *= carried[k]
    if layer.below is not None:
        b = layer.below[at]
        share = (cell.gain * b) * b
        share *= carried[k - 1]
        carry += share
    return carry


def _dtype(slab: Slab) -> np.dtype[Any]:
    return np.dtype(slab.directions[0].output.dtype)


def _blocks(slab: Slab, edge: int) -> list[NDArray[np.int64]]:
    """Sequence numbers in blocks of similar length, longest first."""
    order = slab.longest_first()
    return [order[i : i + edge] for i in range(0, len(order), edge)]


def _scatter(out: Array, rows: Array, columns: Array, values: Array, xp: Any) -> None:
    out[xp.asarray(rows)[:, None], xp.asarray(columns)[None, :]] = values


def _self_pairs(
    diagonals: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sequence, lag and steps of every diagonal of the self values, most steps first."""
    at = np.repeat(np.arange(len(lengths)), diagonals)
    lag = np.arange(len(at)) - np.repeat(np.cumsum(diagonals) - diagonals, diagonals)
    steps = lengths[at] - lag
    order = np.argsort(-steps, kind="stable")
    return at[order], lag[order], steps[order]


def _block_values(recursion: Recursion, rows: Slab, columns: Slab, same: bool, xp: Any) -> Array:
    parts = []
    for row, column in zip(rows.directions, columns.directions, strict=True):
        values: Array = xp.zeros((len(rows), len(columns)), _dtype(rows))
        if recursion.readout == "mean":
            _sum_over_grid(recursion, rows, columns, same, row, column, values, xp)
        else:
            sweep = _end_aligned(rows, columns, _same_start(recursion, rows, columns, same), xp)
            _run(recursion, sweep, row, column, values, xp)
        parts.append(values)
    return sum(parts[1:], start=parts[0])


def _sum_over_grid(
    recursion: Recursion,
    rows: Slab,
    columns: Slab,
    same: bool,
    row: Direction,
    column: Direction,
    total: Array,
    xp: Any,
) -> None:
    """Add all diagonals; +lag and -lag are paired so that the sum is symmetric to the last bit."""
    start = _same_start(recursion, rows, columns, same)
    _run(recursion, _lagged(rows, columns, 0, start, xp), row, column, total, xp)
    never = np.zeros_like(start)
    for lag in range(1, int(max(rows.lengths[0], columns.lengths[0]))):
        part = xp.zeros_like(total)
        if lag < rows.lengths[0]:
            _run(recursion, _lagged(rows, columns, lag, never, xp), row, column, part, xp)
        if lag < columns.lengths[0]:
            opposite = xp.zeros_like(total)
            _run(recursion, _lagged(rows, columns, -lag, never, xp), row, column, opposite, xp)
            part += opposite
        total += part


def _end_aligned(rows: Slab, columns: Slab, start: NDArray[np.bool_], xp: Any) -> Sweep:
    last_row, last_column = rows.first + rows.lengths - 1, columns.first + columns.lengths - 1
    return Sweep(
        xp.asarray(last_row)[:, None],
        xp.asarray(last_column)[None, :],
        rows.lengths,
        columns.lengths,
        True,
        xp.asarray(start & (rows.lengths[:, None] == columns.lengths[None, :])),
    )


def _lagged(rows: Slab, columns: Slab, lag: int, start: NDArray[np.bool_], xp: Any) -> Sweep:
    """The diagonal t - t' = lag, from its first cell."""
    ahead, behind = max(lag, 0), max(-lag, 0)
    return Sweep(
        xp.asarray(rows.first + ahead)[:, None],
        xp.asarray(columns.first + behind)[None, :],
        rows.lengths - ahead,
        columns.lengths - behind,
        False,
        xp.asarray(start),
    )


def _same_start(recursion: Recursion, rows: Slab, columns: Slab, same: bool) -> NDArray[np.bool_]:
    """Which pairs share their initial hidden state."""
    shape = (len(rows), len(columns))
    if recursion.shared_start:
        return np.ones(shape, bool)
    return np.eye(*shape, dtype=bool) if same else np.zeros(shape, bool)


def _run(
    recursion: Recursion, sweep: Sweep, row: Direction, column: Direction, total: Array, xp: Any
) -> None:
    """Walk a sweep and add the readout of its cells to ``total``, in place."""
    states = STATES[recursion.activation](recursion, row, column, sweep.same_start, total, xp)
    for i, j, view in sweep.steps():
        for k in range(len(row.layers)):
            states.advance(k, i, j, view)
        if recursion.readout != "last":
            total[view] += states.output(i, j, view)
    if recursion.readout in ("last", "diagonal_authors"):
        total[view] += states.output(i, j, view)
    total *= states.unit


class States(Protocol):
    """What is carried from step to step of many pairs, one array a layer.

    Attributes
    ----------
    unit : of the outputs
    """

    unit: Any

    def advance(self, k: int, i: Array, j: Array, view: tuple[slice, ...]) -> None:
        """One step of layer k: positions of rows and columns, and their part of the block."""

    def output(self, i: Array, j: Array, view: tuple[slice, ...]) -> Array:
        """The value of the present cell."""


class _AngleStates:
    """Of relu and linear: see `rntk_dist.kernel.cell`."""

    def __init__(
        self,
        recursion: Recursion,
        row: Direction,
        column: Direction,
        same_start: Array,
        total: Array,
        xp: Any,
    ) -> None:
        self.row, self.column = row, column
        self.cell = cell = cell_for(recursion.activation, total.dtype.name, xp)
        self.unit = cell.unit
        self.first_trained = recursion.frozen if recursion.tangent else len(row.layers)
        self.state = [xp.where(same_start, cell.same, cell.unrelated) for _ in row.layers]
        self.carried = [xp.zeros_like(total) for _ in row.layers]

    def output(self, i: Array, j: Array, view: tuple[slice, ...]) -> Array:
        value: Array = self.cell.readout(self.state[-1][view], self.carried[-1][view])
        value *= self.row.output[0][i] * self.column.output[0][j]
        return value

    def advance(self, k: int, i: Array, j: Array, view: tuple[slice, ...]) -> None:
        angle, carry = self._advance(k, i, j, view)
        if k >= self.first_trained:
            self.state[k][view], self.carried[k][view] = self.cell.tangent(angle, carry)
        else:
            self.state[k][view] = self.cell.covariance(angle)

    def _advance(self, k: int, i: Array, j: Array, view: tuple[slice, ...]) -> tuple[Array, Array]:
        """The angle variable of layer k at the next step, and what its tangent part carries."""
        cell, state, carried = self.cell, self.state, self.carried
        row, column = self.row.layers[k], self.column.layers[k]
        a, b = row.recurrent[i], column.recurrent[j]
        share = (cell.gain * a) * b
        angle = share * state[k][view]
        share *= carried[k][view]
        carry = share
        if cell.distance:
            angle += cell.combine(a, b)
        if row.below is not None and column.below is not None:
            a, b = row.below[i], column.below[j]
            share = (cell.gain * a) * b
            angle += share * state[k - 1][view]
            share *= carried[k - 1][view]
            carry += share
            if cell.distance:
                angle += cell.combine(a, b)
        inputs = _combined_inputs(cell.combine, cell.combine_items, row, column, i, j)
        return angle if inputs is None else angle + inputs, carry


class _ErfStates:
    """Of erf: see `rntk_dist.kernel.erf_cell`."""

    def __init__(
        self,
        recursion: Recursion,
        row: Direction,
        column: Direction,
        same_start: Array,
        total: Array,
        xp: Any,
    ) -> None:
        self.row, self.column = row, column
        first = row.layers[0]
        self.single = len(first.inputs) == 1 and first.items is None
        number = total.dtype.type
        self.cell = erf_cell_for(total.dtype.name, xp, bias=recursion.bias, single=self.single)
        self.zero, self.unit = number(0), number(1)
        self.first_trained = recursion.frozen if recursion.tangent else len(row.layers)
        half = number(0.5)
        self.s = [xp.where(same_start, self.zero, half) for _ in row.layers]
        self.r = [xp.where(same_start, self.unit, self.zero) for _ in row.layers]
        self.g = [xp.zeros_like(total) for _ in row.layers]

    def output(self, i: Array, j: Array, view: tuple[slice, ...]) -> Array:
        value: Array = (self.row.output[0][i] * self.column.output[0][j]) * self.r[-1][view]
        value += (self.row.output[1][i] * self.column.output[1][j]) * self.g[-1][view]
        return value

    def advance(self, k: int, i: Array, j: Array, view: tuple[slice, ...]) -> None:
        cell, row, column = self.cell, self.row.layers[k], self.column.layers[k]
        assert row.own is not None
        assert column.own is not None
        a, b = row.recurrent[i], column.recurrent[j]
        own_a, own_b = [each[i] for each in row.own], [each[j] for each in column.own]
        s, r = self.s[k][view], self.r[k][view]
        if row.below is not None and column.below is not None:
            below = self.s[k - 1][view], self.r[k - 1][view]
            parts = row.below[i], column.below[j]
            W, Z, cosine = cell.upper(below, parts, a, b, s, r, own_a, own_b)
        else:
            inputs = self._inputs(row, column, i, j)
            W, Z, cosine = cell.first(inputs, a, b, s, r, own_a, own_b)
        self.s[k][view], self.r[k][view], reciprocal = cell.settle(W, Z, cosine, own_a, own_b)
        if k < self.first_trained:
            return
        carry = cell.carry(self.g[k][view], own_a, own_b)
        if k > self.first_trained:
            carry += cell.lift(self.g[k - 1][view], own_a, own_b)
        self.g[k][view] = cell.tangent(cosine, carry, reciprocal, own_a, own_b)

    def _inputs(self, row: Layer, column: Layer, i: Array, j: Array) -> tuple[Array, Array]:
        if self.single:
            return row.inputs[0][i], column.inputs[0][j]
        cell = self.cell
        inputs = _combined_inputs(cell.combine, cell.combine_items, row, column, i, j)
        mirrored = _combined_inputs(cell.mirror, cell.mirror_items, row, column, i, j)
        assert inputs is not None
        assert mirrored is not None
        return inputs, mirrored


STATES: dict[str, Callable[..., States]] = {
    "relu": _AngleStates,
    "linear": _AngleStates,
    "erf": _ErfStates,
}


def _combined_inputs(
    combine: Callable[[Any, Any], Any],
    combine_items: Callable[[Any, Any, Any], Any],
    row: Layer,
    column: Layer,
    i: Array,
    j: Array,
) -> Array | None:
    """The sum of what each input of two steps brings; None without inputs."""
    inputs = zip(row.inputs, column.inputs, strict=True)
    total = None
    if row.items is not None and column.items is not None:
        (x, y), same = next(inputs), row.items[i] == column.items[j]
        total = combine_items(x[i], y[j], same)
    for row_input, column_input in inputs:
        part = combine(row_input[i], column_input[j])
        total = part if total is None else total + part
    return total
