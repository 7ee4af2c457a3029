"""The device functions of erf inside a CUDA kernel: one step of the layers of one pair.

`rntk_dist.kernel.fused_gpu` walks steps, stages features, and holds relu's and linear's. Nothing
here knows Numba: what compiles a function is an argument.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rntk_dist.kernel.cell import Operations
from rntk_dist.kernel.erf_cell import make_erf
from rntk_dist.kernel.erf_features import own_count

type Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What compiles a function."""


class Pairs(NamedTuple):
    """Where what belongs to the pairs of a thread lies: in its state, and in the staged features.

    Attributes
    ----------
    n : pairs of a thread; each number of a layer's state is kept for so many pairs, side by side
    row, column : p -> how far pair p is from the thread's first row, or its first column
    row_pitch, column_pitch : how far apart two features of one row are, or of one column
    """

    n: int
    row: Callable[[Any], Any]
    column: Callable[[Any], Any]
    row_pitch: int
    column_pitch: int


class Layers(NamedTuple):
    """The device functions of one activation.

    They take p, a pair of the thread, the thread's ``state``, and ``sums``, what its inputs bring
    to the first layer. The features of the layer are staged in ``rows`` from i on, and in
    ``columns`` from j on.

    Attributes
    ----------
    words : numbers of a pair's state a layer
    summed : numbers of a pair in ``sums``
    outputs : weights of a step in the readout
    unit : readouts are in units of this
    signed : whether ``first`` reads the one input of the first layer itself; else inputs are summed
    own : features of the first layer that follow its inputs
    upper_size : features of every other layer
    add_input : (p, sums, x, y) adds an input of the row and of the column
    add_item : (p, sums, x, y, same) adds that of two items, which are the same or not
    start : (p, state, alike) puts a pair at its start in all layers
    first : (p, state, sums, rows, i, columns, j, between) takes a step of the first layer;
        ``between`` counts the inputs that are staged before its own features
    upper : (p, layer, state, rows, i, columns, j) takes a step of another layer
    read : (p, state, x, y) -> the last layer's value; x and y are the weights of row and column
    """

    words: int
    summed: int
    outputs: int
    unit: Any
    signed: bool
    own: int
    upper_size: int
    add_input: Callable[..., None]
    add_item: Callable[..., None]
    start: Callable[..., None]
    first: Callable[..., None]
    upper: Callable[..., None]
    read: Callable[..., Any]


