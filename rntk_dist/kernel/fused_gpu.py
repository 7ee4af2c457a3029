"""The cell inside a CUDA kernel: every thread walks a small square of pairs through time.

A block of threads owns some rows times some columns. The features of a few steps at a time are
staged in shared memory, one copy for the whole block; the states of a thread's pairs stay in
registers from the first step to the last. Sequences are sorted by length, longest first, and a
block begins at the longest step that one of its own pairs has, so that sequences of different
length cost what they contain.

A block walks all its pairs together. Features and readout weights of steps that a sequence does not
have are zero: what is computed for them is finite and never seen, and a pair is put at its start
when its own first step comes.

Each activation has its own device functions, which take a step of one pair: those of relu and
linear are here, erf's in `rntk_dist.kernel.loops_gpu_erf`.

Numba compiles the kernel for the GPU at its first use in a process. Under Numba's CUDA simulator
(the environment variable NUMBA_ENABLE_CUDASIM=1, set before Numba is imported) the same kernel runs
as Python threads, and NumPy arrays take the place of CuPy's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.cell import MAKERS, Operations
from rntk_dist.kernel.loops_gpu_erf import Layers, Pairs, erf_layers, make_loader
from rntk_dist.kernel.packed import Shape, in_given_order, make_shape, step_features
from rntk_dist.kernel.variances import Array, Direction, Slab

INSTALL = 'pip install "rntk_dist[gpu]"'

STAGE_BYTES = 24 * 1024
"""Shared memory of a block of threads: a few blocks at once on a multiprocessor of any GPU."""

STRIPE_BYTES = 256 * 2**20
"""Most of a result that is computed before it is copied, while the next is computed."""

SPARE = 0.9
"""Share of the free device memory that is taken."""

REGISTERS = 80
"""Of a thread, for one layer: three blocks of 256 threads are then at work on a multiprocessor."""

MOST_BLOCKS = 65535
"""Rows of blocks that a CUDA grid may have."""

LEAST = 1e-36
"""Roots are estimated in single precision: of no smaller number than this."""

cuda: Any = None
"""numba.cuda once a kernel was made. The simulator looks for it here, in the module's globals."""


# -- what is known when the kernel is compiled ---------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The shape of a block of threads, and of the pairs that a thread owns.

    Attributes
    ----------
    threads_down, threads_across : threads over rows and over columns
    down, across : rows and columns of the pairs of one thread
    stage_bytes : shared memory for the features of rows and columns
    """

    threads_down: int
    threads_across: int
    down: int
    across: int
    stage_bytes: int = STAGE_BYTES

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.threads_down * self.down

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.threads_across * self.across

    def places(self, itemsize: int) -> int:
        """Numbers of each sequence that fit in shared memory at once."""
        return self.stage_bytes // (itemsize * (self.rows + 1 + self.columns + 1))


def block_for(shape: Shape, itemsize: int) -> Block:
    """A block whose states fit the registers: the deeper the network, the fewer pairs a thread."""
    words = 1 + shape.outputs  # numbers of a pair's state a layer: 2, of erf 3
    registers = shape.depth * words * itemsize // 4
    crowded = shape.outputs * itemsize > 8  # erf in float64 has more numbers at hand than states
    if registers <= 2:
        return Block(16, 16, 4, 2)
    if registers <= 6 and not crowded:
        return Block(16, 16, 2, 2)
    if registers <= 12:
        return Block(16, 16, 2, 1)
    return Block(16, 16, 1, 1)


@dataclass(frozen=True)
class Variant:
    """What one compiled kernel is for; names as in `rntk_dist.kernel.packed.Shape`.

    Attributes
    ----------
    bias : inputs of every other layer; of erf, whose bias is no input, whether there is one
    one_input : the first layer has exactly one input, taken inline
    items : the first layer takes in items
    weighted : readout weights are staged with the features of their step
    pieces : the features of one step do not fit in shared memory, and are staged piece by piece
    """

    activation: str
    dtype: str
    block: Block
    depth: int
    first_trained: int
    bias: int
    one_input: bool
    items: bool
    grid: bool
    every_step: bool
    last_step: bool
    pieces: bool

    @property
    def weighted(self) -> bool:
        """See the attributes."""
        return self.grid or self.every_step


def make_variant(recursion: Recursion, dtype: np.dtype[Any], shape: Shape, block: Block) -> Variant:
    """The kernel for a shape."""
    size = shape.features + shape.outputs * int(shape.grid or shape.every_step)
    return Variant(
        activation=recursion.activation,
        dtype=dtype.name,
        block=block,
        depth=shape.depth,
        first_trained=shape.first_trained,
        bias=int(recursion.bias) if recursion.activation == "erf" else shape.bias,
        one_input=shape.inputs == 1,
        items=shape.items,
        grid=shape.grid,
        every_step=shape.every_step,
        last_step=shape.last_step,
        pieces=size > block.places(dtype.itemsize),
    )


# -- the kernel ----------------------------------------------------------------------------------


def _load_cuda() -> None:
    """Import numba.cuda: only where a kernel is wanted, as it takes long to load.

    Raises
    ------
    ImportError
        If it cannot be loaded.
    """
    global cuda
    if cuda is None:
        try:
            from numba import cuda as loaded
        except ImportError as error:
            raise ImportError(f"the GPU backend needs numba-cuda: {INSTALL}") from error
        cuda = loaded


def simulated() -> bool:
    """Whether Numba's CUDA simulator stands in for a GPU."""
    from numba import config

    return bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


