"""The command that computes the matrices of many kernels into one store: sweep; and its facts."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from rntk_dist.cli.exits import interruptible
from rntk_dist.cli.options import Cluster, Quiet, Wait, required_store, takes_cluster, takes_job
from rntk_dist.cli.output import Json, print_facts, shown_bytes, shown_seconds
from rntk_dist.cli.workers import Workers, cluster_client, workers_client
from rntk_dist.job_file import JobFile
from rntk_dist.sequences import Sequences
from rntk_dist.store import StoreFormatError, locate, show
from rntk_dist.sweep_store import SweepStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client

    from rntk_dist.kernel.rntk import RNTK
    from rntk_dist.sweep import Sweep

_Over = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=V1,V2,...",
        help="Values of one option of the kernel, such as sigma_b=0,0.1,0.5; once for each option.",
        rich_help_panel="Kernel",
    ),
]
_Plan = Annotated[
    bool,
    typer.Option("--plan", help="Only say what it would take; computes and stores nothing."),
]


@takes_cluster
@takes_job
def sweep(
    *,
    job: JobFile,
    over: _Over = None,
    plan: _Plan = False,
    cluster: Cluster,
    workers: Workers = None,
    wait: Wait = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute the matrices of many kernels into one store, or go on with them.

    Takes the same arguments as run, and --over for each option that is to have several values: the
    kernels are all combinations, the last option changing fastest.
    """
    from rntk_dist.sweep import grid

    kernels, store = grid(job.kernel, dict(map(_values, over or []))), required_store(job)
    X, Y = job.sequences()
    if plan:
        _plan(kernels, X, Y, job, cluster, workers, as_json)
        return
    with interruptible(store), workers_client(cluster, workers) as client:
        _run(kernels, X, Y, job, client, wait, quiet, as_json)


