"""What a run would take: tiles, bytes, memory and time, from a short calibration; stores nothing.

The time comes from the kernel itself, run for about two seconds on some of the real sequences with
the real backend and number type: on this machine, or on one worker of each crew of a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client
from threadpoolctl import threadpool_limits

from rntk_dist.cluster import NoWorkersError, available_workers, find_workers, form_crews
from rntk_dist.creation import Wanted, samples_of
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.plan import (
    MIB,
    Plan,
    Work,
    Workers,
    check_memory,
    tile_costs,
    total_pair_steps,
    worker_bytes,
)
from rntk_dist.sequences import Sequences

CALIBRATION = 2.0
"""Seconds that a calibration takes, about."""

_FIRST_EDGE, _LAST_EDGE = 4, 2048
_REPEATS = 3
_SAMPLE_BYTES = 32 * MIB


@dataclass(frozen=True)
class Forecast:
    """What computing the tiles of `plan` that are not stored would take.

    `missing` tiles of `pair_steps` in all, the largest of `largest`; `worker_bytes` of memory for
    each worker process; `workers` that would do it, `speed` in pair-steps a second of all together.
    """

    plan: Plan
    missing: int
    pair_steps: int
    largest: int
    worker_bytes: int
    workers: Workers
    speed: float

    @property
    def seconds(self) -> float:
        """Time from the first tile to the last, on workers that do not slow each other down.

        A tile is computed by one worker: a run takes as long as its largest, at least.
        """
        return max(self.pair_steps, self.largest * self.workers.count) / self.speed

    @property
    def core_hours(self) -> float:
        """Hours of work of all workers together."""
        return self.pair_steps / self.speed * self.workers.count / 3600

    def to_dict(self) -> dict[str, Any]:
        """The facts, JSON-able; times in seconds, memory in bytes."""
        return {
            "shape": list(self.plan.shape),
            "symmetric": self.plan.symmetric,
            "tile": self.plan.tile,
            "tiles": {"missing": self.missing, "total": self.plan.n_tiles},
            "bytes_stored": self.plan.bytes_stored,
            "worker_bytes": self.worker_bytes,
            "workers": self.workers.count,
            "worker_limit_bytes": self.workers.memory or None,
            "pair_steps": self.pair_steps,
            "pair_steps_per_second": self.speed,
            "seconds": self.seconds,
            "core_hours": self.core_hours,
        }


def forecast(
    wanted: Wanted,
    client: Client | None = None,
    *,
    workers: int | None = None,
    seconds: float = CALIBRATION,
) -> Forecast:
    """What computing a matrix would take; where its store exists, what is left to do.

    On the client's workers, or without one on as many of this machine as `rd.gram` would start, or
    on so many `workers` of them. The calibration takes about so many `seconds`.

    Raises IdentityError if the store holds another matrix, TileMemoryError if a worker cannot hold
    a tile, NoWorkersError if the client's cluster has none.
    """
    stored = wanted.find()
    plan = wanted.plan_anew(client).plan if stored is None else stored.plan
    missing = list(plan.tiles()) if stored is None else stored.missing_tiles()
    found = available_workers(client, backend=wanted.backend)
    if client is None and workers is not None:
        found = replace(found, count=min(workers, found.count))
    work, samples = wanted.work, samples_of(wanted.X, wanted.Y)
    check_memory(plan, work, samples, found)
    costs = tile_costs(plan, work, samples, missing).values()
    return Forecast(
        plan=plan,
        missing=len(missing),
        pair_steps=sum(costs),
        largest=max(costs, default=0),
        worker_bytes=worker_bytes(plan, work, samples, found.threads),
        workers=found,
        speed=measured_speed(Calibration.of(wanted, seconds), wanted.backend, found, client),
    )


# -- calibration -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """The kernel and some of its sequences, as much as a short measurement needs."""

    kernel: RNTK
    rows: Sequences
    cols: Sequences
    kind: Kind
    dtype: DType
    seconds: float

    @classmethod
    def of(cls, wanted: Wanted, seconds: float = CALIBRATION) -> Calibration:
        """Of sequences drawn at random, always the same, so that lengths are mixed as in all."""
        rng = np.random.default_rng(0)
        rows = _draw(wanted.X, rng)
        cols = _draw(wanted.X if wanted.Y is None else wanted.Y, rng)
        return cls(wanted.kernel, rows, cols, wanted.kind, wanted.dtype, seconds)

    def speed(self, backend: Backend, clock: Callable[[], float] = time.perf_counter) -> float:
        """Pair-steps a second of one thread or GPU.

        A first, small call is not counted: it may compile. Then blocks grow until the next would
        take longer than what is left of the time; the last and largest says how fast it is.
        """
        edge, took = _FIRST_EDGE, 0.0
        with threadpool_limits(1):
            self._compute(edge, backend)
            end = clock() + self.seconds
            for edge in self._edges():
                took = self._seconds(edge, backend, clock, end)
                if clock() + 4 * took > end:
                    break
        samples = samples_of(self.rows[:edge], self.cols[:edge])
        return total_pair_steps(Work.of(self.kernel.to_dict()), samples) / max(took, 1e-9)

    def _seconds(
        self, edge: int, backend: Backend, clock: Callable[[], float], end: float
    ) -> float:
        """The shortest of some runs of a block: in the others, the machine did something else."""
        shortest = float("inf")
        for _ in range(_REPEATS):
            started = clock()
            self._compute(edge, backend)
            now = clock()
            shortest = min(shortest, now - started)
            if now + shortest > end:
                break
        return shortest

    def _compute(self, edge: int, backend: Backend) -> None:
        rows, cols = self.rows[:edge], self.cols[:edge]
        self.kernel(rows, cols, kind=self.kind, dtype=self.dtype, backend=backend)

    def _edges(self) -> Iterator[int]:
        """4, 8, 16, ... and last the whole sample."""
        whole = max(len(self.rows), len(self.cols))
        edge = _FIRST_EDGE
        while edge < whole:
            yield edge
            edge *= 2
        yield whole


def _draw(sequences: Sequences, rng: np.random.Generator) -> Sequences:
    """Some of the sequences, no more than travel to a worker without trouble."""
    n = len(sequences)
    fitting = n * _SAMPLE_BYTES // max(1, sequences.nbytes)
    count = min(n, max(_FIRST_EDGE, min(_LAST_EDGE, fitting)))
    return sequences[rng.choice(n, size=count, replace=False)]


def measured_speed(
    calibration: Calibration, backend: Backend, workers: Workers, client: Client | None
) -> float:
    """Pair-steps a second of all workers; of a cluster, one worker of each crew is measured."""
    if client is None:
        return calibration.speed(backend) * workers.count
    total = 0.0
    for crew in form_crews(find_workers(client), backend):
        options = crew.restrictions()
        future = client.submit(calibration.speed, crew.backend, pure=False, **options)
        total += future.result() * crew.size
    if not total:
        raise NoWorkersError("all workers left during the calibration: start some, and ask again")
    return total
