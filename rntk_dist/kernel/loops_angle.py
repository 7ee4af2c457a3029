"""The innermost compiled loops of relu and linear: one step of one row's layers, for all lanes.

`rntk_dist.kernel.fused_cpu` walks rows, lanes and steps, and says how arrays are laid out. The
state of a layer is three rows of lanes: h, g and the angle made of its inputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rntk_dist.kernel.cell import MAKERS, Operations

type Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What compiles a function."""


class Layers(NamedTuple):
    """Compiled loops over lanes, of one activation.

    Attributes
    ----------
    rows : rows of lanes that the state of a layer takes; the last ones are the sums of the inputs
    outputs : weights of a step in the readout
    unit : readouts are in units of this
    sums : of each of these sums (x, y) -> contribution of one feature
    advance : one step of all layers, of the lanes low..n: features of the row at x, of lanes at y;
        the row's state begins at ``at``, and its inputs are summed already, unless taken inline
    begin : (state, at, alike, j) puts a layer of lane j at its start
    add_readout : (total, out, state, at, output, t, weights, y, low, n) adds the value of the last
        layer, whose state is at ``at``, with the row's weights at t and the lanes' at y
    """

    rows: int
    outputs: int
    unit: Any
    sums: tuple[Callable[..., Any], ...]
    advance: Callable[..., None]
    begin: Callable[..., None]
    add_readout: Callable[..., None]


def angle_layers(  # noqa: C901 - a closure of small functions, as compiled code needs them
    activation: str,
    dtype: str,
    ops: Operations,
    jit: Compile,
    *,
    inline: int,
    width: int,
    items: bool,
) -> Layers:
    """The loops over lanes; the arguments are those of `fused_cpu._loops`."""
    number = np.dtype(dtype).type
    cell = MAKERS[activation](number, ops, jit)
    combine, combine_items, readout = cell.combine, cell.combine_items, cell.readout
    covariance, tangent = cell.covariance, cell.tangent
    distance, gain = cell.distance, cell.gain
    same, unrelated, zero = cell.same, cell.unrelated, number(0)
    # Places of the bias and of the first input among the features of a step.
    at_first, at_item, at_bias = np.uint64(1), np.uint64(2), np.uint64(inline + items)
    wide, deep = np.uint64(width), np.uint64(3 * width)

    @jit
    def unsigned(n: Any) -> Any:
        return np.uint64(n)

    @jit
    def recur(h: Any, a: Any, b: Any, angle: Any) -> Any:
        """The angle with one more state in it: from the step before, or from the layer below."""
        angle += gain * a * b * h
        if distance:
            angle += combine(a, b)
        return angle

    @jit
    def add_input(state: Any, angle: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any) -> None:
        for j in range(low, n):
            state[angle + j] += combine(x, lanes[y + j])

    # Each loop exists with and without the tangent part: nothing is decided inside it.

    @jit
    def own_inputs(row: Any, x: Any) -> Any:
        """The inputs of a row that are taken inline: the first, its item, the bias."""
        if items:
            return row[x + at_first], row[x + at_item], row[x + at_bias]
        return row[x + at_first], zero, row[x + at_bias]

    @jit
    def first_input(x: Any, item: Any, lanes: Any, y: Any) -> Any:
        """What the first input brings to the angle of one lane."""
        if items:
            return combine_items(x, lanes[y + wide], item == lanes[y + at_item * wide])
        return combine(x, lanes[y + wide])

    @jit
    def first_inputs(state: Any, angle: Any, row: Any, lanes: Any, y: Any) -> Any:
        """What the inputs bring to the angle of one lane, whose recurrent feature is at y."""
        x, item, bias = row
        if inline == 1:
            return first_input(x, item, lanes, y)
        if inline == 2:
            return first_input(x, item, lanes, y) + combine(bias, lanes[y + at_bias * wide])
        return state[angle]

    @jit
    def first_tangent(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        a, first = row[x], own_inputs(row, x)
        for j in range(low, n):
            b, h = lanes[y + j], at + j
            g = h + wide
            inputs = first_inputs(state, g + wide, first, lanes, y + j)
            value = recur(state[h], a, b, inputs)
            state[h], state[g] = tangent(value, gain * a * b * state[g])

    @jit
    def first_covariance(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        a, first = row[x], own_inputs(row, x)
        for j in range(low, n):
            b, h = lanes[y + j], at + j
            inputs = first_inputs(state, h + wide + wide, first, lanes, y + j)
            state[h] = covariance(recur(state[h], a, b, inputs))

    @jit
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

    @jit
    def upper_covariance(
        state: Any, at: Any, a: Any, up: Any, lanes: Any, y: Any, low: Any, n: Any
    ) -> None:
        for j in range(low, n):
            h = at + j
            value = recur(state[h - deep], up, lanes[y + wide + j], state[h + wide + wide])
            state[h] = covariance(recur(state[h], a, lanes[y + j], value))

    @jit
    def advance(
        state: Any, at: Any, row: Any, x: Any, lanes: Any, y: Any, shape: Any, low: Any, n: Any
    ) -> None:
        """One step of all layers, of the lanes low..n: features of the row at x, of lanes at y.

        The row's state begins at ``at``; its inputs are summed already, unless taken inline.
        """
        inputs, bias, one = unsigned(shape.inputs), unsigned(shape.bias), unsigned(1)
        if shape.first_trained == 0:
            first_tangent(state, at, row, x, lanes, y, low, n)
        else:
            first_covariance(state, at, row, x, lanes, y, low, n)
        x += one + inputs
        y += (one + inputs) * wide
        for k in range(1, shape.depth):
            at += deep
            angle = at + wide + wide
            for j in range(low, n):
                state[angle + j] = zero
            if shape.bias:
                add_input(state, angle, row[x + one + one], lanes, y + wide + wide, low, n)
            if k >= shape.first_trained:
                upper_tangent(state, at, row[x], row[x + one], lanes, y, low, n)
            else:
                upper_covariance(state, at, row[x], row[x + one], lanes, y, low, n)
            x += one + one + bias
            y += (one + one + bias) * wide

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
        weight, g = output[t], at + wide
        for j in range(low, n):
            total[out + j] += weight * weights[y + j] * readout(state[at + j], state[g + j])

    @jit
    def begin(state: Any, at: Any, alike: Any, j: Any) -> None:
        state[at + j] = same if alike else unrelated
        state[at + wide + j] = zero

    return Layers(3, 1, cell.unit, (combine,), advance, begin, add_readout)
