"""The Recurrent Neural Tangent Kernel, slowly and obviously: the second reading of the mathematics.

The formulas of the recursion are written down as they stand, in covariance form, one pair of
sequences and one cell (l, t, t') at a time, over the whole T x T' grid. Covariances lose half
their digits near equal arguments, so the arithmetic has 40 digits. Nothing of the package is used.

Symbols: Sigma[l, t, t'] covariance of the pre-activations, Theta[l, t, t'] their tangent kernel,
q[l, t] = Sigma[l, t, t] of one sequence with itself, V and V' the dual activations, F the number
of frozen first layers. Layers and steps count from 1, as on paper.
"""

from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 40

ACTIVATIONS = ("relu", "erf", "linear")
READOUTS = ("last", "per_step", "mean", "diagonal_authors")


def dual(activation: str, k: Any, qa: Any, qb: Any) -> tuple[Any, Any]:
    """V = E phi(z1) phi(z2), V' = E phi'(z1) phi'(z2) for (z1, z2) ~ N(0, [[qa, k], [k, qb]])."""
    if activation == "linear":
        return k, mp.mpf(1)
    if activation == "erf":
        c = (1 + 2 * qa) * (1 + 2 * qb)
        return 2 / mp.pi * mp.asin(2 * k / mp.sqrt(c)), 4 / mp.pi / mp.sqrt(c - 4 * k * k)
    s = mp.sqrt(qa * qb)
    if s == 0:
        return mp.mpf(0), mp.mpf(0)
    cos = min(max(k / s, mp.mpf(-1)), mp.mpf(1))
    theta, sin = mp.acos(cos), mp.sqrt(1 - cos * cos)
    v = s * (sin + (mp.pi - theta) * cos) / (2 * mp.pi)
    return v, (mp.pi - theta) / (2 * mp.pi)


def variances(x: list[list[Any]], o: dict[str, Any]) -> dict[tuple[int, int], Any]:
    """q[l, t] of one sequence. Its initial state is its own, so sigma_h always counts."""
    q: dict[tuple[int, int], Any] = {}
    for layer in range(1, o["depth"] + 1):
        for t in range(1, len(x) + 1):
            if t > 1:
                before = q[layer, t - 1]
                recurrent = dual(o["activation"], before, before, before)[0]
            else:
                recurrent = o["sigma_h"] ** 2
            if layer > 1:
                below = q[layer - 1, t]
                inputs = dual(o["activation"], below, below, below)[0]
            else:
                inputs = sum(a * a for a in x[t - 1]) / len(x[t - 1])
            q[layer, t] = (
                o["sigma_w"] ** 2 * recurrent + o["sigma_u"] ** 2 * inputs + o["sigma_b"] ** 2
            )
    return q


def cells(n: int, n2: int, diagonal: bool) -> list[tuple[int, int]]:
    """All (t, t') in the order of time; with `diagonal`, only those with T - t = T' - t'."""
    grid = [(t, u) for t in range(1, n + 1) for u in range(1, n2 + 1)]
    return [(t, u) for t, u in grid if not diagonal or n - t == n2 - u]


def output_cells(
    x: list[list[Any]], y: list[list[Any]], o: dict[str, Any], same_sample: bool, diagonal: bool
) -> dict[tuple[int, int], tuple[Any, Any]]:
    """(Theta_out[t, t'], K_out[t, t']) at all `cells`. No diagonal of the grid needs another."""
    depth, frozen, activation = o["depth"], o["frozen_layers"], o["activation"]
    sigma_w, sigma_u, sigma_b = o["sigma_w"], o["sigma_u"], o["sigma_b"]
    same_start = same_sample or o["initial_state"] == "shared"
    qx, qy = variances(x, o), variances(y, o)
    theta: dict[tuple[int, int, int], Any] = {}
    v: dict[tuple[int, int, int], Any] = {}  # V(Sigma[l, t, t'])
    dv: dict[tuple[int, int, int], Any] = {}  # V'(Sigma[l, t, t'])
    out: dict[tuple[int, int], tuple[Any, Any]] = {}
    for t, u in cells(len(x), len(y), diagonal):  # u is t'
        for layer in range(1, depth + 1):
            if t > 1 and u > 1:
                recurrent = v[layer, t - 1, u - 1]
            elif t == 1 and u == 1 and same_start:
                recurrent = o["sigma_h"] ** 2
            else:
                recurrent = mp.mpf(0)
            if layer > 1:
                inputs = v[layer - 1, t, u]
            else:
                inputs = sum(a * b for a, b in zip(x[t - 1], y[u - 1], strict=True)) / len(x[t - 1])
            sigma = sigma_w**2 * recurrent + sigma_u**2 * inputs + sigma_b**2
            v[layer, t, u], dv[layer, t, u] = dual(activation, sigma, qx[layer, t], qy[layer, u])
            theta[layer, t, u] = mp.mpf(0)
            if layer > frozen:
                theta[layer, t, u] += sigma
                if t > 1 and u > 1:
                    before = (layer, t - 1, u - 1)
                    theta[layer, t, u] += sigma_w**2 * dv[before] * theta[before]
                if layer - 1 > frozen:
                    below = (layer - 1, t, u)
                    theta[layer, t, u] += sigma_u**2 * dv[below] * theta[below]
        k_out = o["sigma_v"] ** 2 * v[depth, t, u]
        # Theta is 0 where the last layer is frozen, so F < L needs no case here.
        theta_out = k_out + o["sigma_v"] ** 2 * dv[depth, t, u] * theta[depth, t, u]
        out[t, u] = theta_out, k_out
    return out


