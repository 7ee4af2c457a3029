"""Ways to use a kernel on N samples, and what each would cost: arithmetic alone, for any N.

A matrix of N samples takes bytes and pair-steps by N², so that from some N on it is cheaper to
compute it again whenever it is needed, then to use only some of its columns, or to keep only the
nearest neighbours of each sample. What is cheapest where follows from a few rates, which a `Trial`
measures on the cluster that is to do it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

from rntk_dist.plan import (
    MIB,
    SECONDS_PER_PAIR_STEP,
    TILE_STEP,
    Plan,
    Workers,
    ceil_div,
    choose_edge,
)

SCHEDULER_BYTES = 105 * MIB
SCHEDULER_BYTES_A_TILE = 600
"""Of Dask's scheduler: without tiles, and for each that it has seen (measured: docs/scale.md)."""


@dataclass(frozen=True)
class Rates:
    """How fast a cluster is.

    `start` seconds until the first tile is begun, `tile` seconds more for each tile however small,
    `pair_steps` a second of all workers with what they store, `reading` bytes a second of a product
    with a stored matrix, `flops` a second of a dense factorisation in one process. `workers` do it;
    `on_gpu` says that they are GPUs.
    """

    start: float
    tile: float
    pair_steps: float
    reading: float
    flops: float
    workers: Workers
    on_gpu: bool = False


@dataclass(frozen=True)
class Problem:
    """N samples like those that are at hand.

    A pair takes `pair_steps` on average, a value `itemsize` bytes. Solving is for `targets` columns
    by `iterations` products, or on `centres` by `passes`; `neighbors` are kept of each sample.
    `room` is what the store's place has left, in bytes (None: unknown).
    """

    n: int
    pair_steps: float
    itemsize: int = 4
    targets: int = 10
    iterations: int = 30
    passes: int = 22
    neighbors: int = 10
    room: int | None = None

    @property
    def centres(self) -> int:
        """6 sqrt(N), in whole blocks: Falkon needs some multiple of sqrt(N) for its full accuracy.

        Rudi, Carratino and Rosasco, FALKON: an optimal large scale kernel method (2017).
        """
        return min(self.n, ceil_div(6 * isqrt(self.n), TILE_STEP) * TILE_STEP)


@dataclass(frozen=True)
class Route:
    """One way, and its cost; `seconds` by the clock, `refused` says why it cannot be taken here."""

    name: str
    gives: str
    bytes_stored: int
    pair_steps: int
    tasks: int
    memory: int
    seconds: float
    refused: str = ""

    @property
    def scheduler_bytes(self) -> int:
        """Memory of the scheduler in the end."""
        return SCHEDULER_BYTES + SCHEDULER_BYTES_A_TILE * self.tasks


@dataclass(frozen=True)
class Scale:
    """All routes for one number of samples, with the rates that they are computed from."""

    problem: Problem
    rates: Rates
    routes: tuple[Route, ...]

    @property
    def cheapest(self) -> Route | None:
        """Of those that solve a regression: the one that takes least time; None if none can."""
        able = [route for route in self.routes if route.name in _SOLVING and not route.refused]
        return min(able, key=lambda route: route.seconds, default=None)

    @property
    def why(self) -> str:
        """What speaks for the cheapest route, in one sentence."""
        best = self.cheapest
        if best is None:
            return "none can be taken: " + "; ".join(r.refused for r in self.routes if r.refused)
        others = [route for route in self.routes if route.name in _SOLVING and route is not best]
        return "; ".join(
            f"{route.name}: {route.refused or f'{route.seconds / best.seconds:.3g} times as long'}"
            for route in others
        )

    def hours(self, route: Route) -> float:
        """Of all workers together."""
        return route.seconds * self.rates.workers.count / 3600

    def to_dict(self) -> dict[str, Any]:
        """The facts, JSON-able; times in seconds and hours, memory in bytes."""
        unit = "gpu_hours" if self.rates.on_gpu else "core_hours"
        best = self.cheapest
        return {
            "samples": self.problem.n,
            "routes": [
                {
                    **asdict(route),
                    unit: self.hours(route),
                    "scheduler_bytes": route.scheduler_bytes,
                }
                for route in self.routes
            ],
            "cheapest": None if best is None else best.name,
            "why": self.why,
        }


