"""Preconditioned conjugate gradients for many targets and alphas, one product an iteration.

Every column is an iteration of its own, with its own step lengths; they share the products, so that
all targets and alphas together read the matrix once an iteration. A column that has arrived rests.
Before a solution is given, what is left of its targets is measured by one more product, and where
rounding has led the recurrence astray the column starts again from what it has.

With a folder, the state is kept every few iterations, and the preconditioner once: the same call
goes on from there. What is lost with a killed process is the iterations since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rntk_dist.solve.checkpoint import Checkpoint
from rntk_dist.solve.preconditioner import LikeAnInverse, Preconditioner
from rntk_dist.solve.systems import (
    Float64,
    NotConvergedError,
    Solution,
    Systems,
    not_positive,
)

type Bools = NDArray[np.bool_]

STALL = 0.5
"""A start anew that has not brought a column to this part of its residual will not help again."""


@dataclass(frozen=True)
class Options:
    """How to iterate.

    `tol` is the norm of what is left of a target over that of the target, `max_iter` bounds the
    iterations, `rank` is the preconditioner's (0: none), `seed` its; `every` iterations the
    state is kept in `folder`, if there is one.
    """

    tol: float = 1e-6
    max_iter: int = 1000
    rank: int = 200
    seed: int = 0
    folder: Path | None = None
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise ValueError(f"tol is {self.tol}: give a number between 0 and 1")
        for name, least in (("max_iter", 1), ("rank", 0), ("every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {least}")


@dataclass(frozen=True, eq=False)
class State:
    """Between two iterations: solution, residual and direction (n, c) of every column.

    `rho` (c,) is the residual times the preconditioned one, `history` (iterations + 1, c) the
    relative residuals so far, `measured` (c,) those that the last start was from.
    """

    X: Float64
    R: Float64
    P: Float64
    rho: Float64
    history: Float64
    measured: Float64

    def arrays(self) -> dict[str, Float64]:
        """By name, as they are kept."""
        return dict(vars(self))

    @property
    def iterations(self) -> int:
        """How many there have been."""
        return len(self.history) - 1


def solve_by_iteration(
    systems: Systems,
    options: Options | None = None,
    on_iteration: Callable[[int, Float64], None] | None = None,
    preconditioner: LikeAnInverse | None = None,
) -> Solution:
    """The solution of all systems to a relative residual of `tol` each.

    `on_iteration` gets the number of iterations and the relative residuals (c,). A `preconditioner`
    that is given is taken in place of one of `rank`, and must be the same bits where a killed solve
    goes on. Memory is that of the product, 8 n (5 c + 3 rank) bytes and the preconditioner's
    columns.

    Raises NotPositiveDefiniteError where a direction shows that the matrix is not,
    NotConvergedError where `max_iter` or rounding ends the iteration, IdentityError and
    CheckpointError for a folder that holds something else.
    """
    options = Options() if options is None else options
    report = on_iteration or (lambda count, residuals: None)
    return _Iteration(systems, options, report, preconditioner).run()


@dataclass(eq=False)
class _Iteration:
    """One solve."""

    systems: Systems
    options: Options
    report: Callable[[int, Float64], None]
    given: LikeAnInverse | None
    checkpoint: Checkpoint | None = field(init=False)

    def __post_init__(self) -> None:
        folder = self.options.folder
        self.checkpoint = None if folder is None else Checkpoint(folder, self._identity())

    def run(self) -> Solution:
        """Iterate to the end."""
        self.preconditioner = self._preconditioner()
        state = self._begin()
        while True:
            state = self._iterate(state)
            R = self.systems.residuals(state.X)
            found = self.systems.relative(R)
            if (found <= self.options.tol).all():
                state = replace(state, R=R)
                self._keep(state)
                return Solution(state.X, found, history=state.history)
            state = self._start_anew(state, R, found)

    def _iterate(self, state: State) -> State:
        """Until every column seems to have arrived."""
        active = state.history[-1] > self.options.tol
        while active.any():
            if state.iterations >= self.options.max_iter:
                self._keep(state)
                raise self._not_converged(state)
            state = self._step(state, active)
            self.report(state.iterations, state.history[-1])
            if state.iterations % self.options.every == 0:
                self._keep(state)
            active = state.history[-1] > self.options.tol
        return state

    def _step(self, state: State, active: Bools) -> State:
        """One iteration of the active columns."""
        alphas = self.systems.alphas[active]
        P = state.P[:, active]
        AP = self.systems.matrix.product(P) + P * alphas
        curvature = _dots(P, AP)
        self._require_positive(state, P, curvature, alphas)
        length = state.rho[active] / curvature
        X, R, directions = state.X.copy(), state.R.copy(), state.P.copy()
        rho, history = state.rho.copy(), state.history[-1].copy()
        X[:, active] += length * P
        R[:, active] -= length * AP
        Z = self.preconditioner.solve(R[:, active], alphas)
        rho[active] = _dots(R[:, active], Z)
        directions[:, active] = Z + P * (rho[active] / state.rho[active])
        history[active] = self.systems.relative(R)[active]
        return State(X, R, directions, rho, np.vstack([state.history, history]), state.measured)

    def _begin(self) -> State:
        """The state that was kept, or that of a solution of 0."""
        kept = None if self.checkpoint is None else self.checkpoint.load("state")
        if kept is not None:
            return State(**kept)
        R = self.systems.targets
        first = self.systems.relative(R)
        start = State(np.zeros_like(R), R, R, first, first[None], np.full(len(first), np.inf))
        return self._directed(start, first)

    def _directed(self, state: State, measured: Float64) -> State:
        """The state with its first direction, which is the preconditioned residual."""
        Z = self.preconditioner.solve(state.R, self.systems.alphas)
        return replace(state, P=Z, rho=_dots(state.R, Z), measured=measured)

    def _start_anew(self, state: State, R: Float64, found: Float64) -> State:
        """From the true residuals; raises NotConvergedError where that has been of no use."""
        late = found > self.options.tol
        if (
            state.iterations >= self.options.max_iter
            or (late & (found > STALL * state.measured)).any()
        ):
            self._keep(state)
            raise self._stalled(state, found)
        history = state.history.copy()
        history[-1] = found
        return self._directed(replace(state, R=R, history=history), found)

    # -- what is kept ------------------------------------------------------------------------------

    def _identity(self) -> str:
        parts = (self.systems.identity(), self.options.rank, self.options.seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _preconditioner(self) -> LikeAnInverse:
        """The one that was kept: with another, the directions would not fit together."""
        if self.given is not None:
            return self.given
        kept = None if self.checkpoint is None else self.checkpoint.load("preconditioner")
        if kept is not None:
            return Preconditioner(**kept)
        made = Preconditioner.of(self.systems.matrix, self.options.rank, self.options.seed)
        if self.checkpoint is not None:
            self.checkpoint.save("preconditioner", U=made.U, values=made.values)
        return made

    def _keep(self, state: State) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save("state", **state.arrays())

    # -- what can go wrong -------------------------------------------------------------------------

    def _require_positive(
        self, state: State, P: Float64, curvature: Float64, alphas: Float64
    ) -> None:
        """Every direction must see the matrix positive."""
        if (curvature > 0).all():
            return
        worst = int(np.argmin(curvature / _dots(P, P)))
        along = float(curvature[worst] / _dots(P, P)[worst])
        where = f"which shows along a direction of iteration {state.iterations + 1}"
        raise not_positive(self.systems.matrix, float(alphas[worst]), where, 2 * abs(along))

    def _not_converged(self, state: State) -> NotConvergedError:
        worst = int(np.argmax(state.history[-1]))
        kept = "; what is found so far is kept" if self.checkpoint is not None else ""
        return NotConvergedError(
            f"after {state.iterations} iterations the relative residual of system {worst}, alpha = "
            f"{self.systems.alphas[worst]:g}, is {state.history[-1][worst]:.1e}, not "
            f"{self.options.tol:g}{kept}: raise max_iter, {self.preconditioner.remedy}, or alpha"
        )

    def _stalled(self, state: State, found: Float64) -> NotConvergedError:
        worst = int(np.argmax(found))
        return NotConvergedError(
            f"rounding keeps the relative residual of system {worst}, alpha = "
            f"{self.systems.alphas[worst]:g}, at {found[worst]:.1e} after {state.iterations} "
            f"iterations: raise alpha, or tol above that"
        )


def _dots(A: Float64, B: Float64) -> Float64:
    """Of each column of A with that of B: (c,)."""
    dots: Float64 = np.einsum("ij,ij->j", A, B)
    return dots
