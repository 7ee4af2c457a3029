"""Kernel ridge regression on matrices of any size; with alpha = 0, interpolation.

`KernelRidge` has the names and meanings of scikit-learn's, on a kernel that is computed already. It
solves by one of three ways, and `solver="auto"` takes the first that fits:

* "cholesky": in memory, 8 n^2 bytes.
* "disk": Cholesky's factorisation in a folder, of about 4 n^2 bytes for each alpha.
* "cg": preconditioned conjugate gradients, which hold a few tiles and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.folder_store import free_bytes
from rntk_dist.operators import Operator, Rescaled
from rntk_dist.solve import cholesky, conjugate_gradients, factor
from rntk_dist.solve.conjugate_gradients import Options
from rntk_dist.solve.memory import GIB, allowed, resident
from rntk_dist.solve.systems import (
    Float64,
    Solution,
    SolverMemoryError,
    Systems,
    alphas_of,
    operator_of,
    targets_of,
)

type Solver = Literal["auto", "cholesky", "disk", "cg"]

_SOLVERS: tuple[Solver, ...] = get_args(Solver.__value__)


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Solutions of several alphas.

    `alphas` (a,); `dual_coef` (a, n) or (a, n, targets); `residuals` (a,) or (a, targets), relative
    to the targets; `leave_one_out`, if asked for, as `dual_coef`: of each sample its target minus
    what the others predict for it. `solver` is the way that was taken.
    """

    alphas: Float64
    dual_coef: Float64
    residuals: Float64
    leave_one_out: Float64 | None
    solver: str


@dataclass(frozen=True)
class Way:
    """How to solve, and with what.

    `memory` is what this process may take in all, in bytes; by default what it has and half of what
    is free. `folder` holds the factors of "disk" or the checkpoint of "cg" (in place of
    `iteration.folder`), so that a killed solve goes on.
    """

    solver: Solver = "auto"
    memory: int | None = None
    folder: str | Path | None = None
    iteration: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver is {self.solver!r}: give one of {', '.join(_SOLVERS)}")
        if self.solver == "disk":
            self._place()

    @property
    def bytes(self) -> int:
        """The memory, or its default."""
        return allowed(self.memory)

    def solve(self, systems: Systems, leave_one_out: bool) -> tuple[Solution, str]:
        """The solution, and the solver that found it."""
        chosen = self._chosen(systems)
        if leave_one_out and chosen == "cg":
            raise ValueError(
                'leave-one-out errors are of the solvers "cholesky", which needs '
                f'{_in_memory(systems) / GIB:.1f} GiB, and "disk", which needs a folder, and '
                f"{chosen!r} is taken: choose one of those, or leave the errors out"
            )
        if chosen == "cholesky":
            return cholesky.solve_in_memory(systems, leave_one_out=leave_one_out), chosen
        if chosen == "disk":
            folder = self._place()
            found = factor.solve_on_disk(
                systems, folder, memory=self.bytes, leave_one_out=leave_one_out
            )
            return found, chosen
        options = self.iteration
        if self.folder is not None:
            options = replace(options, folder=Path(self.folder))
        return conjugate_gradients.solve_by_iteration(systems, options), chosen

    def _chosen(self, systems: Systems) -> str:
        needed, left = _in_memory(systems), self.bytes - resident()
        if self.solver == "cholesky" and needed > left:
            raise SolverMemoryError(
                f"solver cholesky needs {needed / GIB:.1f} GiB for {len(systems.matrix)} samples, "
                f'and {left / GIB:.1f} GiB are left: use "disk" or "cg", or give more memory'
            )
        if self.solver != "auto":
            return self.solver
        if needed <= left:
            return "cholesky"
        return "disk" if self._disk_will_do(systems) else "cg"

    def _place(self) -> Path:
        if self.folder is None:
            raise ValueError('solver "disk" keeps its factor in a folder: give one')
        return Path(self.folder)

    def _disk_will_do(self, systems: Systems) -> bool:
        if self.folder is None:
            return False
        n_alphas = len(np.unique(systems.alphas))
        return factor.disk_needed(len(systems.matrix), n_alphas) < free_bytes(Path(self.folder))


