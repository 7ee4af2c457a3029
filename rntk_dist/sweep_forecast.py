"""What a sweep would take: kernels, tiles, bytes, memory and time; stores nothing.

As `forecast` for one matrix, with a calibration for each sort of kernel that is in the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client

from rntk_dist.cluster import available_workers
from rntk_dist.creation import samples_of
from rntk_dist.forecast import CALIBRATION, Calibration, measured_speed
from rntk_dist.kernel.families import Family, families
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Plan, Tile, Work, Workers, check_memory, tile_costs, worker_bytes
from rntk_dist.sweep_creation import WantedSweep
from rntk_dist.sweep_manifest import SweepTile, batched_plan
from rntk_dist.sweep_store import SweepStore

type _Sort = tuple[object, ...]
"""What kernels have in common whose pair-steps take the same time, about."""


@dataclass(frozen=True)
class SweepForecast:
    """What computing the tiles that are not stored would take.

    Of the `kernels` so many are `computed`, the others are multiples of those. `missing` tiles of
    all kernels come in `tasks`, the longest of `longest` seconds; `core_seconds` and `pair_steps`
    are of all of them. `plan` is that of each matrix, `worker_bytes` of each worker process.
    """

    kernels: int
    computed: int
    plan: Plan
    missing: int
    tasks: int
    pair_steps: int
    core_seconds: float
    longest: float
    worker_bytes: int
    workers: Workers

    @property
    def seconds(self) -> float:
        """Time from the first task to the last, on workers that do not slow each other down."""
        return max(self.core_seconds / self.workers.count, self.longest)

    def to_dict(self) -> dict[str, Any]:
        """The facts, JSON-able; times in seconds, memory in bytes."""
        return {
            "kernels": {"total": self.kernels, "computed": self.computed},
            "shape": [self.kernels, *self.plan.shape],
            "symmetric": self.plan.symmetric,
            "tile": self.plan.tile,
            "tiles": {"missing": self.missing, "total": self.kernels * self.plan.n_tiles},
            "tasks": self.tasks,
            "bytes_stored": self.kernels * self.plan.bytes_stored,
            "worker_bytes": self.worker_bytes,
            "workers": self.workers.count,
            "worker_limit_bytes": self.workers.memory or None,
            "pair_steps": self.pair_steps,
            "seconds": self.seconds,
            "core_hours": self.core_seconds / 3600,
        }


def forecast_sweep(
    wanted: WantedSweep,
    client: Client | None = None,
    *,
    workers: int | None = None,
    seconds: float = CALIBRATION,
) -> SweepForecast:
    """What a sweep would take; where its store exists, what is left to do.

    Arguments and errors are those of `forecast`. The calibrations take about so many `seconds`
    together, but half a second each at least.
    """
    found = available_workers(client, backend=wanted.backend)
    if client is None and workers is not None:
        found = replace(found, count=min(workers, found.count))
    groups = families(wanted.kernels)
    plan, tasks = _tasks(wanted, groups, client)
    samples = samples_of(wanted.X, wanted.Y)
    check_memory(plan, wanted.work, samples, found)
    speeds = _speeds(wanted, (wanted.kernels[g.members[0]] for g in groups), found, client, seconds)
    pair_steps, times = _costs(wanted, plan, groups, tasks, speeds)
    return SweepForecast(
        kernels=len(wanted.kernels),
        computed=len(groups),
        plan=plan,
        missing=sum(len(task.kernels) for task in tasks),
        tasks=len(tasks),
        pair_steps=pair_steps,
        core_seconds=sum(times) * found.count,
        longest=max(times, default=0.0) * found.count,
        worker_bytes=worker_bytes(plan, wanted.work, samples, found.threads),
        workers=found,
    )


def _tasks(
    wanted: WantedSweep, groups: list[Family], client: Client | None
) -> tuple[Plan, list[SweepTile]]:
    """How each matrix is cut, and the tasks that are left."""
    members, stored = tuple(group.members for group in groups), wanted.find()
    if isinstance(stored, SweepStore):
        left: Iterable[Tile] = replace(stored, groups=members).missing_tiles()
        plan = stored.manifest.plan
    else:
        plan = wanted.plan_anew(client).plan
        left = batched_plan(plan, members).tiles()
    return plan, [task for task in left if isinstance(task, SweepTile)]


def _sort(kernel: RNTK) -> _Sort:
    return kernel.activation, kernel.depth, kernel.bidirectional, kernel.readout


def _speeds(
    wanted: WantedSweep,
    leads: Iterable[RNTK],
    found: Workers,
    client: Client | None,
    seconds: float,
) -> dict[_Sort, float]:
    """Pair-steps a second of all workers together, for each sort of kernel."""
    sorts = {_sort(kernel): kernel for kernel in leads}
    each = Calibration.of(wanted, max(seconds / len(sorts), min(seconds, 0.5)))
    return {
        sort: measured_speed(replace(each, kernel=kernel), wanted.backend, found, client)
        for sort, kernel in sorts.items()
    }


def _costs(
    wanted: WantedSweep,
    plan: Plan,
    groups: list[Family],
    tasks: list[SweepTile],
    speeds: Mapping[_Sort, float],
) -> tuple[int, list[float]]:
    """Pair-steps of all tasks, and for each the seconds that all workers together would take."""
    leads = {k: wanted.kernels[group.members[0]] for group in groups for k in group.members}
    samples, costs = samples_of(wanted.X, wanted.Y), {}
    for work in {Work.of(kernel.to_dict()) for kernel in leads.values()}:
        costs[work] = tile_costs(plan, work, samples, plan.tiles())
    total, times = 0, []
    for task in tasks:
        seconds = 0.0
        for lead in {leads[k] for k in task.kernels}:
            steps = costs[Work.of(lead.to_dict())][Tile(task.row, task.col)]
            total, seconds = total + steps, seconds + steps / speeds[_sort(lead)]
        times.append(seconds)
    return total, times
