"""Commands that compute: plan, run, resume."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rntk_dist.cli.exits import interruptible
from rntk_dist.cli.jobs import submit_job
from rntk_dist.cli.options import (
    Cluster,
    Quiet,
    Store,
    Wait,
    required_store,
    takes_cluster,
    takes_job,
)
from rntk_dist.cli.output import Json, print_facts, shown_bytes, shown_seconds
from rntk_dist.cli.routes import print_scales
from rntk_dist.cli.sweeps import resume_sweep
from rntk_dist.cli.workers import Workers, cluster_client, workers_client
from rntk_dist.job_file import JobFile
from rntk_dist.store import GramStore, StoreFormatError, locate, show
from rntk_dist.sweep_store import SweepStore, open_any

if TYPE_CHECKING:
    from rntk_dist.gram import Gram


@takes_cluster
@takes_job
def plan(
    *,
    job: JobFile,
    cluster: Cluster,
    workers: Workers = None,
    samples: Annotated[
        list[int] | None,
        typer.Option(
            min=2,
            metavar="N",
            help="So many sequences like those in DATA, by each route; after runs of half a "
            "minute. May be given again.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run would take, from a calibration of two seconds; computes and stores nothing.

    Takes the same arguments as run. Where the store exists, it says what is left to do. With
    --samples it says how else N sequences could be dealt with, and what each way would cost.
    """
    from rntk_dist.creation import Wanted
    from rntk_dist.forecast import forecast

    where = locate(required_store(job))
    wanted = Wanted(where, job.kernel, *job.sequences(), job.kind, job.tile, job.dtype, job.backend)
    if samples:
        print_scales(wanted, samples, cluster, workers, as_json)
        return
    with cluster_client(cluster, workers) as client:
        found = forecast(wanted, client, workers=workers)
    facts = {"store": job.store, "kind": job.kind, "dtype": job.dtype, **found.to_dict()}
    print_facts(facts if as_json else _readable(facts), as_json)


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    limit = facts["worker_limit_bytes"]
    tiles = facts["tiles"]
    return {
        "store": facts["store"],
        "matrix": f"{facts['shape'][0]} x {facts['shape'][1]} {facts['dtype']} {facts['kind']}",
        "tiles to compute": f"{tiles['missing']} of {tiles['total']}, of edge {facts['tile']}",
        "stored": shown_bytes(facts["bytes_stored"]),
        "workers": facts["workers"],
        "memory a worker": shown_bytes(facts["worker_bytes"])
        + (f" of {shown_bytes(limit)}" if limit else ""),
        "work": f"{facts['pair_steps']:.4g} pair-steps",
        "speed": f"{facts['pair_steps_per_second']:.3g} pair-steps/s",
        "time": shown_seconds(facts["seconds"]),
        "core-hours": f"{facts['core_hours']:.2g}",
    }


@takes_cluster
@takes_job
def run(
    *,
    job: JobFile,
    cluster: Cluster,
    workers: Workers = None,
    wait: Wait = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute a Gram matrix into a store, or go on with it: what is stored is not computed again.

    DATA is a file of sequences, with options for the rest, or a job file, whose entries the options
    replace.
    """
    _run(job, cluster, workers, wait, quiet, as_json)


@takes_cluster
def resume(
    store: Store,
    *,
    cluster: Cluster,
    workers: Workers = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it to the cluster as a job, as submit does.")
    ] = False,
    wait: Wait = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a store that is not whole; kernel, sequences and all else are in it.

    Of a sweep as well as of one matrix.
    """
    opened = open_any(store)
    if isinstance(opened, SweepStore):
        if detach:
            where = show(opened.location)
            raise ValueError(f"{where} holds a sweep, which is no job: leave out --detach")
        resume_sweep(opened, cluster, workers, wait, quiet, as_json)
        return
    job = JobFile.of_store(opened)
    if detach:
        submit_job(job, cluster, 0, as_json)
    elif opened.growing is not None:
        _append(store, None, cluster, workers, wait, quiet, as_json)
    else:
        _run(job, cluster, workers, wait, quiet, as_json)


@takes_cluster
def append(
    store: Store,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="A file of new sequences; none goes on with an interrupted call."
        ),
    ] = None,
    *,
    cluster: Cluster,
    workers: Workers = None,
    wait: Wait = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Extend a finished symmetric matrix by new sequences, in its store; only those are computed.

    The old matrix stays readable until the new one is whole.
    """
    _append(store, data, cluster, workers, wait, quiet, as_json)


def _append(
    store: str,
    data: str | None,
    cluster: Cluster,
    workers: int | None,
    wait: float,
    quiet: bool,
    as_json: bool,
) -> None:
    from rntk_dist.gram import open_gram
    from rntk_dist.job_file import read_sequences

    gram, started = open_gram(store), time.monotonic()
    fresh = None if data is None else read_sequences(data)
    with interruptible(store), workers_client(cluster, workers) as client:
        grown = gram.append(fresh, client=client, progress=not quiet, wait=wait)
    appended = grown.shape[0] - gram.shape[0]
    _print_gram(grown, {"sequences_appended": appended}, time.monotonic() - started, as_json)


def _run(
    job: JobFile, cluster: Cluster, workers: int | None, wait: float, quiet: bool, as_json: bool
) -> None:
    from rntk_dist.gram import gram

    store = required_store(job)
    before, started = _stored(store), time.monotonic()
    X, Y = job.sequences()
    with interruptible(store), workers_client(cluster, workers) as client:
        done = gram(
            job.kernel,
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
    computed = done.plan.n_tiles - len(done.missing) - before
    _print_gram(done, {"tiles_computed": computed}, time.monotonic() - started, as_json)


def _stored(store: str) -> int:
    try:
        found = GramStore.find(locate(store))
    except StoreFormatError:  # a creation that began, or something else, of which the run will tell
        return 0
    return 0 if found is None else len(found.stored_tiles())


def _print_gram(gram: "Gram", news: dict[str, int], seconds: float, as_json: bool) -> None:
    """What the matrix is now, and what is new in it."""
    plan, stored = gram.plan, gram.plan.n_tiles - len(gram.missing)
    facts = {
        "store": show(gram.store.location),
        "shape": list(plan.shape),
        "kind": gram.kind,
        "dtype": gram.dtype.name,
        "tile": plan.tile,
        "tiles": {"stored": stored, "total": plan.n_tiles},
        **news,
        "seconds": round(seconds, 3),
    }
    if as_json:
        print_facts(facts, as_json)
    else:
        new = ", ".join(f"{number} {what}" for what, number in news.items())
        typer.echo(f"{gram}: {new.replace('_', ' ')} in {shown_seconds(seconds)}")
