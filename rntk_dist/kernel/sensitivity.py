"""Gradients of a sum of kernel values with respect to the one sequence that all compare.

A kernel machine decides by ``sum_j weights[j] k(x, y_j)``; of one pair the sum is the kernel. The
forward sweep is the recursion of `rntk_dist.kernel.cell`, here with all needed diagonals of the
(t, t') grids of x with each y side by side; it is kept, and walked back from the readout to the
features, and from the features through the variances to the inputs. Names ending in ``_bar`` are
derivatives of the sum with respect to the quantity before the underscore.

relu's tangent kernel has a kink where a pair's angle is exactly 0 or pi; the derivative of the
angle is taken as 0 there, the mean of the two sides.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.arrays import Recursion, cell_for
from rntk_dist.kernel.cell import Cell
from rntk_dist.kernel.variances import (
    NORMS,
    READOUT_POWER,
    Direction,
    Float64,
    make_direction,
)
from rntk_dist.sequences import Sequences

if TYPE_CHECKING:
    from rntk_dist.kernel.rntk import RNTK, Kind


def gradient(
    kernel: "RNTK", x: Sequences, y: Sequences, kind: "Kind", weights: Float64 | None = None
) -> Float64:
    """``d / dx of sum_j weights[j] k(x, y_j)``, shape (T, m).

    Parameters
    ----------
    x : one sequence of T steps and m features
    y : n sequences, other samples than x even where values agree
    weights : (n,) or None
        1 each by default. Those of a kernel machine's training samples give the gradient of what
        it decides by.

    Raises
    ------
    OverflowError
        If a value or a gradient exceeds float64.
    """
    for side in (x, y):
        side.require_numbers("a gradient")
    given = np.ones(len(y)) if weights is None else weights
    if not kernel.normalize:
        return _value_and_gradient(kernel, x, y, given, kind, same=False)[1]
    self_y = np.sqrt(replace(kernel, normalize=False).diag(y, kind=kind))
    relative = np.divide(given, self_y, out=np.zeros_like(self_y), where=self_y > 0)
    value, x_bar = _value_and_gradient(kernel, x, y, relative, kind, same=False)
    self_x, self_x_bar = _value_and_gradient(kernel, x, x, np.ones(1), kind, same=True)
    if self_x == 0:
        return np.zeros_like(x_bar)
    # x enters k(x, x) on both sides: its derivative is twice that of one side.
    normalized: Float64 = (x_bar - value / self_x * self_x_bar) / np.sqrt(self_x)
    return normalized


def _value_and_gradient(
    kernel: "RNTK", x: Sequences, y: Sequences, weights: Float64, kind: "Kind", *, same: bool
) -> tuple[float, Float64]:
    """The sum, and its derivative with respect to x on the left side; unnormalised."""
    value, x_bar = _one_network(kernel, x, y, weights, kind, same)
    if kernel.bidirectional:
        backward, reversed_bar = _one_network(
            kernel, x.reversed(), y.reversed(), weights, kind, same
        )
        value, x_bar = value + backward, x_bar + reversed_bar[::-1]
    if not (np.isfinite(value) and np.isfinite(x_bar).all()):
        raise OverflowError(
            f"the kernel's gradient exceeds float64 (lengths {x.lengths[0]} and "
            f"{y.lengths.max()}): normalise the inputs, or use a smaller sigma_w"
        )
    return value, x_bar


def _one_network(
    kernel: "RNTK", x: Sequences, y: Sequences, weights: Float64, kind: "Kind", same: bool
) -> tuple[float, Float64]:
    row, variances = make_direction(kernel, x)
    column, _ = make_direction(kernel, y)
    recursion = kernel.recursion(kind)
    diagonals = _Diagonals.needed(kernel.readout, len(x.values), y, weights)
    grid = _Grid(recursion, row, column, diagonals, same_start=same or recursion.shared_start)
    with np.errstate(over="ignore", invalid="ignore"):  # refused by the caller
        grid.forward()
        value, bars = grid.backward(diagonals.weights)
        return value, _through_variances(kernel, x.values, row, variances, bars)


@dataclass(frozen=True)
class _Diagonals:
    """Diagonals of the (t, t') grids of x with each y, one grid's after another's.

    Attributes
    ----------
    lags : (d,) t - t' on the diagonal
    first, lengths : (d,) packed position of the first step of its y, and how many steps that has
    weights : (T, d) weight of each cell in the sum
    """

    lags: NDArray[np.int64]
    first: NDArray[np.int64]
    lengths: NDArray[np.int64]
    weights: Float64

    @classmethod
    def needed(cls, readout: str, rows: int, y: Sequences, weights: Float64) -> "_Diagonals":
        """Those that the readout looks at."""
        mean = readout == "mean"
        lags = [np.arange(1 - n, rows) if mean else np.array([rows - n]) for n in y.lengths]
        owner = np.repeat(np.arange(len(y)), [len(each) for each in lags])
        lag, lengths = np.concatenate(lags), y.lengths[owner]
        cells = np.zeros((rows, len(lag)))
        if readout != "last":
            there = np.arange(rows)[:, None] - lag
            cells[(there >= 0) & (there < lengths)] = 1.0
        if readout in ("last", "diagonal_authors"):
            cells[-1] += 1.0
        share = weights[owner] * (rows * lengths.astype(float)) ** -READOUT_POWER[readout]
        return cls(lag, y.offsets[:-1][owner], lengths, cells * share)

    def columns(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T, d) packed positions of the steps t'; of y's first or last where it has none."""
        places: NDArray[np.int64] = self.first + np.clip(t - self.lags, 0, self.lengths - 1)
        return places


@dataclass(frozen=True)
class _Bars:
    """Derivatives of the value with respect to the features of x, laid out as they are."""

    recurrent: Float64
    below: Float64
    inputs: tuple[Float64, ...]
    output: Float64


class _Grid:
    """The cells of some diagonals: row t of an array holds step t of all of them."""

    def __init__(
        self,
        recursion: Recursion,
        row: Direction,
        column: Direction,
        diagonals: _Diagonals,
        *,
        same_start: bool,
    ) -> None:
        self.recursion, self.row, self.column = recursion, row, column
        self.cell: Cell = cell_for(recursion.activation, "float64", np)
        self.sign = -1.0 if self.cell.distance else 1.0
        self.depth, self.steps = len(row.layers), len(row.output)
        lags = diagonals.lags
        shape = (self.depth, self.steps, len(lags))
        self.h, self.g, self.angle, self.carry = (np.zeros(shape) for _ in range(4))
        t = np.arange(self.steps)[:, None]
        self.at_column = diagonals.columns(t)
        self.starts = (t == 0) | (t <= lags)
        common = same_start & (t == 0) & (lags == 0)
        self.start_h = np.where(common, self.cell.same, self.cell.unrelated)

    def tangent(self, k: int) -> bool:
        """Whether layer k has a tangent part."""
        return self.recursion.tangent and k >= self.recursion.frozen

    def before(self, k: int, t: int) -> tuple[Float64, Float64]:
        """The state (h, g) of layer k one step before t, on every diagonal."""
        start = self.starts[t]
        h = np.where(start, self.start_h[t], self.h[k, t - 1])
        return h, np.where(start, 0.0, self.g[k, t - 1])

    def forward(self) -> None:
        """Fill h, g, angle and carry."""
        for t in range(self.steps):
            for k in range(self.depth):
                angle, carry = self._advance(k, t)
                self.angle[k, t], self.carry[k, t] = angle, carry
                if self.tangent(k):
                    self.h[k, t], self.g[k, t] = self.cell.tangent(angle, carry)
                else:
                    self.h[k, t] = self.cell.covariance(angle)

    def _advance(self, k: int, t: int) -> tuple[Float64, Float64]:
        row, column, at = self.row.layers[k], self.column.layers[k], self.at_column[t]
        h, g = self.before(k, t)
        angle, carry = self._share(row.recurrent[t], column.recurrent[at], h, g)
        if row.below is not None and column.below is not None:
            from_below = self._share(
                row.below[t], column.below[at], self.h[k - 1, t], self.g[k - 1, t]
            )
            angle, carry = angle + from_below[0], carry + from_below[1]
        for a, b in zip(row.inputs, column.inputs, strict=True):
            angle += self.cell.combine(a[t], b[at])
        return angle, carry

    def _share(self, a: Any, b: Any, h: Float64, g: Float64) -> tuple[Float64, Float64]:
        """The terms of one state in the next angle and carry."""
        share = self.cell.gain * a * b
        return share * h + (self.cell.combine(a, b) if self.cell.distance else 0.0), share * g

    def backward(self, weights: Float64) -> tuple[float, _Bars]:
        """The sum, ``weights`` being those of the cells in it, and its derivatives."""
        value = 0.0
        bars = _Bars(
            np.zeros((self.depth, self.steps)),
            np.zeros((self.depth, self.steps)),
            tuple(np.zeros_like(layer.inputs) for layer in self.row.layers),
            np.zeros(self.steps),
        )
        h_bar, g_bar = np.zeros((2, self.depth, weights.shape[1]))
        for t in reversed(range(self.steps)):
            outer = weights[t] * self.cell.unit * self.column.output[self.at_column[t]]
            bars.output[t] = outer @ self.cell.readout(self.h[-1, t], self.g[-1, t])
            value += bars.output[t] * self.row.output[t]
            h_bar[-1] += self.sign * outer * self.row.output[t]
            g_bar[-1] += outer * self.row.output[t]
            for k in reversed(range(self.depth)):
                self._backward_cell(k, t, h_bar, g_bar, bars)
        return float(value), bars

    def _backward_cell(self, k: int, t: int, h_bar: Float64, g_bar: Float64, bars: _Bars) -> None:
        """Move the derivatives from the state (k, t) to what it was made of."""
        row, column, at = self.row.layers[k], self.column.layers[k], self.at_column[t]
        angle_bar, carry_bar = self._through_activation(k, t, h_bar[k], g_bar[k])
        h, g = self.before(k, t)
        a, b = row.recurrent[t], column.recurrent[at]
        bars.recurrent[k, t] = self._share_bar(a, b, h, g, angle_bar, carry_bar)
        share = np.where(self.starts[t], 0.0, self.cell.gain * a * b)
        h_bar[k], g_bar[k] = angle_bar * share, carry_bar * share
        if row.below is not None and column.below is not None:
            a, b = row.below[t], column.below[at]
            h, g = self.h[k - 1, t], self.g[k - 1, t]
            bars.below[k, t] = self._share_bar(a, b, h, g, angle_bar, carry_bar)
            h_bar[k - 1] += angle_bar * (self.cell.gain * a * b)
            g_bar[k - 1] += carry_bar * (self.cell.gain * a * b)
        for i, (a_input, b_input) in enumerate(zip(row.inputs, column.inputs, strict=True)):
            bars.inputs[k][i, t] = self._combine_slope(a_input[t], b_input[at]) @ angle_bar

    def _through_activation(
        self, k: int, t: int, h_bar: Float64, g_bar: Float64
    ) -> tuple[Float64, Float64]:
        """Derivatives with respect to angle and carry: h has slope f', g = f' (base + carry)."""
        angle, carry = self.angle[k, t], self.carry[k, t]
        base = 0.5 - angle if self.cell.distance else angle
        slope = self.cell.tangent(angle, 1.0 - base)[1]
        if not self.tangent(k):
            return h_bar * slope, np.zeros_like(h_bar)
        bent = self.cell.curvature(angle) * (base + carry)
        return h_bar * slope + g_bar * (self.sign * slope + bent), g_bar * slope

    def _share_bar(
        self, a: Any, b: Any, h: Float64, g: Float64, angle_bar: Float64, carry_bar: Float64
    ) -> Any:
        bar = (angle_bar * h + carry_bar * g) @ (self.cell.gain * b)
        return bar + (self._combine_slope(a, b) @ angle_bar if self.cell.distance else 0.0)

    def _combine_slope(self, a: Any, b: Any) -> Any:
        return 2 * (a - b) if self.cell.distance else b


def _through_variances(
    kernel: "RNTK", values: NDArray[Any], row: Direction, variances: Float64, bars: _Bars
) -> Float64:
    """From the derivatives of x's features to those of x itself, shape (T, m)."""
    rule = NORMS[kernel.activation]
    norm, norm_slope = rule.norm(variances), rule.norm_slope(variances)
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    output_slope, variance_slope = rule.output_slope(variances), rule.variance_slope(variances)
    depth, (steps, m) = kernel.depth, values.shape
    q_bar = np.zeros((depth, steps))
    # A feature is part / norm: the norm moves all features of its layer and step together.
    for k, layer in enumerate(row.layers):
        pull = layer.recurrent * bars.recurrent[k] + (layer.inputs * bars.inputs[k]).sum(axis=0)
        if layer.below is not None:
            pull = pull + layer.below * bars.below[k]
        q_bar[k] = -pull * inverse[k] * norm_slope[k]
    q_bar[-1] += bars.output * kernel.sigma_v * output_slope[-1]
    memory = rule.feature * kernel.sigma_w * inverse * bars.recurrent
    lift = rule.feature * kernel.sigma_u * inverse * bars.below
    for t in reversed(range(steps)):
        for k in reversed(range(depth)):
            if t + 1 < steps:
                q_bar[k, t] += memory[k, t + 1] * output_slope[k, t]
                q_bar[k, t] += kernel.sigma_w**2 * q_bar[k, t + 1] * variance_slope[k, t]
            if k + 1 < depth:
                q_bar[k, t] += lift[k + 1, t] * output_slope[k, t]
                q_bar[k, t] += kernel.sigma_u**2 * q_bar[k + 1, t] * variance_slope[k, t]
    scale = kernel.sigma_u / np.sqrt(m)
    direct: Float64 = rule.feature * scale * (inverse[0] * bars.inputs[0][:m]).T
    through_norm: Float64 = 2 * scale**2 * q_bar[0][:, None] * values
    return direct + through_norm
