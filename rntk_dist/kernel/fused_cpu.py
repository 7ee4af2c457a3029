"""The cell inside compiled loops: a few rows against a block of columns, pairs innermost.

The columns of a block are *lanes*: their features lie side by side, step by step, and the innermost
loops run over lanes, so that the compiler turns them into full-width vector instructions. A group
of rows goes through the block together, so that what is read of the lanes serves all of them, and
their state stays in the nearest caches. Rows and columns are sorted by length, longest first; at
each step the rows and lanes that have it come first, the lanes rounded up to whole vectors.
Features of steps that a lane does not have are zero, and so is their weight in the readout: what is
computed for them is never seen.

Compiled code is kept on disk by Numba and read by other processes; compilation is announced on
standard error.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from typing import Any

import numba
import numpy as np
from numba.core import event
from numba.core.caching import FunctionCache
from numba.core.compiler import Compiler

from rntk_dist.kernel import cell, erf_cell, loops_angle, loops_erf
from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.cell import Operations
from rntk_dist.kernel.loops_angle import angle_layers
from rntk_dist.kernel.loops_erf import erf_layers
from rntk_dist.kernel.packed import Shape, Side, in_given_order, make_shape, make_side
from rntk_dist.kernel.variances import Array, Direction, Slab

LANES = 256
"""Columns of a block."""

BLOCK_BYTES = 32 * 2**20
"""Features of a block of columns."""

VECTOR = 16
"""Lanes are taken in multiples of this: whole vectors on any machine, in either number type."""

GROUP = 4
"""Rows that go through a block together."""

# No reassociation: a value must not depend on which of the two sequences is the row.
FAST = {"nnan", "ninf", "nsz", "contract"}


class _Distinct(Compiler):
    """A compiler that may assume that array arguments do not overlap, as ours never do.

    Loops over many arrays vectorise only then: else the checks for overlap grow too many.
    """

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


def _jit_of(*made_of: object) -> Callable[[Any], Any]:
    """A decorator that compiles functions under names that tell what they are made of.

    Code that comes from the disk is linked by name, and Numba's names tell functions apart within
    the process that compiled them alone: where code of two processes meets in a third, loops would
    call whichever function of such a name came first, whatever it closes over.
    """
    mark = sha256(repr(made_of).encode()).hexdigest()[:16]

    def jit(function: Any) -> Any:
        function.__qualname__ += f"_{mark}"
        return numba.njit(
            function, fastmath=FAST, error_model="numpy", nogil=True, pipeline_class=_Distinct
        )

    return jit


class _Kept(FunctionCache):
    """Numba's cache on disk for a closure, known by its name and the source of what it closes over.

    Numba's own knows a closure by what it closes over. Here these are compiled functions, which are
    never the same in another process, so it would never find one again.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[object, ...]:
        return sig, codegen.magic_tuple(), _sources()


@cache
def _sources() -> str:
    modules = (cell, erf_cell, loops_angle, loops_erf)
    return sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()


def _keep(compiled: Any) -> Callable[..., Any]:
    """The compiled function, kept on disk for all processes that ask for the same."""
    # Numba refuses where it finds no folder to write to; then each process compiles for itself.
    with suppress(RuntimeError):
        compiled._cache = _Kept(compiled.py_func)  # type: ignore[no-untyped-call]
    kept: Callable[..., Any] = compiled
    return kept


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
        sqrt=_jit_of("sqrt")(lambda x: math.sqrt(x)),
        minimum=_jit_of("minimum")(lambda x, y: x if x < y else y),
        maximum=_jit_of("maximum")(lambda x, y: x if x > y else y),
        absolute=_jit_of("absolute")(lambda x: abs(x)),
        copysign=_jit_of("copysign")(lambda x, y: math.copysign(x, y)),
        choose=_jit_of("choose")(lambda condition, x, y: x if condition else y),
        less=_jit_of("less")(lambda x, y: x < y),
    )


# -- the loops ------------------------------------------------------------------------------------