def resume_sweep(
    opened: SweepStore,
    cluster: Cluster,
    workers: int | None,
    wait: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Go on with a sweep, whose kernels and sequences are in its store."""
    from rntk_dist.kernel.rntk import RNTK

    kernels = [RNTK.from_dict(dict(options)) for options in opened.manifest.kernels]
    job = JobFile.of_store(opened)
    X, Y = opened.sequences(), opened.sequences_y()
    with interruptible(required_store(job)), workers_client(cluster, workers) as client:
        _run(kernels, X, Y, job, client, wait, quiet, as_json)


def _run(
    kernels: "Sequence[RNTK]",
    X: Sequences,
    Y: Sequences | None,
    job: JobFile,
    client: "Client | None",
    wait: float,
    quiet: bool,
    as_json: bool,
) -> None:
    from rntk_dist.sweep import sweep as run

    store, started = required_store(job), time.monotonic()
    before = _stored(store)
    done = run(
        kernels,
        X,
        Y,
        store=store,
        kind=job.kind,
        client=client,
        tile=job.tile,
        dtype=job.dtype,
        backend=job.backend,
        progress=not quiet,
        wait=wait,
    )
    _print_sweep(done, sum(done.progress()) - before, time.monotonic() - started, as_json)


def _stored(store: str) -> int:
    try:
        found = SweepStore.find(locate(store))
    except StoreFormatError:  # a creation that began, or something else, of which the run will tell
        return 0
    return 0 if found is None else len(found.stored())


def _values(given: str) -> tuple[str, list[Any]]:
    """The name and the values in NAME=V1,V2,...; numbers, words, true and false."""
    name, separator, values = given.partition("=")
    if not separator or not values:
        raise ValueError(f"--over {given}: expected NAME=V1,V2,... such as sigma_b=0,0.1,0.5")
    return name.strip().replace("-", "_"), [yaml.safe_load(value) for value in values.split(",")]


def _print_sweep(sweep: "Sweep", computed: int, seconds: float, as_json: bool) -> None:
    stored, total = sum(sweep.progress()), len(sweep) * sweep.plan.n_tiles
    if not as_json:
        typer.echo(f"{sweep}: {computed} tiles computed in {shown_seconds(seconds)}")
        return
    facts = {
        "store": show(sweep.store.location),
        "shape": list(sweep.shape),
        "kind": sweep.kind,
        "dtype": sweep.dtype.name,
        "tile": sweep.plan.tile,
        "tiles": {"stored": stored, "total": total},
        "tiles_computed": computed,
        "seconds": round(seconds, 3),
    }
    print_facts(facts, as_json)


# -- what it would take ----------------------------------------------------------------------------


def _plan(
    kernels: "Sequence[RNTK]",
    X: Sequences,
    Y: Sequences | None,
    job: JobFile,
    cluster: Cluster,
    workers: int | None,
    as_json: bool,
) -> None:
    from rntk_dist.sweep_creation import wanted_sweep
    from rntk_dist.sweep_forecast import forecast_sweep

    wanted = wanted_sweep(
        kernels,
        X,
        Y,
        where=locate(required_store(job)),
        kind=job.kind,
        tile=job.tile,
        dtype=job.dtype,
        backend=job.backend,
    )
    with cluster_client(cluster, workers) as client:
        found = forecast_sweep(wanted, client, workers=workers)
    facts = {"store": job.store, "kind": job.kind, "dtype": job.dtype, **found.to_dict()}
    print_facts(facts if as_json else _readable_plan(facts), as_json)


def _readable_plan(facts: dict[str, Any]) -> dict[str, Any]:
    limit, (_, rows, cols) = facts["worker_limit_bytes"], facts["shape"]
    kernels, tiles = facts["kernels"], facts["tiles"]
    others = kernels["total"] - kernels["computed"]
    return {
        "store": facts["store"],
        "kernels": f"{kernels['total']}"
        + (f", {others} of which are multiples of others" if others else ""),
        "each matrix": f"{rows} x {cols} {facts['dtype']} {facts['kind']}",
        "tiles to compute": f"{tiles['missing']} of {tiles['total']}, of edge {facts['tile']}, "
        f"in {facts['tasks']} tasks",
        "stored": shown_bytes(facts["bytes_stored"]),
        "workers": facts["workers"],
        "memory a worker": shown_bytes(facts["worker_bytes"])
        + (f" of {shown_bytes(limit)}" if limit else ""),
        "work": f"{facts['pair_steps']:.4g} pair-steps",
        "time": shown_seconds(facts["seconds"]),
        "core-hours": f"{facts['core_hours']:.2g}",
    }


# -- what a store holds ----------------------------------------------------------------------------


def sweep_facts(store: SweepStore) -> dict[str, Any]:
    """Of the store of a sweep, JSON-able: `each` has the values of the options kernel by kernel."""
    from rntk_dist.sweep_view import distinct

    manifest, plan = store.manifest, store.manifest.plan
    counts, total = store.stored_a_kernel(), len(manifest.kernels) * plan.n_tiles
    whole, empty = sum(n == plan.n_tiles for n in counts), counts.count(0)
    size = store.plan.bytes_stored
    return {
        "store": show(store.location),
        "kernels": {
            "total": len(counts),
            "whole": whole,
            "begun": len(counts) - whole - empty,
            "empty": empty,
        },
        "varying": distinct(manifest.varying),
        "same": dict(manifest.same),
        "each": {name: list(values) for name, values in manifest.varying.items()},
        "kind": manifest.kind,
        "dtype": manifest.dtype.name,
        "shape": list(manifest.shape),
        "symmetric": plan.symmetric,
        "tile": plan.tile,
        "tiles": {"stored": sum(counts), "total": total},
        "tiles_a_kernel": counts,
        "bytes": {"stored": size * sum(counts) // total, "total": size},
        "identity_sha256": manifest.identity_sha256(),
        "provenance": dict(manifest.provenance),
        "report": store.report(),
    }


def readable(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a sweep without what has a value for each kernel."""
    from rntk_dist.sweep_view import listed

    left = {k: v for k, v in facts.items() if k not in ("each", "tiles_a_kernel", "varying")}
    varying = {name: listed(values) for name, values in facts["varying"].items()}
    return {"store": left.pop("store"), "kernels": left.pop("kernels"), **varying, **left}