def _device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that kernels call; it becomes a part of them, and no call is left."""
    if simulated():
        return function
    compiled: Callable[..., Any] = cuda.jit(function, device=True, forceinline=True)
    return compiled


@cache
def _operations(dtype: str) -> Operations:
    """Elementwise operations, in single instructions where there are such."""
    return Operations(
        sqrt=_root(dtype),
        minimum=_device(lambda x, y: min(x, y)),
        maximum=_device(lambda x, y: max(x, y)),
        absolute=_device(lambda x: abs(x)),
        copysign=_device(lambda x, y: math.copysign(x, y)),
        choose=_device(lambda condition, x, y: x if condition else y),
        less=_device(lambda x, y: x < y),
    )


def _root(dtype: str) -> Callable[..., Any]:
    """The square root, wrong by one unit in the last place at most.

    The correctly rounded instruction has a branch for rare numbers: at each branch the compiler
    loads the coefficients of the cell's polynomials again, and it does not mix the pairs of a
    thread, which then wait for each other. This one is Newton's method from the GPU's estimate of
    the inverse root, which is good to single precision. Below ``LEAST``, the square of an angle
    that no sum notices, it comes out too small, and 0 stays 0.
    """
    inverse_root, number, double = _inverse_root(), np.dtype(dtype).type, dtype == "float64"
    least, half, three_halves = number(LEAST), number(0.5), number(1.5)

    def root(x: Any) -> Any:
        y = number(inverse_root(np.float32(max(x, least))))
        if double:
            y *= three_halves - half * x * y * y
        value = x * y
        value += (x - value * value) * (half * y)
        return value

    return _device(root)


def _root_for_erf(dtype: str) -> Callable[..., Any]:
    """The square root for erf, which divides by it.

    In float64 the argument may be as small as 1e-305, where `_root` has no estimate: the correctly
    rounded instruction is used there. Where both sequences lack the step all features are 0, and so
    is the argument; the root is then taken of a small number instead, and what follows is finite.
    """
    number = np.dtype(dtype).type
    root = _root(dtype) if dtype == "float32" else _device(lambda x: math.sqrt(x))
    least = number(LEAST if dtype == "float32" else 1e-306)
    return _device(lambda x: root(max(x, least)))


def _inverse_root() -> Callable[[Any], Any]:
    """The GPU's estimate in single precision."""
    if simulated():
        return _simulated_inverse_root
    from numba.cuda import libdevice

    estimate: Callable[[Any], Any] = libdevice.rsqrtf
    return estimate


def _simulated_inverse_root(x: Any) -> Any:
    """The GPU's estimate is as wrong as this."""
    return np.float32(1 / math.sqrt(x)) * np.float32(1 + 2.0**-22)


def _each(count: int, body: Callable[..., None]) -> Callable[..., None]:
    """``body(0, ...)``, ``body(1, ...)``, one after the other, as a loop that is written out.

    What the loop indexes with its counter is then a register, not memory.
    """
    if count == 0:
        return _device(lambda *arguments: None)
    before, last = _each(count - 1, body), count - 1

    def run(*arguments: Any) -> None:
        before(*arguments)
        body(last, *arguments)

    return _device(run)


def _layers(variant: Variant, pairs: Pairs) -> Layers:
    """The device functions of the variant's activation."""
    ops, dtype = _operations(variant.dtype), variant.dtype
    if variant.activation != "erf":
        return _angle_layers(variant, ops, pairs)
    return erf_layers(
        dtype,
        ops._replace(sqrt=_root_for_erf(dtype)),
        _device,
        pairs,
        depth=variant.depth,
        first_trained=variant.first_trained,
        signed=variant.one_input,
        bias=bool(variant.bias),
    )