def erf_layers(  # noqa: C901 - a closure of small functions, as compiled code needs them
    dtype: str,
    ops: Operations,
    device: Compile,
    pairs: Pairs,
    *,
    depth: int,
    first_trained: int,
    signed: bool,
    bias: bool,
) -> Layers:
    """The device functions of erf.

    Parameters
    ----------
    first_trained : layers below it have no tangent part
    signed : whether the inputs have one feature, and are numbers with a sign
    bias : whether there is one
    """
    number = np.dtype(dtype).type
    cell = make_erf(number, ops, device, bias=bias, single=signed)
    combine, mirror, first_of, upper_of = cell.combine, cell.mirror, cell.first, cell.upper
    combine_items, mirror_items, settle = cell.combine_items, cell.mirror_items, cell.settle
    tangent, carry, lift = cell.tangent, cell.carry, cell.lift
    zero, half, one = number(0), number(0.5), number(1)
    count, row, column, row_pitch, column_pitch = pairs
    in_first, in_upper = own_count(bias, False, signed), own_count(bias, True, signed)
    own_of_first, own_of_upper = make_loader(in_first, device), make_loader(in_upper, device)
    deep, top = 3 * count, 3 * (depth - 1) * count

    @device
    def add_input(p: Any, sums: Any, x: Any, y: Any) -> None:
        sums[p] += combine(x, y)
        sums[p + count] += mirror(x, y)

    @device
    def add_item(p: Any, sums: Any, x: Any, y: Any, same: Any) -> None:
        sums[p] += combine_items(x, y, same)
        sums[p + count] += mirror_items(x, y, same)

    @device
    def start(p: Any, state: Any, alike: Any) -> None:
        for layer in range(depth):
            s = layer * deep + p
            state[s] = zero if alike else half
            state[s + count] = one if alike else zero
            state[s + 2 * count] = zero

    @device
    def first(
        p: Any, state: Any, sums: Any, rows: Any, i: Any, columns: Any, j: Any, between: Any
    ) -> None:
        x, y, r, g = i + row(p), j + column(p), p + count, p + 2 * count
        own_a = own_of_first(rows, x + (1 + between) * row_pitch, row_pitch)
        own_b = own_of_first(columns, y + (1 + between) * column_pitch, column_pitch)
        a, b = rows[np.uint64(x)], columns[np.uint64(y)]
        inputs = (sums[p], sums[p + count])
        if signed:
            inputs = (rows[np.uint64(x + row_pitch)], columns[np.uint64(y + column_pitch)])
        W, Z, k = first_of(inputs, a, b, state[p], state[r], own_a, own_b)
        state[p], state[r], reciprocal = settle(W, Z, k, own_a, own_b)
        if first_trained == 0:
            state[g] = tangent(k, carry(state[g], own_a, own_b), reciprocal, own_a, own_b)

    @device
    def upper(p: Any, layer: Any, state: Any, rows: Any, i: Any, columns: Any, j: Any) -> None:
        x, y, s = i + row(p), j + column(p), layer * deep + p
        r, g = s + count, s + 2 * count
        own_a = own_of_upper(rows, x + 2 * row_pitch, row_pitch)
        own_b = own_of_upper(columns, y + 2 * column_pitch, column_pitch)
        a, b = rows[np.uint64(x)], columns[np.uint64(y)]
        parts = (rows[np.uint64(x + row_pitch)], columns[np.uint64(y + column_pitch)])
        below = (state[s - deep], state[r - deep])
        W, Z, k = upper_of(below, parts, a, b, state[s], state[r], own_a, own_b)
        state[s], state[r], reciprocal = settle(W, Z, k, own_a, own_b)
        if layer >= first_trained:
            past = carry(state[g], own_a, own_b)
            if layer > first_trained:
                past += lift(state[g - deep], own_a, own_b)
            state[g] = tangent(k, past, reciprocal, own_a, own_b)

    @device
    def read(p: Any, state: Any, x: Any, y: Any) -> Any:
        r = top + count + p
        return (x[0] * y[0]) * state[r] + (x[1] * y[1]) * state[r + count]

    maps = add_input, add_item, start, first, upper, read
    return Layers(3, 2, 2, one, signed, in_first, 2 + in_upper, *maps)


def make_loader(count: int, device: Compile) -> Callable[[Any, Any, Any], Any]:
    """A function that reads 1, 2, or 6 to 8 numbers, which lie ``step`` apart, as a tuple."""

    @device
    def number(array: Any, at: Any, step: Any, k: Any) -> Any:
        return array[np.uint64(at + k * step)]  # not negative, so nothing tests for it

    @device
    def one(array: Any, at: Any, step: Any) -> Any:
        return (number(array, at, step, 0),)

    @device
    def two(array: Any, at: Any, step: Any) -> Any:
        return number(array, at, step, 0), number(array, at, step, 1)

    @device
    def six(array: Any, at: Any, step: Any) -> Any:
        first, third, fifth = at, at + 2 * step, at + 4 * step
        return (*two(array, first, step), *two(array, third, step), *two(array, fifth, step))

    @device
    def seven(array: Any, at: Any, step: Any) -> Any:
        return (*six(array, at, step), number(array, at, step, 6))

    @device
    def eight(array: Any, at: Any, step: Any) -> Any:
        return (*six(array, at, step), *two(array, at + 6 * step, step))

    return {1: one, 2: two, 6: six, 7: seven, 8: eight}[count]
