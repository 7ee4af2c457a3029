"""The innermost compiled loops of erf: one step of one row's layers, for all lanes of a block.

`rntk_dist.kernel.fused_cpu` walks rows, lanes and steps, and says how arrays are laid out. The
state of a layer is five rows of lanes: s, r, g of `ErfCell`, and both sums over the inputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from rntk_dist.kernel.cell import Operations
from rntk_dist.kernel.erf_cell import make_erf
from rntk_dist.kernel.erf_features import own_count
from rntk_dist.kernel.loops_angle import Compile, Layers


def erf_layers(  # noqa: C901 - a closure of small functions, as compiled code needs them
    dtype: str, ops: Operations, jit: Compile, *, inline: int, width: int, items: bool, bias: bool
) -> Layers:
    """The loops over lanes; the arguments are those of `fused_cpu._loops`."""
    number, single = np.dtype(dtype).type, inline == 1 and not items
    cell = make_erf(number, ops, jit, bias=bias, single=single)
    combine, mirror, first, upper = cell.combine, cell.mirror, cell.first, cell.upper
    combine_items, mirror_items = cell.combine_items, cell.mirror_items
    settle, tangent, carry, lift = cell.settle, cell.tangent, cell.carry, cell.lift
    zero, half, whole = number(0), number(0.5), number(1)
    wide, deep, one, two = np.uint64(width), np.uint64(5 * width), np.uint64(1), np.uint64(2)
    in_first, in_upper = own_count(bias, False, single), own_count(bias, True, single)
    own_of_first, own_of_upper = _loader(in_first, jit), _loader(in_upper, jit)
    first_size, upper_size = np.uint64(1 + in_first), np.uint64(2 + in_upper)

    @jit
    def inputs(state: Any, g: Any, row: Any, x: Any, lanes: Any, y: Any) -> Any:
        """What `ErfCell.first` takes of the inputs: a row's at x, a lane's at y."""
        if single:
            return row[x], lanes[y]
        if items:
            a, b, same = row[x], lanes[y], row[x + one] == lanes[y + wide]
            return combine_items(a, b, same), mirror_items(a, b, same)
        if inline == 2:
            a, b, c, d = row[x], lanes[y], row[x + one], lanes[y + wide]
            return combine(a, b) + combine(c, d), mirror(a, b) + mirror(c, d)
        return state[g + wide], state[g + wide + wide]

    @jit
    def first_layer(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, skip: Any, low: Any, n: Any
    ) -> None:
        a, own_a = row[x], own_of_first(row, x + one + skip, one)
        begin = y + (one + skip) * wide
        for j in range(low, n):
            s = at + j
            r = s + wide
            g = r + wide
            b, own_b = lanes[y + j], own_of_first(lanes, begin + j, wide)
            taken = inputs(state, g, row, x + one, lanes, y + wide + j)
            W, Z, k = first(taken, a, b, state[s], state[r], own_a, own_b)
            past = carry(state[g], own_a, own_b)
            state[s], state[r], reciprocal = settle(W, Z, k, own_a, own_b)
            state[g] = tangent(k, past, reciprocal, own_a, own_b)

    @jit
    def first_frozen(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, skip: Any, low: Any, n: Any
    ) -> None:
        a, own_a = row[x], own_of_first(row, x + one + skip, one)
        begin = y + (one + skip) * wide
        for j in range(low, n):
            s = at + j
            r = s + wide
            b, own_b = lanes[y + j], own_of_first(lanes, begin + j, wide)
            taken = inputs(state, r + wide, row, x + one, lanes, y + wide + j)
            W, Z, k = first(taken, a, b, state[s], state[r], own_a, own_b)
            state[s], state[r], _ = settle(W, Z, k, own_a, own_b)

    @jit
    def upper_layer(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        a, up, own_a = row[x], row[x + one], own_of_upper(row, x + two, one)
        for j in range(low, n):
            s = at + j
            r = s + wide
            g = r + wide
            b, own_b = lanes[y + j], own_of_upper(lanes, y + two * wide + j, wide)
            below, parts = (state[s - deep], state[r - deep]), (up, lanes[y + wide + j])
            W, Z, k = upper(below, parts, a, b, state[s], state[r], own_a, own_b)
            # Of a frozen layer below the tangent part is 0.
            past = carry(state[g], own_a, own_b) + lift(state[g - deep], own_a, own_b)
            state[s], state[r], reciprocal = settle(W, Z, k, own_a, own_b)
            state[g] = tangent(k, past, reciprocal, own_a, own_b)

    @jit
    def upper_frozen(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        a, up, own_a = row[x], row[x + one], own_of_upper(row, x + two, one)
        for j in range(low, n):
            s = at + j
            r = s + wide
            b, own_b = lanes[y + j], own_of_upper(lanes, y + two * wide + j, wide)
            below, parts = (state[s - deep], state[r - deep]), (up, lanes[y + wide + j])
            W, Z, k = upper(below, parts, a, b, state[s], state[r], own_a, own_b)
            state[s], state[r], _ = settle(W, Z, k, own_a, own_b)

    @jit
    def advance(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, shape: Any, low: Any, n: Any
    ) -> None:
        skip = np.uint64(shape.inputs)
        if shape.first_trained == 0:
            first_layer(state, at, row, x, lanes, y, skip, low, n)
        else:
            first_frozen(state, at, row, x, lanes, y, skip, low, n)
        x += first_size + skip
        y += (first_size + skip) * wide
        for k in range(1, shape.depth):
            at += deep
            if k >= shape.first_trained:
                upper_layer(state, at, row, x, lanes, y, low, n)
            else:
                upper_frozen(state, at, row, x, lanes, y, low, n)
            x += upper_size
            y += upper_size * wide

    @jit
    def add_readout(
        total: Any,
        out: Any,
        state: Any,
        at: Any,
        output: Any,
        t: Any,
        weights: Any,
        y: Any,
        low: Any,
        n: Any,
    ) -> None:
        value, slope = output[t], output[t + one]
        r, g = at + wide, at + wide + wide
        for j in range(low, n):
            total[out + j] += (value * weights[y + j]) * state[r + j] + (
                slope * weights[y + wide + j]
            ) * state[g + j]

    @jit
    def begin(state: Any, at: Any, alike: Any, j: Any) -> None:
        state[at + j] = zero if alike else half
        state[at + wide + j] = whole if alike else zero
        state[at + wide + wide + j] = zero

    return Layers(5, 2, number(1), (combine, mirror), advance, begin, add_readout)


def _loader(count: int, jit: Compile) -> Callable[[Any, Any, Any], Any]:
    """A function that reads so many features, 6 to 8, which lie ``step`` apart, as a tuple."""

    @jit
    def six(array: Any, at: Any, step: Any) -> Any:
        second, third = at + step, at + step + step
        fourth = third + step
        fifth = fourth + step
        sixth = fifth + step
        return array[at], array[second], array[third], array[fourth], array[fifth], array[sixth]

    @jit
    def seven(array: Any, at: Any, step: Any) -> Any:
        return (*six(array, at, step), array[at + np.uint64(6) * step])

    @jit
    def eight(array: Any, at: Any, step: Any) -> Any:
        return (*seven(array, at, step), array[at + np.uint64(7) * step])

    return {6: six, 7: seven, 8: eight}[count]