def _angle_layers(  # noqa: C901 - a closure of small functions, as compiled code needs them
    variant: Variant, ops: Operations, pairs: Pairs
) -> Layers:
    """The device functions of relu and linear."""
    number = np.dtype(variant.dtype).type
    cell = MAKERS[variant.activation](number, ops, _device)
    combine, combine_items, readout = cell.combine, cell.combine_items, cell.readout
    covariance, tangent, distance, gain = cell.covariance, cell.tangent, cell.distance, cell.gain
    same, unrelated = cell.same, cell.unrelated
    count, row, column, row_pitch, column_pitch = pairs
    depth, bias, first_trained = variant.depth, variant.bias, variant.first_trained
    deep, top, zero = 2 * count, 2 * (depth - 1) * count, number(0)

    @_device
    def add_input(p: Any, sums: Any, x: Any, y: Any) -> None:
        sums[p] += combine(x, y)

    @_device
    def add_item(p: Any, sums: Any, x: Any, y: Any, same: Any) -> None:
        sums[p] += combine_items(x, y, same)

    @_device
    def start(p: Any, state: Any, alike: Any) -> None:
        for layer in range(depth):
            h = layer * deep + p
            state[h] = same if alike else unrelated
            state[h + count] = zero

    @_device
    def first(
        p: Any, state: Any, sums: Any, rows: Any, i: Any, columns: Any, j: Any, between: Any
    ) -> None:
        a, b = rows[np.uint64(i + row(p))], columns[np.uint64(j + column(p))]
        share = gain * a * b
        value = sums[p] + share * state[p]
        if distance:
            value += combine(a, b)
        if first_trained == 0:
            state[p], state[p + count] = tangent(value, share * state[p + count])
        else:
            state[p] = covariance(value)

    @_device
    def upper(p: Any, layer: Any, state: Any, rows: Any, i: Any, columns: Any, j: Any) -> None:
        x, y, h = i + row(p), j + column(p), layer * deep + p
        g = h + count
        a, b = rows[np.uint64(x)], columns[np.uint64(y)]
        up, lift = rows[np.uint64(x + row_pitch)], columns[np.uint64(y + column_pitch)]
        share, raised = gain * a * b, gain * up * lift
        value = share * state[h]
        if bias:
            x, y = x + 2 * row_pitch, y + 2 * column_pitch
            value += combine(rows[np.uint64(x)], columns[np.uint64(y)])
        if distance:
            value += combine(a, b)
        value += raised * state[h - deep]
        if distance:
            value += combine(up, lift)
        if layer >= first_trained:
            carry = share * state[g]
            if layer > first_trained:
                carry += raised * state[g - deep]
            state[h], state[g] = tangent(value, carry)
        else:
            state[h] = covariance(value)

    @_device
    def read(p: Any, state: Any, x: Any, y: Any) -> Any:
        return x[0] * y[0] * readout(state[top + p], state[top + p + count])

    maps = add_input, add_item, start, first, upper, read
    return Layers(2, 1, 1, cell.unit, False, 0, 2 + bias, *maps)