def _sum_of_inputs(  # noqa: C901 - a closure of small functions, as compiled code needs them
    jit: Callable[[Any], Any],
    combine: Callable[..., Any],
    number: Any,
    *,
    at: int,
    rows: int,
    width: int,
) -> Callable[..., None]:
    """Compiled: the combined inputs of a group of rows, in the row of lanes ``at`` of their states.

    ``rows``: rows of lanes that the state of a layer takes.
    """
    zero = number(0)
    row, wide, deep = np.uint64(at), np.uint64(width), np.uint64(rows * width)

    @jit
    def unsigned(n: Any) -> Any:
        return np.uint64(n)

    # The first layer's inputs are taken for all rows of a group in one pass over the lanes, two at
    # a time, so that a feature of many lanes is read from memory once for all of them. A value must
    # not depend on its row's place in a group, so a group always runs as a whole: there is no
    # second loop that might round in another way.

    @jit
    def begin_with_one(
        state: Any, angles: Any, features: Any, xs: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        angle0, angle1, angle2, angle3 = angles
        x0, x1, x2, x3 = xs
        a0, a1, a2, a3 = features[x0], features[x1], features[x2], features[x3]
        for j in range(low, n):
            b = lanes[y + j]
            state[angle0 + j] = combine(a0, b)
            state[angle1 + j] = combine(a1, b)
            state[angle2 + j] = combine(a2, b)
            state[angle3 + j] = combine(a3, b)

    @jit
    def add_two(
        state: Any, angles: Any, features: Any, xs: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        angle0, angle1, angle2, angle3 = angles
        x0, x1, x2, x3 = xs
        next = unsigned(1)
        a0, c0 = features[x0], features[x0 + next]
        a1, c1 = features[x1], features[x1 + next]
        a2, c2 = features[x2], features[x2 + next]
        a3, c3 = features[x3], features[x3 + next]
        for j in range(low, n):
            b, d = lanes[y + j], lanes[y + wide + j]
            state[angle0 + j] += combine(a0, b) + combine(c0, d)
            state[angle1 + j] += combine(a1, b) + combine(c1, d)
            state[angle2 + j] += combine(a2, b) + combine(c2, d)
            state[angle3 + j] += combine(a3, b) + combine(c3, d)

    @jit
    def sum_inputs(
        state: Any, shape: Any, features: Any, xs: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        """The angles of a group of rows = their combined inputs, which begin at xs and y."""
        angle, span = row * wide, unsigned(shape.depth) * deep
        angles = (angle, angle + span, angle + span + span, angle + span + span + span)
        x0, x1, x2, x3 = xs
        count = unsigned(shape.inputs)
        odd = count % unsigned(2)
        if odd:
            begin_with_one(state, angles, features, xs, lanes, y, low, n)
        else:
            for start in angles:
                for j in range(low, n):
                    state[start + j] = zero
        for k in range(odd, count, unsigned(2)):
            at = (x0 + k, x1 + k, x2 + k, x3 + k)
            add_two(state, angles, features, at, lanes, y + k * wide, low, n)

    summed: Callable[..., None] = sum_inputs
    return summed


@cache
def _loops(  # noqa: C901 - a closure of small functions, as compiled code needs them
    activation: str, dtype: str, inline: int, width: int, items: bool = False, bias: bool = False
) -> Callable[..., Any]:
    """The compiled sweep of rows against a block of ``width`` lanes.

    ``inline``: 1 or 2 if the first layer has just so many inputs (one feature or item, and the
    bias), which are then combined where they are needed; 0 if they are summed beforehand, for a
    group of rows. ``items``: whether the first of them is an item's. ``bias``: whether erf has one.
    """
    _jit = _jit_of(activation, dtype, inline, width, items, bias)
    number = np.dtype(dtype).type
    options: dict[str, Any] = {"inline": inline, "width": width, "items": items}
    if activation == "erf":
        layers = erf_layers(dtype, _operations(), _jit, bias=bias, **options)
    else:
        layers = angle_layers(activation, dtype, _operations(), _jit, **options)
    advance, begin_lane = layers.advance, layers.begin
    add_readout, unit, zero = layers.add_readout, layers.unit, number(0)

    # Every array is flat, and a block of lanes always has the same width: a view of its own for
    # each feature would cost more than the arithmetic of a step. Unsigned indices, as an index that
    # cannot be negative is not tested for it.
    wide, deep = np.uint64(width), np.uint64(layers.rows * width)
    outputs, rows_of_state = np.uint64(layers.outputs), layers.rows

    @_jit
    def unsigned(n: Any) -> Any:
        return np.uint64(n)

    lanes_of = {"rows": layers.rows, "width": width}
    sums = [
        _sum_of_inputs(_jit, combine, number, at=layers.rows - back, **lanes_of)
        for back, combine in zip(range(len(layers.sums), 0, -1), layers.sums, strict=True)
    ]
    sum_first, sum_second, two_sums = sums[0], sums[-1], len(sums) == 2

    @_jit
    def begin(state: Any, shape: Any, common: Any, r: Any, low: Any, n: Any) -> None:
        """Put the lanes low..n of a row at their start: one common state, or uncorrelated ones."""
        for k in range(shape.depth):
            at, mask = (r * unsigned(shape.depth) + unsigned(k)) * deep, r * wide
            for j in range(low, n):
                begin_lane(state, at, common[mask + j], j)

    @_jit
    def whole(n: int) -> Any:
        return np.uint64((n + VECTOR - 1) // VECTOR * VECTOR)

    @_jit
    def step(
        side: Any, block: Any, state: Any, shape: Any, ts: Any, y: int, lows: Any, active: int
    ) -> None:
        """One step of the first ``active`` rows of a group: step ts[r] of each, step y of lanes."""
        features, lanes = side[0], block[0]
        size, one, n = unsigned(shape.features), unsigned(1), whole(block[2][y])
        at = unsigned(y) * size * wide
        if not inline:
            most = active - 1  # rows that are not there repeat this one, and are not looked at
            xs = (
                ts[0] * size + one,
                ts[min(1, most)] * size + one,
                ts[min(2, most)] * size + one,
                ts[min(3, most)] * size + one,
            )
            sum_first(state, shape, features, xs, lanes, at + wide, lows[0], n)
            if two_sums:
                sum_second(state, shape, features, xs, lanes, at + wide, lows[0], n)
        for r in range(active):
            base = unsigned(r) * unsigned(shape.depth) * deep
            advance(state, base, features, ts[r] * size, lanes, at, shape, lows[r], n)

    @_jit
    def read(
        side: Any,
        block: Any,
        state: Any,
        shape: Any,
        ts: Any,
        y: int,
        lows: Any,
        r: int,
        total: Any,
    ) -> None:
        """Add the readout of a row's present cell: step ts[r] of the row, step y of the lanes."""
        output, weights, n = side[1], block[1], whole(block[2][y])
        top = (unsigned(r) * unsigned(shape.depth) + unsigned(shape.depth - 1)) * deep
        t, at = ts[r] * outputs, unsigned(y) * outputs * wide
        add_readout(total, unsigned(r) * wide, state, top, output, t, weights, at, lows[r], n)

    @_jit
    def keep_equal_lengths(common: Any, row_lengths: Any, i: int, rows: int, lengths: Any) -> None:
        for r in range(rows):
            for j in range(width):
                k = r * width + j
                common[k] = common[k] and lengths[j] == row_lengths[i + r]

    @_jit
    def end_aligned(
        side: Any, i: int, rows: int, block: Any, state: Any, shape: Any, lows: Any, total: Any
    ) -> None:
        """The diagonals that end in both last steps, of the rows from i; added to the totals."""
        _, _, firsts, row_lengths = side
        counts, lengths, common = block[2], block[3], block[4]
        ts, begun = np.zeros(GROUP, np.uint64), lows.copy()
        keep_equal_lengths(common, row_lengths, i, rows, lengths)
        active = 0
        for back in range(min(row_lengths[i], len(counts)) - 1, -1, -1):
            count = unsigned(counts[back])
            while active < rows and row_lengths[i + active] > back:
                active += 1
            for r in range(active):
                ts[r] = unsigned(firsts[i + r] + row_lengths[i + r] - 1 - back)
                if count > begun[r]:
                    begin(state, shape, common, unsigned(r), begun[r], count)
                    begun[r] = count
            step(side, block, state, shape, ts, back, lows, active)
            if shape.every_step:
                for r in range(active):
                    read(side, block, state, shape, ts, back, lows, r, total)
        if shape.last_step:
            for r in range(rows):
                read(side, block, state, shape, ts, 0, lows, r, total)

    @_jit
    def diagonal(
        side: Any,
        i: int,
        rows: int,
        block: Any,
        state: Any,
        shape: Any,
        lows: Any,
        lag: int,
        total: Any,
    ) -> None:
        """The diagonals t - t' = lag from their first cells, of the rows from i, in ``total``."""
        _, _, firsts, row_lengths = side
        counts, common = block[2], block[4]
        ts = np.zeros(GROUP, np.uint64)
        ahead, behind = max(lag, 0), max(-lag, 0)
        total[:] = zero
        steps = min(row_lengths[i] - ahead, len(counts) - behind)
        if steps > 0:
            for r in range(rows):
                begin(state, shape, common, unsigned(r), lows[r], whole(counts[behind]))
        active = rows
        for s in range(steps):
            while row_lengths[i + active - 1] - ahead <= s:
                active -= 1
            for r in range(active):
                ts[r] = unsigned(firsts[i + r] + ahead + s)
            step(side, block, state, shape, ts, behind + s, lows, active)
            for r in range(active):
                read(side, block, state, shape, ts, behind + s, lows, r, total)

    @_jit
    def grid(
        side: Any, i: int, rows: int, block: Any, state: Any, shape: Any, lows: Any, total: Any
    ) -> None:
        """The whole grid; +lag and -lag in pairs, so that the sum is symmetric to the last bit."""
        counts, common = block[2], block[4]
        plus, minus = np.empty_like(total), np.zeros_like(total)
        for lag in range(max(side[3][i], len(counts))):
            diagonal(side, i, rows, block, state, shape, lows, lag, plus)
            if lag > 0:
                diagonal(side, i, rows, block, state, shape, lows, -lag, minus)
            common[:] = False  # off the main diagonal no pair starts at both first steps
            for j in range(len(total)):
                total[j] += plus[j] + minus[j]

    def sweep(side: Any, block: Any, shape: Any, diagonal_at: int, out: Any) -> None:
        """The values of every row of ``side`` with the lanes, in ``out`` (rows, lanes).

        In a symmetric tile lane 0 is row ``diagonal_at``, and lanes left of a row's own are
        skipped; otherwise it is negative.
        """
        common = block[4]
        state = np.zeros(GROUP * rows_of_state * width * shape.depth, number)
        total = np.zeros(len(common), number)
        lows = np.zeros(GROUP, np.uint64)
        for i in range(0, len(side[3]), GROUP):
            rows = min(GROUP, len(side[3]) - i)
            for r in range(rows):
                own = i + r - diagonal_at if diagonal_at >= 0 else -1
                lows[r] = unsigned(max(own, 0) // VECTOR * VECTOR)
                for j in range(width):
                    common[r * width + j] = shape.shared_start or j == own
            total[:] = zero
            if shape.grid:
                grid(side, i, rows, block, state, shape, lows, total)
            else:
                end_aligned(side, i, rows, block, state, shape, lows, total)
            for r in range(rows):
                for j in range(np.int64(lows[r]), out.shape[1]):
                    out[i + r, j] = unit * total[r * width + j]

    return _keep(_jit(sweep))


@cache
def _packing() -> Callable[..., Any]:
    """Compiled: features and readout weights of some columns, side by side."""

    def pack(
        side: Any, late: bool, size: int, outputs: int, width: int, lanes: Any, weights: Any
    ) -> None:
        features, output, firsts, lengths = side
        for j in range(len(lengths)):
            for s in range(lengths[j]):
                t = firsts[j] + (lengths[j] - 1 - s if late else s)
                for k in range(outputs):
                    weights[(s * outputs + k) * width + j] = output[t * outputs + k]
                for k in range(size):
                    lanes[(s * size + k) * width + j] = features[t * size + k]

    return _keep(_jit_of()(pack))


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
    # Zeros: below the diagonal of a symmetric tile nothing is written, and sums go over all of it.
    out = np.zeros((len(rows.lengths), len(columns.lengths)), dtype)

    def block(start: int) -> None:
        stop = min(start + width, len(columns.lengths))
        lanes = _lanes(columns.part(start, stop), shape, width)
        side = rows.part(0, stop if symmetric else len(rows.lengths))
        bias = recursion.bias and recursion.activation == "erf"
        loops = _loops(recursion.activation, dtype.name, _inline(shape), width, shape.items, bias)
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


def _inline(shape: Shape) -> int:
    """How many inputs the loops combine where they need them; 0: summed beforehand."""
    count = shape.inputs - shape.items
    return count if count <= 2 else 0


def _width(columns: Side, shape: Shape) -> int:
    """Lanes of a block: fewer where their features would fill the memory."""
    lane_bytes = int(columns.lengths[0]) * shape.features * columns.features.itemsize
    return LANES if lane_bytes * LANES <= BLOCK_BYTES else VECTOR


def _lanes(
    columns: tuple[Array, Array, Array, Array], shape: Shape, width: int
) -> tuple[Array, ...]:
    """A block of columns as compiled code takes it.

    Features by step, feature, lane; readout weights by step, lane; the number of lanes that have
    each step; the lanes' lengths; a scratch mask for a group of rows. Steps count from the
    beginning for a grid, else from the end.
    """
    features, _, _, lengths = columns
    steps = int(lengths[0])
    lanes = np.zeros(steps * shape.features * width, features.dtype)
    weights = np.zeros(steps * shape.outputs * width, features.dtype)
    late = not shape.grid
    _packing()(columns, late, shape.features, shape.outputs, width, lanes, weights)
    counts = np.searchsorted(-lengths, -np.arange(steps), side="left")
    padded = np.zeros(width, np.int64)
    padded[: len(lengths)] = lengths
    return lanes, weights, counts, padded, np.zeros(GROUP * width, np.bool_)


@contextmanager
def _announced() -> Iterator[None]:
    """Say on standard error when a compilation begins."""
    listener = _Announce()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