def ridge_path(
    matrix: Operator | ArrayLike,
    y: ArrayLike,
    alphas: Sequence[float],
    *,
    leave_one_out: bool = False,
    way: Way | None = None,
) -> RidgePath:
    """(K + alpha I)^-1 y for several alphas, in one pass over the matrix.

    Parameters
    ----------
    matrix : Operator or (n, n) array
        Symmetric: a stored Gram matrix, a view of one, or an array.
    y : (n,) or (n, targets) array
    alphas : sequence of float
        At least 0.
    leave_one_out : bool
        Whether to tell the leave-one-out errors, in closed form; solver "cg" does not.
    way : Way, optional
        The solver, its memory and its options.

    Raises
    ------
    NotPositiveDefiniteError
        An alpha is too small; the message names one that is not.
    NotConvergedError
        Conjugate gradients stopped short.
    SolverMemoryError
        The solver asked for does not fit into the memory.
    IdentityError
        The folder holds the solve of something else.
    """
    operator, targets = operator_of(matrix), targets_of(y)
    given = np.asarray(alphas, np.float64).reshape(-1)
    count, each = len(given), targets.reshape(len(targets), -1)
    systems = Systems(operator, np.tile(each, (1, count)), np.repeat(given, each.shape[1]))
    solution, solver = (Way() if way is None else way).solve(systems, leave_one_out)
    shape = (len(targets), count, *targets.shape[1:])

    def by_alpha(columns: Float64) -> Float64:
        return np.moveaxis(columns.reshape(shape), 1, 0)

    errors = solution.leave_one_out
    return RidgePath(
        given,
        by_alpha(solution.x),
        solution.residuals.reshape(count, *targets.shape[1:]),
        None if errors is None else by_alpha(errors),
        solver,
    )


class KernelRidge:
    """As scikit-learn's KernelRidge with kernel="precomputed", for matrices of any size.

    `alpha` is a number, or one for each target. After `fit`: `dual_coef_` (n,) or (n, targets),
    `residuals_` (relative to each target), `solver_`, and `leave_one_out_` if asked for.

    >>> import numpy as np
    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> KernelRidge(alpha=1.0).fit(K, [1.0, 0.0]).predict(K)
    array([0.625, 0.125])
    """

    def __init__(
        self,
        alpha: ArrayLike = 1.0,
        *,
        leave_one_out: bool = False,
        way: Way | None = None,
    ) -> None:
        self.alpha, self.leave_one_out, self.way = alpha, leave_one_out, way

    def fit(
        self,
        X: Operator | ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Solve for the symmetric kernel (n, n) of the training samples and targets (n[, targets]).

        Raises what `ridge_path` raises, and ValueError for shapes that do not fit or weights that
        are not positive.
        """
        operator, targets = operator_of(X), targets_of(y)
        each = targets.reshape(len(targets), -1)
        roots = _roots(sample_weight, len(each))
        if sample_weight is not None:
            operator = Rescaled(operator, roots, roots)
        alphas = alphas_of(self.alpha, each.shape[1])
        systems = Systems(operator, each * roots[:, None], alphas)
        way = Way() if self.way is None else self.way
        solution, self.solver_ = way.solve(systems, self.leave_one_out)
        self.dual_coef_ = (solution.x * roots[:, None]).reshape(targets.shape)
        self.residuals_ = solution.residuals.reshape(targets.shape[1:])
        errors = solution.leave_one_out
        self.leave_one_out_ = (
            None if errors is None else (errors / roots[:, None]).reshape(targets.shape)
        )
        return self

    def predict(self, X: Operator | ArrayLike) -> NDArray[Any]:
        """From the kernel (m, n) of other samples with the training samples: (m,) or (m, targets).

        Raises ValueError for another number of columns.
        """
        return operator_of(X, symmetric=False) @ self.dual_coef_


def _roots(weights: ArrayLike | None, n: int) -> Float64:
    """The square roots (n,) of the weights; ones where there are none."""
    given = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    given = np.broadcast_to(given, (n,)) if given.ndim == 0 else given
    if given.shape != (n,) or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(
            f"found weights of shape {given.shape}, least {given.min()}: give a positive number "
            f"for each of the {n} samples, and leave samples out that have none"
        )
    return np.sqrt(given)


def _in_memory(systems: Systems) -> int:
    n, columns = systems.targets.shape
    return cholesky.bytes_needed(n, systems.matrix.edge, columns)
