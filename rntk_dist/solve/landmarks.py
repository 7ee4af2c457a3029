"""Which few samples stand for all: landmarks, or centres, of a symmetric kernel matrix.

* "uniform": any m, each as likely as any other. Takes no value of the kernel.
* "leverage": by approximate ridge leverage scores, how much of a sample the others cannot say: the
  recursive method of C. Musco and C. Musco, "Recursive sampling for the Nystrom method" (NIPS 2017,
  algorithm 3). About 3 n m values.
* "kmeans++": one after another, each as likely as its squared distance from the nearest before it,
  k(x, x) + k(y, y) - 2 k(x, y): D. Arthur and S. Vassilvitskii, "k-means++: the advantages of
  careful seeding" (SODA 2007); for Nystroem D. Oglic and T. Gaertner, "Nystroem method with kernel
  k-means++ samples as landmarks" (ICML 2017). Samples are proposed in blocks and accepted by
  rejection, which leaves their distribution as it is. About n m values.
* "cholesky": the pivots of randomly pivoted Cholesky (see `rntk_dist.solve.preconditioner`). About
  n m values, and 8 n m bytes.

All but the last hold one row of blocks and vectors of n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cholesky, eigh, solve_triangular

from rntk_dist.operators import Indices, Operator
from rntk_dist.solve.memory import panels
from rntk_dist.solve.preconditioner import pivoted_columns
from rntk_dist.solve.systems import Float64

type Rule = Literal["uniform", "leverage", "kmeans++", "cholesky"]

RULES: tuple[Rule, ...] = get_args(Rule.__value__)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """`indices` (m,) of samples, increasing, and for how many samples each stands.

    These `weights` (m,) sum up to n. Where leverage decided they are inverse odds, where distances
    did the number of samples that are nearest.
    """

    indices: Indices
    weights: Float64

    def __len__(self) -> int:
        return len(self.indices)


def choose_landmarks(
    matrix: Operator, count: int, rule: Rule = "uniform", seed: int = 0
) -> Landmarks:
    """Choose m = `count` different samples of a symmetric matrix (n, n); fewer if no more differ.

    Raises ValueError for a rectangular matrix, an unknown rule, or a count not in 1..n.
    """
    n = len(matrix)
    if not matrix.symmetric:
        raise ValueError(
            f"found a matrix of shape {n} x {matrix.shape[1]}: landmarks are chosen from the "
            "symmetric one of all samples"
        )
    if rule not in RULES:
        raise ValueError(f"the rule for landmarks is {rule!r}: give one of {', '.join(RULES)}")
    if not 1 <= count <= n:
        raise ValueError(f"{count} landmarks are asked of {n} samples: give 1 to {n}")
    indices, weights = _CHOOSERS[rule](matrix, count, np.random.default_rng(seed))
    order = np.argsort(indices)
    return Landmarks(indices[order], weights[order] * (n / weights.sum()))


def landmarks_of(given: Landmarks | ArrayLike, n: int) -> Landmarks:
    """Landmarks as they are, or of indices, each of which then stands for as many samples.

    Raises ValueError for indices that are none, occur twice or lie outside 0..n-1.
    """
    if isinstance(given, Landmarks):
        indices, weights = given.indices, given.weights
    else:
        indices = np.asarray(given)
        weights = np.full(len(indices), n / max(len(indices), 1))
    whole = indices.ndim == 1 and indices.dtype.kind in "iu" and len(indices) > 0
    if not whole or len(np.unique(indices)) < len(indices) or not _inside(indices, n):
        raise ValueError(
            f"found landmarks of shape {indices.shape} and type {indices.dtype}: give different "
            f"indices of the {n} samples"
        )
    return Landmarks(indices.astype(np.int64), weights)


def _inside(indices: Indices, n: int) -> bool:
    return bool(indices.min() >= 0 and indices.max() < n)


type Chosen = tuple[Indices, Float64]


def _uniform(matrix: Operator, count: int, rng: np.random.Generator) -> Chosen:
    return rng.choice(len(matrix), count, replace=False), np.ones(count)


def _pivots(matrix: Operator, count: int, rng: np.random.Generator) -> Chosen:
    _, pivots = pivoted_columns(matrix, count, rng)
    return pivots, np.ones(len(pivots))


# -- leverage --------------------------------------------------------------------------------------


def _leverage(matrix: Operator, count: int, rng: np.random.Generator) -> Chosen:
    """Samples of half, a quarter, ... of all, each by scores that the smaller sample gives."""
    n = len(matrix)
    order, diagonal = rng.permutation(n), matrix.diag().astype(np.float64)
    sizes = _halves(n, count)
    sample, weights = order[: sizes[0]], np.ones(sizes[0])
    for size in sizes[1:-1]:
        among = order[:size]
        scores = _scores(matrix, diagonal, among, sample, weights, count)
        odds = np.minimum(1.0, np.log(max(count, 3)) * scores)
        kept = np.flatnonzero(rng.random(size) < odds)
        if not len(kept):
            kept, odds = rng.choice(size, min(count, size), replace=False), np.ones(size)
        sample, weights = among[kept], 1.0 / odds[kept]
    scores = _scores(matrix, diagonal, order, sample, weights, count)
    # What leverage leaves out altogether may still be needed to make up the number.
    odds = np.maximum(scores, 1e-12 * scores.max()) if scores.max() > 0 else np.ones(n)
    odds /= odds.sum()
    chosen = rng.choice(n, count, replace=False, p=odds)
    return order[chosen], 1.0 / np.minimum(1.0, count * odds[chosen])


def _halves(n: int, count: int) -> list[int]:
    """n, halved until it is at most the count; the smallest first, n last."""
    sizes = [n]
    while sizes[-1] > count:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def _scores(
    matrix: Operator,
    diagonal: Float64,
    among: Indices,
    sample: Indices,
    weights: Float64,
    count: int,
) -> Float64:
    """Approximate ridge leverage scores (len(among),), from a weighted sample."""
    square = matrix.block(sample, sample).astype(np.float64)
    ridge = _ridge(square, weights, count, np.finfo(matrix.dtype).eps)
    factor = cholesky(square + np.diag(ridge / weights), lower=True)
    scores = np.empty(len(among))
    for at in panels(len(among), matrix.edge):
        columns = matrix.block(among[at], sample).astype(np.float64).T
        known = (solve_triangular(factor, columns, lower=True) ** 2).sum(axis=0)
        scores[at] = np.maximum(diagonal[among[at]] - known, 0.0) / ridge
    return scores


def _ridge(square: Float64, weights: Float64, count: int, eps: np.floating) -> float:
    """What the weighted sample has besides its largest eigenvalues, spread over as many."""
    k = -(-count // (4 * int(np.ceil(np.log(max(count, 3))))))
    roots = np.sqrt(weights)
    weighted = square * roots[:, None] * roots
    trace, size = float(np.trace(weighted)), len(square)
    rest = 0.0
    if k < size:
        top = eigh(weighted, eigvals_only=True, subset_by_index=(size - k, size - 1))
        rest = (trace - float(top.sum())) / k
    return max(rest, float(eps) * trace, np.finfo(np.float64).tiny)


# -- distances -------------------------------------------------------------------------------------


def _spread(matrix: Operator, count: int, rng: np.random.Generator) -> Chosen:
    """As many proposed at a time as there are already: fewer walks, and few are rejected."""
    n = len(matrix)
    diagonal = matrix.diag().astype(np.float64)
    nearest, owner = np.full(n, np.inf), np.zeros(n, np.int64)
    chosen = rng.integers(n, size=1)
    _come_near(matrix, diagonal, chosen, 0, nearest, owner)
    while len(chosen) < count and nearest.max() > 0:
        size = min(len(chosen), count - len(chosen))
        proposed = rng.choice(n, size=size, p=nearest / nearest.sum())
        fresh = _accepted(matrix, diagonal, proposed, nearest, rng)
        _come_near(matrix, diagonal, fresh, len(chosen), nearest, owner)
        chosen = np.append(chosen, fresh)
    return chosen, np.bincount(owner, minlength=len(chosen)).astype(np.float64)


def _accepted(
    matrix: Operator,
    diagonal: Float64,
    proposed: Indices,
    nearest: Float64,
    rng: np.random.Generator,
) -> Indices:
    """Each with the odds by which those before it have made it less likely."""
    fresh, which = np.unique(proposed, return_inverse=True)
    apart = _squares(matrix, diagonal, fresh, fresh)
    np.fill_diagonal(apart, 0.0)
    accepted: list[int] = []
    for at in which:
        before = nearest[fresh[at]]
        now = min([before, *apart[at, accepted]])
        if rng.random() * before < now:
            accepted.append(int(at))
    return fresh[accepted]


def _come_near(
    matrix: Operator,
    diagonal: Float64,
    fresh: Indices,
    first: int,
    nearest: Float64,
    owner: Indices,
) -> None:
    """Bring what is nearest to each sample up to date; `fresh` are numbered from `first`."""
    for rows in panels(len(matrix), matrix.edge):
        squares = _squares(matrix, diagonal, rows, fresh)
        best = squares.argmin(axis=1)
        closest = squares[np.arange(len(rows)), best]
        closer = closest < nearest[rows]
        nearest[rows] = np.where(closer, closest, nearest[rows])
        owner[rows] = np.where(closer, first + best, owner[rows])
    nearest[fresh] = 0.0
    owner[fresh] = first + np.arange(len(fresh))


def _squares(matrix: Operator, diagonal: Float64, rows: Indices, cols: Indices) -> Float64:
    """Squared distances (len(rows), len(cols)) in feature space; what is rounding is 0."""
    both = diagonal[rows][:, None] + diagonal[cols]
    squares: Float64 = both - 2.0 * matrix.block(rows, cols)
    squares[squares <= 4 * np.finfo(matrix.dtype).eps * both] = 0.0
    return squares


_CHOOSERS: dict[Rule, Callable[[Operator, int, np.random.Generator], Chosen]] = {
    "uniform": _uniform,
    "leverage": _leverage,
    "kmeans++": _spread,
    "cholesky": _pivots,
}