def make_kernel(variant: Variant) -> Callable[..., None]:  # noqa: C901 - closures, as compiled code needs them
    """The kernel as a Python function, for ``cuda.jit`` to compile.

    The arguments of the kernel, in order:

    out : (rows, columns) values, from row ``top`` and column ``left`` of the sorted sequences
    add : whether values are added to ``out``
    four arrays of the rows, four of the columns : features (flat, ``size`` numbers a step), output
        (flat, the readout weights of each step), first and lengths (n,), as in
        `rntk_dist.kernel.packed.Side`
    size : numbers a step; the last are its readout weights if ``Variant.weighted``
    inputs : of the first layer
    chunk : steps that are staged at once; of a kernel by pieces, numbers of a step
    top, left : sorted number of the first row and column
    common : 0 no pair has a common start, 1 all have, 2 the pairs of equal number have
    symmetric : whether blocks below the diagonal are left out
    """
    _load_cuda()
    number = np.dtype(variant.dtype).type
    block, depth, items = variant.block, variant.depth, variant.items
    one_input, zero = variant.one_input, number(0)
    by_pieces, weighted = variant.pieces, variant.weighted
    last_step, is_grid = variant.last_step, variant.grid

    # Compile-time sizes. One more place than sequences, so that the threads that fill a stage with
    # consecutive features of one sequence do not meet in one memory bank.
    down, across, pairs = block.down, block.across, block.down * block.across
    threads_down, threads_across = block.threads_down, block.threads_across
    tall, wide = block.rows, block.columns
    row_pitch, column_pitch = tall + 1, wide + 1
    places = block.places(np.dtype(number).itemsize)
    row_places, column_places = places * row_pitch, places * column_pitch

    @_device
    def row_of(p: Any) -> Any:
        return p // across * threads_down

    @_device
    def column_of(p: Any) -> Any:
        return p % across * threads_across

    layers = _layers(variant, Pairs(pairs, row_of, column_of, row_pitch, column_pitch))
    add_input, add_item, start, read = (
        layers.add_input,
        layers.add_item,
        layers.start,
        layers.read,
    )
    unit, outputs, summed = layers.unit, layers.outputs, layers.summed * pairs
    signed, own, upper_size = layers.signed, layers.own, layers.upper_size
    states = layers.words * depth * pairs
    step_first, step_upper = _each(pairs, layers.first), _each(pairs, layers.upper)
    weights_of = make_loader(outputs, _device)

    @_device
    def unsigned(index: Any) -> Any:
        return np.uint64(index)  # an index that cannot be negative is not tested for it

    @_device
    def stage(
        target: Any,
        at: Any,
        pitch: Any,
        count: Any,
        side: Any,
        offset: Any,
        steps: Any,
        part: Any,
        n: Any,
    ) -> None:
        """Copy ``n`` numbers of every sequence, from number ``part`` of one of its steps on.

        Their first is number ``at`` of those that are staged. The step is ``offset`` of a grid;
        otherwise sequences are taken to end at step ``steps``. Numbers of steps that a sequence
        does not have are zero.
        """
        features, first, length, size = side
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        for sequence in range(ty, count, threads_down):
            t = offset if is_grid else length[sequence] - steps + offset
            start = (first[sequence] + t) * size + part
            low, high = -t * size - part, (length[sequence] - t) * size - part
            for e in range(tx, n, threads_across):
                value = zero
                if low <= e and e < high:
                    value = features[unsigned(start + e)]
                target[unsigned((at + e) * pitch + sequence)] = value

    @_device
    def add_inputs(sums: Any, rows: Any, i: Any, columns: Any, j: Any, n: Any) -> None:
        """Add ``n`` inputs to the sums of every pair."""
        x = cuda.local.array(down, number)
        for k in range(n):
            for d in range(down):
                x[d] = rows[unsigned(i + k * row_pitch + d * threads_down)]
            for c in range(across):
                y = columns[unsigned(j + k * column_pitch + c * threads_across)]
                for d in range(down):
                    add_input(d * across + c, sums, x[d], y)

    @_device
    def add_items(sums: Any, rows: Any, i: Any, columns: Any, j: Any) -> None:
        """Add the item, whose weight and id are staged at i and j, to the sums of every pair."""
        for d in range(down):
            at = i + d * threads_down
            x, item = rows[unsigned(at)], rows[unsigned(at + row_pitch)]
            for c in range(across):
                at = j + c * threads_across
                y, other = columns[unsigned(at)], columns[unsigned(at + column_pitch)]
                add_item(d * across + c, sums, x, y, item == other)

    @_device
    def clear(values: Any, n: Any) -> None:
        for p in range(n):
            values[p] = zero

    @_device
    def advance_upper(k: Any, state: Any, rows: Any, i: Any, columns: Any, j: Any) -> None:
        """One step of the layer ``k + 1``; the features of layer 1 are at i and j."""
        y, x = i + k * upper_size * row_pitch, j + k * upper_size * column_pitch
        step_upper(k + 1, state, rows, y, columns, x)

    advance_uppers = _each(depth - 1, advance_upper)

    @_device
    def advance(state: Any, rows: Any, i: Any, columns: Any, j: Any, inputs: Any) -> None:
        """One step of all layers, every feature of the step being staged at i and j."""
        sums = cuda.local.array(summed, number)
        n = 1 if one_input else inputs
        clear(sums, summed)
        if items:
            add_items(sums, rows, i + row_pitch, columns, j + column_pitch)
            y, x = i + 3 * row_pitch, j + 3 * column_pitch
            add_inputs(sums, rows, y, columns, x, n - 2)
        elif not signed:
            add_inputs(sums, rows, i + row_pitch, columns, j + column_pitch, n)
        step_first(state, sums, rows, i, columns, j, n)
        i += (1 + n + own) * row_pitch
        j += (1 + n + own) * column_pitch
        advance_uppers(state, rows, i, columns, j)

    @_device
    def add_readout(total: Any, state: Any, rows: Any, i: Any, columns: Any, j: Any) -> None:
        """Add the value of one step, its readout weights being staged at i and j."""
        for p in range(pairs):
            x = weights_of(rows, i + row_of(p), row_pitch)
            y = weights_of(columns, j + column_of(p), column_pitch)
            total[p] += read(p, state, x, y)

    @_device
    def start_all(where: Any, state: Any) -> None:
        """Start all pairs. ``where`` is ``common`` (see above) and the thread's row and column."""
        common, row, column = where
        for p in range(pairs):
            equal = row + row_of(p) == column + column_of(p)
            start(p, state, common == 1 or (common == 2 and equal))

    @_device
    def start_at(back: Any, where: Any, heights: Any, widths: Any, state: Any) -> None:
        """Start the pairs whose first common step is ``back`` steps before the end."""
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        common, row, column = where
        for d in range(down):
            height = heights[ty + d * threads_down]
            for c in range(across):
                width = widths[tx + c * threads_across]
                if min(height, width) - 1 == back:
                    equal = row + d * threads_down == column + c * threads_across
                    alike = height == width and (common == 1 or (common == 2 and equal))
                    start(d * across + c, state, alike)

    @_device
    def stage_at(
        at: Any, stages: Any, sides: Any, offsets: Any, steps: Any, part: Any, n: Any
    ) -> None:
        """Stage ``n`` numbers of all rows and columns; their first is staged number ``at``."""
        stage(stages[0], at, row_pitch, tall, sides[0], offsets[0], steps, part, n)
        stage(stages[1], at, column_pitch, wide, sides[1], offsets[1], steps, part, n)

    @_device
    def stage_both(stages: Any, sides: Any, offsets: Any, steps: Any, part: Any, n: Any) -> None:
        """Stage ``n`` numbers of all rows and columns, when nobody reads the last ones any more."""
        cuda.syncthreads()
        stage_at(0, stages, sides, offsets, steps, part, n)
        cuda.syncthreads()

    @_device
    def stage_around(
        stages: Any, sides: Any, offsets: Any, steps: Any, inputs: Any, kept: Any
    ) -> None:
        """Stage the features of the first layer, but of its ``inputs`` only the first ``kept``."""
        cuda.syncthreads()
        stage_at(0, stages, sides, offsets, steps, 0, 1 + kept)
        if own:
            stage_at(1 + kept, stages, sides, offsets, steps, 1 + inputs, own)
        cuda.syncthreads()

    @_device
    def advance_upper_staged(
        k: Any, state: Any, stages: Any, sides: Any, offsets: Any, steps: Any, at: Any
    ) -> None:
        """One step of the layer ``k + 1``, staged first; layer 1 begins at number ``at``."""
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        stage_both(stages, sides, offsets, steps, at + k * upper_size, upper_size)
        step_upper(k + 1, state, stages[0], i, stages[1], j)

    advance_uppers_staged = _each(depth - 1, advance_upper_staged)

    @_device
    def advance_by_pieces(
        state: Any, stages: Any, sides: Any, offsets: Any, steps: Any, inputs: Any
    ) -> None:
        """One step of all layers, its features staged a piece at a time."""
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        sums = cuda.local.array(summed, number)
        clear(sums, summed)
        kept = inputs if signed else 0
        k = kept
        if items:
            stage_both(stages, sides, offsets, steps, 1, 2)
            add_items(sums, stages[0], i, stages[1], j)
            k = 2
        while k < inputs:
            n = min(places, inputs - k)
            stage_both(stages, sides, offsets, steps, 1 + k, n)
            add_inputs(sums, stages[0], i, stages[1], j, n)
            k += n
        stage_around(stages, sides, offsets, steps, inputs, kept)
        step_first(state, sums, stages[0], i, stages[1], j, kept)
        advance_uppers_staged(state, stages, sides, offsets, steps, 1 + inputs + own)

    @_device
    def sweep(
        total: Any,
        state: Any,
        stages: Any,
        sides: Any,
        ahead: Any,
        behind: Any,
        steps: Any,
        settled: Any,
        sizes: Any,
        where: Any,
    ) -> None:
        """Walk one diagonal: of a grid from its first cell, otherwise to both sequences' ends.

        Pairs start on the way where fewer than ``settled`` steps are not left yet.
        """
        size, inputs, chunk = sizes
        weight = size - outputs
        done = 0
        while done < steps:
            offsets = (ahead + done, behind + done)
            count = 1 if by_pieces else min(chunk, steps - done)
            if not by_pieces:
                stage_both(stages, sides, offsets, steps, 0, count * size)
            i, j = cuda.threadIdx.y, cuda.threadIdx.x
            for s in range(count):
                back = steps - 1 - done - s
                if not is_grid and back >= settled - 1:
                    start_at(back, where, sides[0][2], sides[1][2], state)
                if by_pieces:
                    advance_by_pieces(state, stages, sides, offsets, steps, inputs)
                    if weighted:
                        stage_both(stages, sides, offsets, steps, weight, outputs)
                        add_readout(total, state, stages[0], i, stages[1], j)
                else:
                    advance(state, stages[0], i, stages[1], j, inputs)
                    if weighted:
                        y, x = i + weight * row_pitch, j + weight * column_pitch
                        add_readout(total, state, stages[0], y, stages[1], x)
                    i += size * row_pitch
                    j += size * column_pitch
            done += count

    @_device
    def sweep_grid(total: Any, state: Any, stages: Any, sides: Any, sizes: Any, where: Any) -> None:
        """Walk all diagonals; +lag and -lag in pairs: the sum is symmetric to the last bit."""
        plus, minus = cuda.local.array(pairs, number), cuda.local.array(pairs, number)
        height, width = sides[0][2][0], sides[1][2][0]
        start_all(where, state)
        sweep(total, state, stages, sides, 0, 0, min(height, width), 0, sizes, where)
        never = (0, where[1], where[2])  # off the main diagonal no pair starts at both first steps
        for lag in range(1, max(height, width)):
            clear(plus, pairs)
            clear(minus, pairs)
            start_all(never, state)
            sweep(plus, state, stages, sides, lag, 0, min(height - lag, width), 0, sizes, where)
            start_all(never, state)
            sweep(minus, state, stages, sides, 0, lag, min(height, width - lag), 0, sizes, where)
            for p in range(pairs):
                total[p] += plus[p] + minus[p]

    @_device
    def place(target: Any, source: Any, at: Any, count: Any, most: Any) -> None:
        """Copy ``count`` numbers from ``at`` on; the others up to ``most`` are zero."""
        me = cuda.threadIdx.y * threads_across + cuda.threadIdx.x
        for s in range(me, most, threads_down * threads_across):
            target[s] = source[at + s] if s < count else 0

    def kernel(
        out: Any,
        add: Any,
        row_features: Any,
        row_output: Any,
        row_first: Any,
        row_lengths: Any,
        column_features: Any,
        column_output: Any,
        column_first: Any,
        column_lengths: Any,
        size: Any,
        inputs: Any,
        chunk: Any,
        top: Any,
        left: Any,
        common: Any,
        symmetric: Any,
    ) -> None:
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        above, before = cuda.blockIdx.y * tall, cuda.blockIdx.x * wide
        if symmetric and left + before + wide <= top + above:
            return
        # A line for each: the simulator tells shared arrays apart by their lines.
        row_stage = cuda.shared.array(row_places, number)
        column_stage = cuda.shared.array(column_places, number)
        row_begins = cuda.shared.array(tall, np.int64)
        column_begins = cuda.shared.array(wide, np.int64)
        heights = cuda.shared.array(tall, np.int64)
        widths = cuda.shared.array(wide, np.int64)
        stages = (row_stage, column_stage)
        row_count = min(tall, out.shape[0] - above)
        column_count = min(wide, out.shape[1] - before)
        place(row_begins, row_first, top + above, row_count, tall)
        place(heights, row_lengths, top + above, row_count, tall)
        place(column_begins, column_first, left + before, column_count, wide)
        place(widths, column_lengths, left + before, column_count, wide)
        cuda.syncthreads()

        sides = (
            (row_features, row_begins, heights, size),
            (column_features, column_begins, widths, size),
        )
        where = (common, top + above + ty, left + before + tx)
        sizes = (size, inputs, chunk)
        state, total = cuda.local.array(states, number), cuda.local.array(pairs, number)
        clear(total, pairs)
        clear(state, states)
        if is_grid:
            sweep_grid(total, state, stages, sides, sizes, where)
        else:
            steps = min(heights[0], widths[0])
            settled = min(heights[row_count - 1], widths[column_count - 1])
            sweep(total, state, stages, sides, 0, 0, steps, settled, sizes, where)
        for d in range(down):
            for c in range(across):
                r, q = ty + d * threads_down, tx + c * threads_across
                if r < row_count and q < column_count:
                    p = d * across + c
                    value = total[p]
                    if last_step:
                        x = weights_of(row_output, (row_begins[r] + heights[r] - 1) * outputs, 1)
                        y = weights_of(
                            column_output, (column_begins[q] + widths[q] - 1) * outputs, 1
                        )
                        value += read(p, state, x, y)
                    value *= unit
                    at = (above + r, before + q)
                    out[at] = out[at] + value if add else value

    return kernel


