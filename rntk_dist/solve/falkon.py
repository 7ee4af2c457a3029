"""Kernel ridge regression on a few centres, for samples in the millions: no (n, n) matrix anywhere.

f(x) = k(x, C) a minimises |K_nm a - y|^2 + alpha a^T K_mm a over m centres C, so that
(K_nm^T K_nm + alpha K_mm) a = K_nm^T y. With all samples as centres that is kernel ridge regression
with the same alpha. A. Rudi, L. Carratino and L. Rosasco, "FALKON: an optimal large scale kernel
method" (NIPS 2017): with Cholesky's factors

    K_mm = T^T T,    A^T A = T W T^T + alpha I,    W: for how many samples each centre stands,

conjugate gradients solve for w = T a, whose matrix T^-T K_nm^T K_nm T^-1 + alpha I is about A^T A.
Each iteration walks once over K_nm, by panels of rows that are computed anew, kept in memory or
read from a folder (see `rntk_dist.solve.panels`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, override

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.operators import Block, Dense, Float64, Indices, Operator
from rntk_dist.solve.center_factors import NearInverse, divided, factorised
from rntk_dist.solve.checkpoint import Checkpoint
from rntk_dist.solve.conjugate_gradients import Options, solve_by_iteration
from rntk_dist.solve.landmarks import Landmarks, Rule, choose_landmarks, landmarks_of
from rntk_dist.solve.memory import allowed, require_room, resident
from rntk_dist.solve.panels import Choice, Panel, Panels, panel_bytes
from rntk_dist.solve.systems import (
    Solution,
    Systems,
    across_of,
    alphas_of,
    operator_of,
    require_alphas,
    require_training,
    targets_of,
)

EVERY_ITERATION = Options(every=1)
"""A walk takes long, and the state of m centres is small."""


@dataclass(frozen=True)
class FalkonWay:
    """How to solve.

    `panels` says where those of K_nm come from: "compute", "memory", "store" or, the first that is
    possible and cheaper than computing, "auto". `memory` is what this process may take in all, in
    bytes; by default what it has and half of what is free. `folder` holds the checkpoint, so that a
    killed fit goes on, and stored panels. `iteration` is tol, max_iter and every.
    """

    panels: Panel = "auto"
    memory: int | None = None
    folder: str | Path | None = None
    iteration: Options = EVERY_ITERATION


@dataclass(frozen=True, eq=False)
class FalkonPath:
    """Solutions of several alphas.

    `alphas` (a,); `dual_coef` (a, m) or (a, m, targets); `residuals` (a,) or (a, targets) of the
    normal equations in w, relative; `history` (iterations + 1, a * targets) of these; `choice` of
    the panels; `jitter` what was added to the diagonal of K_mm.
    """

    alphas: Float64
    dual_coef: Float64
    residuals: Float64
    history: Float64
    choice: Choice
    jitter: float


class Falkon:
    """Kernel ridge regression on a few centres, as `KernelRidge` but for any number of samples.

    Parameters
    ----------
    alpha : float, or one for each target
        As of `KernelRidge`: with all samples as centres the predictions are the same.
    n_centers : int
        How many centres, m, if none are given to `fit`.
    rule, seed
        How they are chosen; see `rntk_dist.solve.landmarks`.
    way : FalkonWay, optional
        Panels, memory, folder, tolerance.

    Attributes
    ----------
    centers_ : (m,) array
        The centres, as indices of the training samples.
    dual_coef_ : (m,) or (m, targets) array
    residuals_ : () or (targets,) array
        Of the normal equations, relative.
    history_ : (iterations + 1, targets) array
        The same after each iteration.
    choice_ : Choice
        Where panels came from, and what was measured for it.
    jitter_ : float
        What was added to the diagonal of K_mm to factorise it.

    Examples
    --------
    >>> import numpy as np
    >>> import rntk_dist as rd
    >>> from rntk_dist.computed import Computed
    >>> X = np.random.default_rng(0).normal(size=(300, 10))
    >>> kernel = rd.RNTK(readout="per_step")
    >>> model = Falkon(alpha=0.1, n_centers=60).fit(Computed(kernel, X), X.sum(axis=1))
    >>> model.predict(kernel(X[:5], X[model.centers_])).shape
    (5,)
    """

    def __init__(
        self,
        alpha: ArrayLike = 1.0,
        n_centers: int = 1000,
        *,
        rule: Rule = "uniform",
        seed: int = 0,
        way: FalkonWay | None = None,
    ) -> None:
        self.alpha, self.n_centers, self.rule, self.seed = alpha, n_centers, rule, seed
        self.way = way

    def fit(
        self,
        X: Operator | ArrayLike,
        y: ArrayLike,
        centers: Landmarks | ArrayLike | None = None,
        on_iteration: Callable[[int, Float64], None] | None = None,
    ) -> Self:
        """Solve for the symmetric kernel (n, n) of the training samples and targets (n[, targets]).

        Of the kernel the columns of the centres are taken, nothing else. `on_iteration` gets the
        number of iterations and the relative residuals. Raises what `falkon_path` raises.
        """
        operator, targets = operator_of(X), targets_of(y)
        each = targets.reshape(len(targets), -1)
        landmarks, way = self._centers(operator, centers), self.way or FalkonWay()
        alphas = alphas_of(self.alpha, each.shape[1])
        fit = _Fit(operator, each, landmarks, way, np.arange(each.shape[1]), alphas)
        solution = fit.solve(on_iteration)
        self.centers_ = fit.landmarks.indices
        self.dual_coef_ = fit.coefficients(solution).reshape(-1, *targets.shape[1:])
        self.residuals_ = solution.residuals.reshape(targets.shape[1:])
        self.history_ = solution.history
        self.choice_, self.jitter_ = fit.panels.choice, fit.jitter
        return self

    def predict(self, X: Operator | ArrayLike) -> NDArray[Any]:
        """From the kernel (q, m) of samples with the centres, in their order: (q,) or (q, targets).

        Raises ValueError for another number of columns.
        """
        return across_of(X, len(self.centers_)) @ self.dual_coef_

    def _centers(self, matrix: Operator, given: Landmarks | ArrayLike | None) -> Landmarks:
        if given is not None:
            return landmarks_of(given, len(matrix))
        return choose_landmarks(matrix, self.n_centers, self.rule, self.seed)


def falkon_path(
    matrix: Operator | ArrayLike,
    y: ArrayLike,
    alphas: Sequence[float],
    centers: Landmarks | ArrayLike,
    way: FalkonWay | None = None,
) -> FalkonPath:
    """Solutions for several alphas, which share the walks over the panels.

    Parameters
    ----------
    matrix : Operator or (n, n) array
        Symmetric: a `Computed` one, a stored Gram matrix, a view.
    y : (n,) or (n, targets) array
    alphas : sequence of float
        At least 0.
    centers : Landmarks or (m,) indices

    Raises
    ------
    SolverMemoryError
        Factors of m centres, or panels that are to be kept, do not fit into the memory.
    NotPositiveDefiniteError
        The kernel is not positive semi-definite, or an alpha too small.
    NotConvergedError
        Conjugate gradients stopped short.
    IdentityError, CheckpointError, DamagedRowsError
        The folder holds the fit of something else, or is damaged.
    """
    operator, targets = operator_of(matrix), targets_of(y)
    given, each = np.asarray(alphas, np.float64).reshape(-1), targets.reshape(len(targets), -1)
    columns = np.tile(np.arange(each.shape[1]), len(given))
    repeated = np.repeat(given, each.shape[1])
    landmarks = landmarks_of(centers, len(operator))
    fit = _Fit(operator, each, landmarks, way or FalkonWay(), columns, repeated)
    solution = fit.solve()
    shape = (len(fit.landmarks), len(given), *targets.shape[1:])
    dual = np.moveaxis(fit.coefficients(solution).reshape(shape), 1, 0)
    residuals = solution.residuals.reshape(len(given), *targets.shape[1:])
    history = np.empty((0, 0)) if solution.history is None else solution.history
    return FalkonPath(given, dual, residuals, history, fit.panels.choice, fit.jitter)


# -- one fit ---------------------------------------------------------------------------------------


class _Fit:
    """The factors of the centres and the panels of all samples, for some systems.

    System c is target `columns[c]` with `alphas[c]`.
    """

    def __init__(
        self,
        matrix: Operator,
        targets: Float64,
        landmarks: Landmarks,
        way: FalkonWay,
        columns: Indices,
        alphas: Float64,
    ) -> None:
        require_training(matrix, targets)
        self.matrix, self.targets, self.landmarks = matrix, targets, landmarks
        self.way, self.columns, self.alphas = way, columns, require_alphas(alphas)
        folder = None if way.folder is None else Path(way.folder)
        self.state = None if folder is None else folder / "state"
        stored = None if folder is None else folder / "panels"
        self.panels = Panels(matrix, landmarks.indices, way.panels, self._room(), stored)
        self.checkpoint = None if self.state is None else Checkpoint(self.state, self._identity())
        self.factor, self.jitter = self._factor()

    def solve(self, on_iteration: Callable[[int, Float64], None] | None = None) -> Solution:
        """w (m, c) of all systems."""
        matrix = _Features(self.panels, self.factor, self._identity())
        systems = Systems(matrix, self._right()[:, self.columns], self.alphas)
        options = replace(self.way.iteration, folder=self.state)
        near = NearInverse.of(self.factor, self.landmarks.weights, self.alphas)
        return solve_by_iteration(systems, options, on_iteration, near)

    def coefficients(self, solution: Solution) -> Float64:
        """a = T^-1 w, of the centres."""
        return divided(self.factor, solution.x)

    # -- what is kept ------------------------------------------------------------------------------

    def _identity(self) -> str:
        digest = hashlib.sha256(f"falkon {self.matrix.identity}".encode())
        for values in (self.landmarks.indices, self.landmarks.weights, self.targets):
            digest.update(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _factor(self) -> tuple[Float64, float]:
        kept = None if self.checkpoint is None else self.checkpoint.load("factor")
        if kept is not None:
            return kept["factor"], float(kept["jitter"])
        at = self.landmarks.indices
        factor, jitter = factorised(self.matrix.block(at, at))
        if self.checkpoint is not None:
            self.checkpoint.save("factor", factor=factor, jitter=np.array(jitter))
        return factor, jitter

    def _right(self) -> Float64:
        """T^-T K_nm^T y, the first walk."""
        kept = None if self.checkpoint is None else self.checkpoint.load("right")
        if kept is not None:
            return kept["right"]
        across = self.panels.transposed_product(self.targets)
        right = divided(self.factor, across, transposed=True)
        if self.checkpoint is not None:
            self.checkpoint.save("right", right=right)
        return right

    # -- memory ------------------------------------------------------------------------------------

    def _room(self) -> int:
        """What is left for panels in memory; raises SolverMemoryError if the rest does not fit."""
        (n, targets), (m, systems) = self.targets.shape, (len(self.landmarks), len(self.alphas))
        factors = (3 + len(np.unique(self.alphas))) * m * m
        walk = panel_bytes(n, m, self.matrix.dtype.itemsize)
        needed: int = 8 * (factors + 2 * n * targets + 8 * m * systems) + walk
        what = f"a fit of {n} samples on {m} centres"
        require_room(needed, self.way.memory, what, "take fewer centres or alphas")
        return allowed(self.way.memory) - resident() - needed


class _Features(Operator):
    """T^-T K_nm^T K_nm T^-1 (m, m): the inner products of what Nystroem's features are of samples.

    Its products are a walk over the panels; blocks are read through them, which nobody need do.
    """

    def __init__(self, panels: Panels, factor: Float64, identity: str) -> None:
        self.panels, self.factor, self._identity = panels, factor, identity

    @property
    @override
    def shape(self) -> tuple[int, int]:
        m = len(self.factor)
        return m, m

    @property
    @override
    def symmetric(self) -> bool:
        return True

    @property
    @override
    def edge(self) -> int:
        return len(self.factor)

    @property
    @override
    def identity(self) -> str:
        return self._identity

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        inner = self.panels.normal_product(divided(self.factor, V))
        return divided(self.factor, inner, transposed=True)

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        return self.product(np.eye(len(self))[:, cols])[rows]

    @override
    def diag(self) -> Block:
        everything = np.arange(len(self))
        return self.block(everything, everything).diagonal().copy()

    @override
    def to_dask(self) -> Any:
        return Dense(np.asarray(self)).to_dask()