def read_out(out: dict[tuple[int, int], Any], n: int, n2: int, readout: str) -> Any:
    """The kernel of the sequences, of lengths n and n2, from the kernel of their outputs."""
    if readout == "last":
        return out[n, n2]
    if readout == "per_step":
        aligned = [out[n - i, n2 - i] for i in range(min(n, n2))]
        return sum(aligned) / mp.sqrt(n * n2)
    if readout == "mean":
        return sum(out[t, u] for t in range(1, n + 1) for u in range(1, n2 + 1)) / (n * n2)
    if readout == "diagonal_authors":
        if n != n2:
            raise ValueError("diagonal_authors needs equal lengths")
        return (sum(out[t, t] for t in range(1, n + 1)) + out[n, n]) / n
    raise ValueError(readout)


def both_kernels(
    x: Any,
    y: Any,
    *,
    same_sample: bool = False,
    depth: int = 1,
    activation: str = "relu",
    sigma_w: float = 2**0.5,
    sigma_u: float = 1.0,
    sigma_b: float = 0.0,
    sigma_h: float = 0.0,
    sigma_v: float = 1.0,
    readout: str = "last",
    bidirectional: bool = False,
    frozen_layers: int = 0,
    initial_state: str = "shared",
    normalize: bool = False,
    diagonal_only: bool = False,
) -> tuple[Any, Any]:
    """(tangent kernel, NNGP kernel) of one pair x (T, m) and y (T', m), as 40-digit numbers.

    `same_sample`: x and y are one sample, not merely equal. `diagonal_only` leaves out the cells
    that 'last' and 'per_step' do not read, for long sequences.
    """
    assert activation in ACTIVATIONS
    assert readout in READOUTS
    assert 0 <= frozen_layers <= depth
    assert initial_state in ("shared", "independent")
    assert not diagonal_only or readout in ("last", "per_step")
    weights = dict(
        sigma_w=sigma_w, sigma_u=sigma_u, sigma_b=sigma_b, sigma_h=sigma_h, sigma_v=sigma_v
    )
    o: dict[str, Any] = {name: mp.mpf(float(value)) for name, value in weights.items()}
    o |= dict(depth=depth, activation=activation)
    o |= dict(frozen_layers=frozen_layers, initial_state=initial_state)
    x = [[mp.mpf(float(a)) for a in step] for step in x]
    y = [[mp.mpf(float(a)) for a in step] for step in y]

    def plain(a: list[list[Any]], b: list[list[Any]], same: bool) -> list[Any]:
        """[tangent, NNGP] before normalisation, both directions added."""
        total = [mp.mpf(0), mp.mpf(0)]
        for direction in (1, -1) if bidirectional else (1,):
            out = output_cells(a[::direction], b[::direction], o, same, diagonal_only)
            for i in (0, 1):
                kernel = {cell: values[i] for cell, values in out.items()}
                total[i] += read_out(kernel, len(a), len(b), readout)
        return total

    kernels = plain(x, y, same_sample)
    if normalize:
        self_x, self_y = plain(x, x, True), plain(y, y, True)
        for i in (0, 1):
            scale = mp.sqrt(self_x[i] * self_y[i])
            kernels[i] = kernels[i] / scale if scale else mp.mpf(0)
    return kernels[0], kernels[1]


def reference(x: Any, y: Any, *, kind: str = "ntk", **options: Any) -> float:
    """The kernel of one pair; `options` as in `both_kernels`."""
    return float(both_kernels(x, y, **options)[{"ntk": 0, "nngp": 1}[kind]])


def reference_matrix(
    a: Sequence[Any], b: Sequence[Any] | None = None, *, kind: str = "ntk", **options: Any
) -> np.ndarray:
    """All pairs of a and b. Without b, all pairs of a, where a[i] and a[i] are the same sample."""
    same = b is None
    other = a if b is None else b
    matrix = np.empty((len(a), len(other)))
    for i, x in enumerate(a):
        for j, y in enumerate(other):
            matrix[i, j] = reference(x, y, kind=kind, same_sample=same and i == j, **options)
    return matrix