@cache
def _compiled(variant: Variant) -> Any:
    """The kernel of a variant; Numba compiles it at its first launch."""
    kernel = make_kernel(variant)
    if simulated() or variant.depth > 1:
        return cuda.jit(kernel)
    return cuda.jit(kernel, max_registers=REGISTERS)


# -- devices ---------------------------------------------------------------------------------------


class Stream(Protocol):
    """Work of a device that is done in order, while the host goes on."""

    def launch(
        self, kernel: Any, grid: tuple[int, int], threads: tuple[int, int], *args: Any
    ) -> None:
        """Begin a kernel."""

    def copy(self, source: Array, target: Array) -> None:
        """Begin a copy from the device to the host."""

    def wait(self) -> None:
        """Return when all work of the stream is done."""


class Device(Protocol):
    """What computes tiles: a GPU through CuPy, or Numba's simulator through NumPy.

    Attributes
    ----------
    xp : namespace of the device's arrays
    out_of_memory : what an allocation raises that does not fit
    """

    xp: Any
    out_of_memory: type[Exception]

    def free_bytes(self) -> int:
        """Memory that an allocation could have."""

    def empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        """A flat array on the device."""

    def host_empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        """A flat array on the host, for copies from the device."""

    def stream(self) -> Stream:
        """A new stream."""

    def release(self) -> None:
        """Give back memory that is kept for later allocations."""

    def synchronize(self) -> None:
        """Return when all work of the device is done."""