_SOLVING = ("store", "recompute", "nystroem")


def plan_for(problem: Problem, rates: Rates) -> Plan:
    """The symmetric matrix of all samples, cut as `choose_tile` would cut it."""
    n = problem.n
    pairs = n * (n + 1) // 2
    seconds = pairs * problem.pair_steps * SECONDS_PER_PAIR_STEP
    edge = choose_edge(pairs, seconds, rates.workers, problem.itemsize)
    return Plan(n, n, min(edge, n), True, problem.itemsize)


def filling(plan: Plan, pair_steps: int, rates: Rates) -> float:
    """Seconds to compute and store all tiles of a matrix."""
    return rates.start + plan.n_tiles * rates.tile + pair_steps / rates.pair_steps


def scale(problem: Problem, rates: Rates) -> Scale:
    """What each route would cost."""
    plan = plan_for(problem, rates)
    pairs = problem.n * (problem.n + 1) // 2
    work = int(pairs * problem.pair_steps)
    return Scale(
        problem,
        rates,
        (
            _store(problem, rates, plan, work),
            _recompute(problem, rates, plan, work),
            _nystroem(problem, rates, plan),
            _neighbors(problem, rates, plan),
        ),
    )


def _store(problem: Problem, rates: Rates, plan: Plan, work: int) -> Route:
    size = plan.bytes_stored
    refused = ""
    if problem.room is not None and size > problem.room:
        refused = f"needs {_gib(size)} GiB of storage, and {_gib(problem.room)} are left"
    products = problem.iterations * size / rates.reading
    return Route(
        "store",
        "every value; regression by conjugate gradients",
        size,
        work,
        plan.n_tiles,
        _columns(problem),
        filling(plan, work, rates) + products,
        refused,
    )


def _recompute(problem: Problem, rates: Rates, plan: Plan, work: int) -> Route:
    return Route(
        "recompute",
        "regression by conjugate gradients, nothing stored",
        0,
        work * problem.iterations,
        plan.n_tiles * problem.iterations,
        _columns(problem),
        rates.start + problem.iterations * (filling(plan, work, rates) - rates.start),
    )


def _nystroem(problem: Problem, rates: Rates, plan: Plan) -> Route:
    n, m = problem.n, problem.centres
    work = int((n + m / 2) * m * problem.pair_steps)
    tasks = ceil_div(n, plan.tile) * ceil_div(m, plan.tile)
    once = tasks * rates.tile + work / rates.pair_steps
    size = n * m * problem.itemsize
    again = size / rates.reading
    kept = again < once and (problem.room is None or size <= problem.room)
    factors = 2 * m**3 / 3 / rates.flops
    passes = (problem.passes - 1) * (again if kept else once)
    return Route(
        "nystroem",
        f"regression on {m} centres, panels {'stored' if kept else 'computed again'}",
        size if kept else 0,
        work if kept else work * problem.passes,
        tasks if kept else tasks * problem.passes,
        16 * m * m,
        rates.start + once + passes + factors,
    )


def _neighbors(problem: Problem, rates: Rates, plan: Plan) -> Route:
    work = int(problem.n**2 * problem.pair_steps)
    tasks = plan.grid[0] * plan.grid[1]
    return Route(
        "neighbors",
        f"the {problem.neighbors} nearest of each sample",
        problem.n * problem.neighbors * (8 + problem.itemsize),
        work,
        tasks,
        0,
        rates.start + tasks * rates.tile + work / rates.pair_steps,
    )


def _columns(problem: Problem) -> int:
    """Bytes of conjugate gradients with a preconditioner of rank 300."""
    return 8 * problem.n * (5 * problem.targets + 3 * 300)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f}"
