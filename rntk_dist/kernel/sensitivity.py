"""Gradients of a sum of kernel values with respect to the one sequence that all compare.

A kernel machine decides by ``sum_j weights[j] k(x, y_j)``; of one pair the sum is the kernel. The
forward sweep gives every pair's states, with all needed diagonals of the (t, t') grids of x with
each y side by side. Walked back are the recursions as they stand on paper, in covariances:

    k = m + sigma_b^2 + sigma_u^2 <x, y>/m or sigma_u^2 V(below),    m = sigma_w^2 V(before)
    Theta = k + sigma_w^2 V' Theta (before) + sigma_u^2 V' Theta (below)
    value = sum of sigma_v^2 (V + V' Theta)

with V and V' functions of k and both variances q, q'. Names ending in ``_bar`` are derivatives of
the sum with respect to the quantity before the underscore.

What k and q bring to the gradient of one input cancels where the inputs are large, or the sequences
near. So both are taken together: of V and V' the derivatives along x are multiples of

    G = q y - k x,      E = k y - q' x

in which the products of inputs cancel on paper, and the rest is a sum of differences.

**Kinks.** The tangent kernel of relu has a kink where a pair's angle is exactly 0 or pi. There the
derivative of the angle counts as 0, the mean of both sides, and all else counts as it is. Every
kernel of relu has a kink in the first steps of x as long as they are 0, if there is neither a bias
nor an initial state. There the whole derivative of that network's part counts as 0. erf and linear
have no kinks.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.arrays import cell_for, erf_cell_for
from rntk_dist.kernel.cell import UNSEEN
from rntk_dist.kernel.scaled import Float64, divided
from rntk_dist.kernel.variances import NORMS, READOUT_POWER, Weighted, weighted
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
    _refuse_sizes(kernel, x, y)
    power = _power(kernel, x, y)
    if power:
        # All of these times a number multiply the kernel by its square, or leave a normalised one.
        smaller = replace(
            kernel,
            sigma_b=math.ldexp(kernel.sigma_b, -power),
            sigma_h=math.ldexp(kernel.sigma_h, -power),
        )
        found = gradient(smaller, _shifted(x, -power), _shifted(y, -power), kind, weights)
        return _refuse_infinite(np.ldexp(found, -power if kernel.normalize else power), x, y)
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


def _refuse_sizes(kernel: "RNTK", x: Sequences, y: Sequences) -> None:
    """Refuse inputs of which products of several would leave float64 on the way."""
    sizes = [np.abs(each).max() for side in (x, y) for each in side]
    largest, least = max(sizes), min((size for size in sizes if size > 0), default=1.0)
    if kernel.activation == "erf" and largest > LARGEST_OF_ERF:
        raise OverflowError(
            f"inputs go up to {largest:.3g}, and the gradient of erf is computed up to "
            f"{LARGEST_OF_ERF:g}: scale the inputs down"
        )
    if largest > least * LARGEST_RATIO:
        raise OverflowError(
            f"the largest inputs of the sequences go from {least:.3g} to {largest:.3g}, and a "
            f"gradient takes a ratio of {LARGEST_RATIO:g}: bring the sequences nearer to each other"
        )


def _power(kernel: "RNTK", x: Sequences, y: Sequences) -> int:
    """The power of two of inputs, bias and start that are too large or small to multiply; or 0."""
    if kernel.activation == "erf":
        return 0
    largest = max(np.abs(x.values).max(), np.abs(y.values).max(), kernel.sigma_b, kernel.sigma_h)
    power = math.frexp(float(largest))[1]
    return power if abs(power) > USUAL else 0


def _shifted(sequences: Sequences, power: int) -> Sequences:
    return replace(sequences, values=np.ldexp(sequences.values.astype(np.float64), power))


def _refuse_infinite(gradient: Float64, x: Sequences, y: Sequences) -> Float64:
    if not np.isfinite(gradient).all():
        raise OverflowError(
            f"the kernel's gradient exceeds float64 (lengths {x.lengths[0]} and "
            f"{y.lengths.max()}): normalise the inputs, or use a smaller sigma_w"
        )
    return gradient


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
    return value, _refuse_infinite(x_bar + 0 * value, x, y)


def _one_network(
    kernel: "RNTK", x: Sequences, y: Sequences, weights: Float64, kind: "Kind", same: bool
) -> tuple[float, Float64]:
    diagonals = _Diagonals.needed(kernel.readout, len(x.values), y, weights)
    with np.errstate(over="ignore", invalid="ignore"):  # refused by the caller
        if not same:
            grid = _Grid(kernel, kind, x, y, diagonals)
            return grid.value(), grid.gradient()
        main = diagonals.lags == 0
        value, x_bar = _of_itself(kernel, kind, x, diagonals.weights[:, main][:, 0])
        if not main.all():
            grid = _Grid(kernel, kind, x, y, diagonals.take(~main))
            value, x_bar = value + grid.value(), x_bar + grid.gradient()
    return value, x_bar


def _of_itself(
    kernel: "RNTK", kind: "Kind", x: Sequences, weights: Float64
) -> tuple[float, Float64]:
    """A weighted sum of the cells t = t' of a sample with itself, and half its derivative.

    The sample alone decides: in the chaotic phase the derivatives of both sides of a pair are as
    large as they are opposite.
    """
    side, (steps, m) = _Side.of(kernel, x, kind), x.values.shape
    frozen = kernel.frozen_layers if kind == "ntk" else kernel.depth
    q, norm = side.q, NORMS[kernel.activation]
    slope, bend = _self_slopes(kernel.activation, q)
    theta = np.zeros_like(q)
    for t in range(steps):
        for layer in range(frozen, kernel.depth):
            theta[layer, t] = q[layer, t]
            if t > 0:
                theta[layer, t] += kernel.sigma_w**2 * slope[layer, t - 1] * theta[layer, t - 1]
            if layer > frozen:
                theta[layer, t] += kernel.sigma_u**2 * slope[layer - 1, t] * theta[layer - 1, t]
    out = kernel.sigma_v**2 * weights
    value = float((out * (side.root[-1] ** 2 + slope[-1] * theta[-1])).sum())
    q_bar, theta_bar = np.zeros((2, kernel.depth + 1, steps + 1))
    rise = norm.slope(q)
    for t in reversed(range(steps)):
        for layer in reversed(range(kernel.depth)):
            later, above = kernel.sigma_w**2, kernel.sigma_u**2
            passed = later * theta_bar[layer, t + 1] + above * theta_bar[layer + 1, t]
            value_bar = later * q_bar[layer, t + 1] + above * q_bar[layer + 1, t]
            if layer == kernel.depth - 1:
                passed, value_bar = passed + out[t], value_bar + out[t]
            if layer >= frozen:
                theta_bar[layer, t] = passed * slope[layer, t]
            through_slope = passed * theta[layer, t] * bend[layer, t]
            q_bar[layer, t] = theta_bar[layer, t] + value_bar * rise[layer, t] + through_slope
    gradient: Float64 = kernel.sigma_u**2 / m * q_bar[0, :steps, None] * x.values
    return value, gradient


def _self_slopes(activation: str, q: Float64) -> tuple[Float64, Float64]:
    """V' of a sequence with itself, and its derivative by q."""
    if activation == "erf":
        return 4 / np.pi / np.sqrt(1 + 4 * q), -8 / np.pi / np.sqrt(1 + 4 * q) ** 3
    constant = np.full_like(q, 0.5 if activation == "relu" else 1.0)
    return constant, np.zeros_like(q)


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

    def take(self, some: NDArray[np.bool_]) -> "_Diagonals":
        """Some of them."""
        parts = self.lags[some], self.first[some], self.lengths[some]
        return _Diagonals(*parts, self.weights[:, some])

    def columns(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T, d) packed positions of the steps t'; of y's first or last where it has none."""
        places: NDArray[np.int64] = self.first + np.clip(t - self.lags, 0, self.lengths - 1)
        return places


USUAL = 100
"""Powers of two within which numbers are multiplied as they are."""

LARGEST_OF_ERF, LARGEST_RATIO = 1e50, 1e80
"""Of the inputs of erf, and of the sizes of two sequences: float64 holds their products."""

NO_ANGLE = 1e-30
"""Haversines below this are the rounding of sequences that are multiples of each other."""


@dataclass(frozen=True)
class _Side:
    """One network's view of packed sequences, as plain numbers, (depth, steps).

    Attributes
    ----------
    made : the features
    memory : roots of the parts of q that come from the step before
    root : S
    q : variances
    size : their roots, which float64 holds where it does not hold q
    """

    made: Weighted
    memory: Float64
    root: Float64
    q: Float64
    size: Float64

    @classmethod
    def of(cls, kernel: "RNTK", sequences: Sequences, kind: str) -> "_Side":
        made = weighted([kernel], sequences, kind, with_steps=True)[0]
        memory = np.array([step.memory.plain() for step in made.steps])
        root = np.array([step.root.plain() for step in made.steps])
        q = np.array([step.q.plain() for step in made.steps])
        return cls(made, memory, root, q, np.array([step.q.root().plain() for step in made.steps]))


@dataclass(frozen=True)
class _Duals:
    """V, V' and what their derivatives need, at one cell of every diagonal, (d,).

    Attributes
    ----------
    lack : (1 - r)/2 with r = V / (S S'), with all its digits where it is small
    share : r
    slope : V'
    sine : of relu the sine of the angle; otherwise 1
    """

    lack: Float64
    share: Float64
    slope: Float64
    sine: Float64


class _Grid:
    """The cells of some diagonals: row t of an array holds step t of all of them."""

    def __init__(
        self,
        kernel: "RNTK",
        kind: "Kind",
        x: Sequences,
        y: Sequences,
        diagonals: _Diagonals,
    ) -> None:
        self.kernel, self.diagonals = kernel, diagonals
        self.frozen = kernel.frozen_layers if kind == "ntk" else kernel.depth
        self.inputs = x.values.astype(np.float64), y.values.astype(np.float64)
        self.row, self.column = _Side.of(kernel, x, kind), _Side.of(kernel, y, kind)
        self.depth, self.steps = kernel.depth, len(x.values)
        t, lags = np.arange(self.steps)[:, None], diagonals.lags
        self.at_column = diagonals.columns(t)
        self.starts = (t == 0) | (t <= lags)
        common = (kernel.initial_state == "shared") & (t == 0) & (lags == 0)
        self.start_lack = np.where(common, 0.0, 0.5)
        shape = (self.depth, self.steps, len(lags))
        self.lack, self.share, self.slope, self.sine = (np.zeros(shape) for _ in range(4))
        self.k, self.theta = np.zeros(shape), np.zeros(shape)
        self._forward()

    # -- forward -----------------------------------------------------------------------------------

    def _forward(self) -> None:
        duals = _ErfDuals(self) if self.kernel.activation == "erf" else _AngleDuals(self)
        for t in range(self.steps):
            for layer in range(self.depth):
                found = duals.at(layer, t)
                self.lack[layer, t], self.share[layer, t] = found.lack, found.share
                self.slope[layer, t], self.sine[layer, t] = found.slope, found.sine
                self.k[layer, t] = self.covariance(layer, t)
                if layer >= self.frozen:
                    self.theta[layer, t] = self._tangent(layer, t)

    def before(self, layer: int, t: int) -> tuple[Float64, Float64]:
        """`_Duals.lack` and `_Duals.share` of a layer one step before t, on every diagonal."""
        start, lack = self.starts[t], self.start_lack[t]
        share = np.where(start, 1 - 2 * lack, self.share[layer, t - 1])
        return np.where(start, lack, self.lack[layer, t - 1]), share

    def _memory(self, layer: int, t: int) -> Float64:
        """sigma_w^2 V one step before."""
        column, share = self.column.memory[layer, self.at_column[t]], self.before(layer, t)[1]
        memory: Float64 = self.row.memory[layer, t] * column * share
        return memory

    def covariance(self, layer: int, t: int) -> Float64:
        kernel, at = self.kernel, self.at_column[t]
        if layer == 0:
            x, y = self.inputs
            drive = y[at] @ x[t] / x.shape[1]
        else:
            root = self.row.root[layer - 1, t] * self.column.root[layer - 1, at]
            drive = root * self.share[layer - 1, t]
        k: Float64 = self._memory(layer, t) + kernel.sigma_u**2 * drive + kernel.sigma_b**2
        return k

    def _tangent(self, layer: int, t: int) -> Float64:
        kernel, start = self.kernel, self.starts[t]
        theta: Float64 = self.k[layer, t] + kernel.sigma_w**2 * np.where(
            start, 0.0, self.slope[layer, t - 1] * self.theta[layer, t - 1]
        )
        if layer > self.frozen:
            theta = theta + kernel.sigma_u**2 * self.slope[layer - 1, t] * self.theta[layer - 1, t]
        return theta

    def value(self) -> float:
        """The weighted sum of the kernel's values."""
        roots = self.row.root[-1][:, None] * self.column.root[-1, self.at_column]
        values = roots * self.share[-1] + self.slope[-1] * self.theta[-1]
        return float((self.diagonals.weights * values).sum() * self.kernel.sigma_v**2)

    # -- backward ----------------------------------------------------------------------------------

    def gradient(self) -> Float64:
        """The derivative of `value` with respect to x, (T, m)."""
        kernel, out = self.kernel, self.kernel.sigma_v**2 * self.diagonals.weights
        direct = np.zeros(self.inputs[0].shape)
        q_bar = np.zeros((self.depth, self.steps))
        value_bar, slope_bar, theta_bar = np.zeros((3, self.depth, out.shape[1]))
        for t in reversed(range(self.steps)):
            value_bar[-1] += out[t]
            slope_bar[-1] += out[t] * self.theta[-1, t]
            if self.frozen < self.depth:
                theta_bar[-1] += out[t] * self.slope[-1, t]
            on = ~self.starts[t]
            for layer in reversed(range(self.depth)):
                bars = value_bar[layer], slope_bar[layer], theta_bar[layer]
                k_bar, q_bar[layer, t], along = self._through(layer, t, *bars)
                value_bar[layer] = np.where(on, kernel.sigma_w**2 * k_bar, 0.0)
                past = np.where(on, kernel.sigma_w**2 * bars[2], 0.0)
                if layer > 0:
                    value_bar[layer - 1] += kernel.sigma_u**2 * k_bar
                    passed = kernel.sigma_u**2 * bars[2]
                    slope_bar[layer - 1] += passed * self.theta[layer - 1, t]
                    if layer > self.frozen:
                        theta_bar[layer - 1] += passed * self.slope[layer - 1, t]
                else:
                    direct[t] = along
                slope_bar[layer] = past * self.theta[layer, t - 1]
                theta_bar[layer] = past * self.slope[layer, t - 1]
        chain = self._through_variances(q_bar)
        scale = kernel.sigma_u**2 / self.inputs[0].shape[1]
        gradient: Float64 = scale * (direct + 2 * chain[:, None] * self.inputs[0])
        return gradient

    def _through(
        self, layer: int, t: int, value_bar: Float64, slope_bar: Float64, theta_bar: Float64
    ) -> tuple[Float64, float, Any]:
        """From V, V' and Theta of one cell to k, to q of x, and in the first layer along x itself.

        The last is (m,): what k and q bring to x directly, in units of sigma_u^2 / m.
        """
        at = self.at_column[t]
        q, other = self.row.q[layer, t], self.column.q[layer, at]
        k, slope = self.k[layer, t], self.slope[layer, t]
        k_bar = theta_bar + value_bar * slope
        if self.kernel.activation == "linear":
            return k_bar, 0.0, self._along(layer, t, k_bar, 0.0, 0.0, 0.0)
        if self.kernel.activation == "erf":
            width, cube = 1 + 2 * q, (np.pi / 4 * slope) ** 3 * slope_bar
            k_bar = k_bar + 16 / np.pi * k * cube
            by_q = -value_bar * k / width * slope - 4 / np.pi * (1 + 2 * other) * cube
            plain = theta_bar + value_bar * slope / width
            with_g = 2 * value_bar * slope / width
            along = self._along(layer, t, plain, with_g, 16 / np.pi * cube, -8 / np.pi * cube)
            return k_bar, float(by_q.sum()), along
        size, others, sine = (
            self.row.size[layer, t],
            self.column.size[layer, at],
            self.sine[layer, t],
        )
        # 0 where the angle is 0 or pi, or one of the sequences still 0: kinks, see above.
        bend = divided(slope_bar, 2 * np.pi * size * others * sine)
        ratio = divided(others, np.full_like(others, size))
        lift = value_bar * sine * ratio / (2 * np.pi)
        over_q = divided(bend, np.full_like(bend, q))
        along = self._along(layer, t, k_bar, over_q, 0.0, lift)
        return k_bar + bend, float((lift - over_q * k).sum()) / 2, along

    def _along(self, layer: int, t: int, by_y: Any, by_g: Any, by_e: Any, by_x: Any) -> Any:
        """The sum of ``by_y y + by_g G + by_e E + by_x x``; 0 above the first layer."""
        if layer > 0:
            return 0.0
        x, y = self.inputs[0][t], self.inputs[1][self.at_column[t]]
        apart = y - x
        g, e = self._moments(t, x, y, apart)

        def summed(weight: Any, vectors: Any) -> Any:
            return np.broadcast_to(weight, len(y)) @ np.broadcast_to(vectors, y.shape)

        return summed(by_y, y) + summed(by_g, g) + summed(by_e, e) + summed(by_x, x)

    def _moments(self, t: int, x: Float64, y: Float64, apart: Float64) -> tuple[Float64, Float64]:
        """G and E of the first layer, (d, m); of near inputs they are made of differences."""
        lack, share = self.before(0, t)
        own, other = self.row.memory[0, t], self.column.memory[0, self.at_column[t]]
        bias = self.kernel.sigma_b**2
        both = (own * other * share + bias)[:, None]
        mine, theirs = own * own + bias, (other * other + bias)[:, None]
        crossed, step = 2 * lack * own * other, own - other
        near = ((apart * apart).sum(axis=1) < (x @ x) / 4)[:, None]
        g = np.where(near, mine * apart + (own * step + crossed)[:, None] * x, mine * y - both * x)
        e = np.where(
            near, both * apart + (other * step - crossed)[:, None] * x, both * y - theirs * x
        )
        if len(x) == 1:  # of several features a part of y lies across x
            return g, e
        scale, to = self.kernel.sigma_u**2 / len(x), np.where(near, apart, y)
        g += scale * ((x @ x) * to - (to @ x)[:, None] * x)
        products, along = (y @ x)[:, None], np.einsum("ij,ij->i", to, y)[:, None]
        e += scale * (products * to - along * x)
        return g, e

    def _through_variances(self, q_bar: Float64) -> Float64:
        """What later steps and upper layers bring to q of the first layer, (T,)."""
        kernel, slope = self.kernel, NORMS[self.kernel.activation].slope(self.row.q)
        whole, chain = q_bar.copy(), np.zeros_like(q_bar)
        for t in reversed(range(self.steps)):
            for layer in reversed(range(self.depth)):
                if t + 1 < self.steps:
                    chain[layer, t] += kernel.sigma_w**2 * whole[layer, t + 1]
                if layer + 1 < self.depth:
                    chain[layer, t] += kernel.sigma_u**2 * whole[layer + 1, t]
                chain[layer, t] *= slope[layer, t]
                whole[layer, t] += chain[layer, t]
        first: Float64 = chain[0]
        return first


class _AngleDuals:
    """Of relu and linear."""

    def __init__(self, grid: _Grid) -> None:
        self.grid = grid
        self.cell = cell_for(grid.kernel.activation, "float64", np)

    def at(self, k: int, t: int) -> _Duals:
        """Of layer k at step t."""
        if self.grid.kernel.activation == "linear":
            return self._linear(k, t)
        grid, cell, at = self.grid, self.cell, self.grid.at_column[t]
        row, column = grid.row.made.layers[k], grid.column.made.layers[k]
        w = self._part(row.recurrent[t], column.recurrent[at], grid.before(k, t)[0])
        if row.below is not None and column.below is not None:
            w = w + self._part(row.below[t], column.below[at], grid.lack[k - 1, t])
        for a, b in zip(row.inputs, column.inputs, strict=True):
            w = w + cell.combine(a[t], b[at])
        lack, slope = cell.tangent(w, 0.5 + w)
        there = (grid.row.q[k, t] > 0) & (grid.column.q[k, at] > 0)
        straight = (w < NO_ANGLE) | (1 - w < UNSEEN * np.finfo(np.float64).eps)
        sine = np.where(straight, 0.0, 2 * np.sqrt(np.maximum(w * (1 - w), 0)))
        return _Duals(lack, 1 - 2 * lack, np.where(there, slope / 2, 0.0), sine)

    def _part(self, a: Any, b: Any, lack: Float64) -> Any:
        return self.cell.combine(a, b) + self.cell.gain * a * b * lack

    def _linear(self, k: int, t: int) -> _Duals:
        """V = k, V' = 1."""
        grid, at = self.grid, self.grid.at_column[t]
        covariance = grid.covariance(k, t)
        share = divided(covariance, grid.row.root[k, t] * grid.column.root[k, at])
        one = np.ones_like(share)
        return _Duals((1 - share) / 2, share, one, one)


class _ErfDuals:
    """Of erf."""

    def __init__(self, grid: _Grid) -> None:
        self.grid = grid
        self.single = grid.inputs[0].shape[1] == 1
        bias = grid.kernel.sigma_b > 0
        self.cell = erf_cell_for("float64", np, bias=bias, single=self.single)

    def at(self, k: int, t: int) -> _Duals:
        """Of layer k at step t."""
        grid, cell, at = self.grid, self.cell, self.grid.at_column[t]
        row, column = grid.row.made.layers[k], grid.column.made.layers[k]
        assert row.own is not None
        assert column.own is not None
        own_a, own_b = row.own[:, t], column.own[:, at]
        a, b, state = row.recurrent[t], column.recurrent[at], _state(*grid.before(k, t))
        if row.below is not None and column.below is not None:
            below = _state(grid.lack[k - 1, t], grid.share[k - 1, t])
            parts = row.below[t], column.below[at]
            W, Z, cosine = cell.upper(below, parts, a, b, *state, own_a, own_b)
        else:
            inputs = self._inputs(row.inputs[:, t], column.inputs[:, at])
            W, Z, cosine = cell.first(inputs, a, b, *state, own_a, own_b)
        least, share, reciprocal = cell.settle(W, Z, cosine, own_a, own_b)
        lack = np.where(share > 0, least, 1 - least)
        slope = 16 / np.pi * own_a[0] * own_b[0] * reciprocal
        return _Duals(lack, share, slope, np.ones_like(slope))

    def _inputs(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        if self.single:
            return x[0], y[0]
        pairs = list(zip(x, y, strict=True))
        return sum(self.cell.combine(*pair) for pair in pairs), sum(
            self.cell.mirror(*pair) for pair in pairs
        )


def _state(lack: Float64, share: Float64) -> tuple[Float64, Float64]:
    """What `ErfCell` carries of a pair."""
    return np.where(share > 0, lack, 1 - lack), share