class _SimulatedStream:
    """Everything is done at once."""

    def launch(
        self, kernel: Any, grid: tuple[int, int], threads: tuple[int, int], *args: Any
    ) -> None:
        kernel[grid, threads](*args)

    def copy(self, source: Array, target: Array) -> None:
        target[...] = source

    def wait(self) -> None:
        pass


class _SimulatedDevice:
    """Numba's CUDA simulator: NumPy arrays, Python threads."""

    xp: Any = np
    out_of_memory: type[Exception] = MemoryError

    def free_bytes(self) -> int:
        return 2 * STRIPE_BYTES

    def empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        return np.empty(size, dtype)

    def host_empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        return np.empty(size, dtype)

    def stream(self) -> Stream:
        return _SimulatedStream()

    def release(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _CupyStream:
    """A CUDA stream that does not wait for the default stream."""

    def __init__(self) -> None:
        import cupy

        self._stream = cupy.cuda.Stream(non_blocking=True)

    def launch(
        self, kernel: Any, grid: tuple[int, int], threads: tuple[int, int], *args: Any
    ) -> None:
        # sync=False: Numba would else wait, at every launch, for the stream that made the array.
        taken = [
            cuda.as_cuda_array(arg, sync=False) if hasattr(arg, "__cuda_array_interface__") else arg
            for arg in args
        ]
        kernel[grid, threads, cuda.external_stream(self._stream.ptr)](*taken)

    def copy(self, source: Array, target: Array) -> None:
        source.get(stream=self._stream, out=target, blocking=False)  # type: ignore[attr-defined]

    def wait(self) -> None:
        self._stream.synchronize()


class _CupyDevice:
    """CuPy's current device."""

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        self.out_of_memory: type[Exception] = cupy.cuda.memory.OutOfMemoryError

    def free_bytes(self) -> int:
        free: int = self.xp.cuda.Device().mem_info[0]
        kept: int = self.xp.get_default_memory_pool().free_bytes()
        return free + kept

    def empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        array: Array = self.xp.empty(size, dtype)
        return array

    def host_empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        import cupyx

        try:
            array: Array = cupyx.empty_pinned(size, dtype)
        except (self.xp.cuda.runtime.CUDARuntimeError, MemoryError):
            return np.empty(size, dtype)  # the host has no more to pin: copies then do not overlap
        return array

    def stream(self) -> Stream:
        return _CupyStream()

    def release(self) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()

    def synchronize(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()


def gpu_is_seen() -> bool:
    """Whether CuPy and numba-cuda are installed and CuPy sees a device; False in the simulator.

    Costs next to nothing, and loads nothing, where one of them is not installed.
    """
    if _missing_packages():
        return False
    try:
        import cupy
    except ImportError:  # CuPy without CUDA's libraries
        return False
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver, or no device
        return False
    return count > 0 and not simulated()


def _missing_packages() -> list[str]:
    return [name for name in ("cupy", "numba_cuda") if find_spec(name) is None]


def find_device() -> Device:
    """The GPU that CuPy sees, or Numba's simulator where that is switched on.

    Raises
    ------
    ImportError
        If CuPy or numba-cuda is not installed.
    RuntimeError
        If no GPU is seen.
    """
    if simulated():
        _load_cuda()
        return _SimulatedDevice()
    if missing := _missing_packages():
        raise ImportError(f"the GPU backend needs {' and '.join(missing)}: {INSTALL}")
    if not gpu_is_seen():
        raise RuntimeError("no GPU was seen: CuPy is installed, but finds no CUDA device or driver")
    _load_cuda()
    return _CupyDevice()


# -- tiles -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """One direction of a tile on the device, longest sequences first, ready to be launched.

    Attributes
    ----------
    kernel : compiled
    block : shape of its blocks of threads
    rows, columns : features, output, first and lengths, as the kernel takes them
    numbers : size, inputs and chunk
    common : which pairs have a common start, as the kernel takes it
    symmetric : whether only the blocks that meet the upper triangle are computed
    """

    kernel: Any
    block: Block
    rows: tuple[Array, Array, Array, Array]
    columns: tuple[Array, Array, Array, Array]
    numbers: tuple[int, int, int]
    common: int
    symmetric: bool

    def launch(self, stream: Stream, out: Array, top: int, left: int, *, add: bool) -> None:
        """Begin the values of the rows from ``top`` and columns from ``left`` on, in ``out``.

        Parameters
        ----------
        out : (rows, columns) array on the device
        add : add to what is there
        """
        block = self.block
        grid = (-(-out.shape[1] // block.columns), -(-out.shape[0] // block.rows))
        threads = (block.threads_across, block.threads_down)
        numbers = (*self.numbers, top, left, self.common, self.symmetric)
        stream.launch(self.kernel, grid, threads, out, add, *self.rows, *self.columns, *numbers)


def make_sweeps(
    recursion: Recursion, rows: Slab, columns: Slab | None, xp: Any, block: Block | None = None
) -> list[Sweep]:
    """The sweeps whose sum is a tile, one a direction.

    Parameters
    ----------
    rows, columns : slabs whose packed features are arrays of ``xp``; without columns the tile is
        symmetric
    block : by default what suits the network's depth
    """
    _load_cuda()
    other = rows if columns is None else columns
    sweeps = []
    for row, column in zip(rows.directions, other.directions, strict=True):
        shape, dtype = make_shape(recursion, row), np.dtype(row.output.dtype)
        chosen = block or block_for(shape, dtype.itemsize)
        variant = make_variant(recursion, dtype, shape, chosen)
        row_side = _device_side(row, rows, variant, xp)
        column_side = row_side if columns is None else _device_side(column, other, variant, xp)
        size = shape.features + shape.outputs * int(variant.weighted)
        sweeps.append(
            Sweep(
                kernel=_compiled(variant),
                block=chosen,
                rows=row_side,
                columns=column_side,
                numbers=(size, shape.inputs, chosen.places(dtype.itemsize) // size),
                common=1 if shape.shared_start else 2 if columns is None else 0,
                symmetric=columns is None,
            )
        )
    return sweeps


def _device_side(
    direction: Direction, slab: Slab, variant: Variant, xp: Any
) -> tuple[Array, Array, Array, Array]:
    """One direction of a slab as the kernel takes it: `packed.make_side` in arrays of ``xp``."""
    features = step_features(direction, weighted=variant.weighted, xp=xp)
    output = xp.ascontiguousarray(direction.output.T).reshape(-1)
    order = slab.longest_first()
    first, lengths = xp.asarray(slab.first[order]), xp.asarray(slab.lengths[order])
    return features, output, first, lengths


def device_tile_values(
    recursion: Recursion,
    rows: Slab,
    columns: Slab | None,
    *,
    device: Device | None = None,
    block: Block | None = None,
) -> Array:
    """Kernel values of a tile, from arrays on the device to an array on the device.

    Parameters
    ----------
    rows, columns : slabs whose packed features are CuPy arrays, ``slab.transfer(cupy.asarray)``;
        with ``columns=None`` the tile is symmetric and one triangle is computed
    device : by default the GPU that CuPy sees
    block : by default what suits the network's depth

    Returns
    -------
    (rows, columns) CuPy array of the slabs' dtype, in units of the product of the two sequences'
    scales.

    Raises
    ------
    ImportError, RuntimeError
        Without CuPy, without numba-cuda, or without a GPU.
    """
    device = device or find_device()
    other = rows if columns is None else columns
    sweeps = make_sweeps(recursion, rows, columns, device.xp, block)
    shape = len(rows), len(other)
    values = device.empty(shape[0] * shape[1], np.dtype(sweeps[0].rows[1].dtype)).reshape(shape)
    device.synchronize()
    stream = device.stream()
    for number, sweep in enumerate(sweeps):
        sweep.launch(stream, values, 0, 0, add=number > 0)
    stream.wait()
    xp = device.xp
    if columns is None:
        values = xp.triu(values)
        values += xp.triu(values, 1).T
    given: Array = xp.empty_like(values)
    row_order, column_order = xp.asarray(rows.longest_first()), xp.asarray(other.longest_first())
    given[row_order[:, None], column_order] = values
    return given


def gpu_tile_values(
    recursion: Recursion,
    rows: Slab,
    columns: Slab | None,
    *,
    device: Device | None = None,
    block: Block | None = None,
) -> Array:
    """Kernel values of a tile in units of the product of the two sequences' scales.

    The same values as `rntk_dist.kernel.arrays.tile_values`, to rounding. The tile is computed a
    stripe of rows at a time; while one is computed the one before is copied to the host.

    Parameters
    ----------
    rows, columns : the slabs, on the host; with ``columns=None`` the tile is symmetric and one
        triangle is computed
    device : by default the GPU that CuPy sees, or Numba's simulator where that is switched on
    block : by default what suits the network's depth

    Returns
    -------
    (rows, columns) array of the slabs' dtype, on the host.

    Raises
    ------
    ImportError, RuntimeError
        Without CuPy, without numba-cuda, or without a GPU.
    MemoryError
        If the features, or a single row of blocks, do not fit the free memory of the device.
    """
    device = device or find_device()
    other = rows if columns is None else columns
    sweeps = _put(recursion, rows, columns, device, block)
    out = np.empty((len(rows), len(other)), rows.directions[0].output.dtype)
    _fill(out, sweeps, device)
    row_order, column_order = rows.longest_first(), other.longest_first()
    return in_given_order(out, row_order, column_order, symmetric=columns is None)


def _put(
    recursion: Recursion, rows: Slab, columns: Slab | None, device: Device, block: Block | None
) -> list[Sweep]:
    """The sweeps of slabs that are on the host."""
    put = device.xp.asarray
    try:
        row = rows.transfer(put)
        column = None if columns is None else columns.transfer(put)
        sweeps = make_sweeps(recursion, row, column, device.xp, block)
        device.synchronize()
    except device.out_of_memory as error:
        raise MemoryError(
            f"the features of {len(rows)} x {len(rows if columns is None else columns)} sequences "
            f"do not fit on the GPU, where {device.free_bytes():,} bytes are free: use smaller "
            "tiles"
        ) from error
    return sweeps


@dataclass(frozen=True)
class Slot:
    """A stripe's place: on the device, on the host, and the stream that fills both."""

    stream: Stream
    values: Array
    host: Array


def _fill(out: Array, sweeps: list[Sweep], device: Device) -> None:
    """The values of sorted sequences, in ``out``; of a symmetric tile, the upper triangle."""
    symmetric = sweeps[0].symmetric
    slots, height = _slots(out, sweeps[0].block.rows, device)
    pending: list[tuple[Slot, Array]] = []
    for number, top in enumerate(range(0, len(out), height)):
        slot = slots[number % len(slots)]
        if len(pending) == len(slots):
            _collect(*pending.pop(0))
        left = top if symmetric else 0
        target = out[top : top + height, left:]
        values = slot.values[: target.size].reshape(target.shape)
        for direction, sweep in enumerate(sweeps):
            sweep.launch(slot.stream, values, top, left, add=direction > 0)
        slot.stream.copy(values, slot.host[: target.size].reshape(target.shape))
        pending.append((slot, target))
    for slot, target in pending:
        _collect(slot, target)


def _collect(slot: Slot, target: Array) -> None:
    """Take a stripe over from its slot, which is free then."""
    slot.stream.wait()
    target[...] = slot.host[: target.size].reshape(target.shape)


def _slots(out: Array, least: int, device: Device) -> tuple[list[Slot], int]:
    """Two slots, or one if it holds all, and how many rows each takes.

    A slot that does not fit, although the free memory promised it, is made half as tall.
    """
    room = min(STRIPE_BYTES, int(device.free_bytes() * SPARE) // 2)
    wanted = min(room // (out.shape[1] * out.itemsize), len(out), MOST_BLOCKS * least)
    height = max(-(-wanted // least), 1) * least
    while True:
        try:
            return _make_slots(out, height, device), height
        except device.out_of_memory as error:
            device.release()
            if height == least:
                raise MemoryError(
                    f"{least} rows of {out.shape[1]} {out.dtype} values, twice, do not fit on the "
                    f"GPU, where {device.free_bytes():,} bytes are free: use smaller tiles"
                ) from error
            height = height // 2 // least * least or least


def _make_slots(out: Array, height: int, device: Device) -> list[Slot]:
    count, size = (2, height) if height < len(out) else (1, len(out))
    size *= out.shape[1]
    return [
        Slot(device.stream(), device.empty(size, out.dtype), device.host_empty(size, out.dtype))
        for _ in range(count)
    ]
