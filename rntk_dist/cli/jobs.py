"""Commands about jobs, which a cluster drives on its own: submit, status, jobs, cancel."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rntk_dist.cli.exits import ExitCode
from rntk_dist.cli.options import Cluster, Store, required_store, takes_cluster, takes_job
from rntk_dist.cli.output import Json, print_facts, print_table, shown_seconds
from rntk_dist.job_file import JobFile
from rntk_dist.plan import TileMemoryError

if TYPE_CHECKING:
    from distributed import Client

    from rntk_dist.job import Job

Priority = Annotated[
    int, typer.Option(help="Tiles of a job with a higher number go before those of others.")
]

_HEALTHY = ("queued", "running", "done", "cancelled")


@takes_cluster
@takes_job
def submit(
    *, job: JobFile, cluster: Cluster, priority: Priority = 0, as_json: Json = False
) -> None:
    """Have a cluster compute a Gram matrix; returns as soon as the sequences are stored.

    Takes the same arguments as run, and needs `--scheduler`. The job goes on without this command:
    ask how it is with `rntk-dist status STORE`.
    """
    submit_job(job, cluster, priority, as_json)


def submit_job(job: JobFile, cluster: Cluster, priority: int, as_json: bool) -> None:
    """Submit it, and say what it is called. Raises ValueError without a scheduler or a store."""
    from rntk_dist.job import submit

    store = required_store(job)
    with cluster.required() as client:
        submitted = submit(
            job.kernel,
            *job.sequences(),
            store=store,
            client=client,
            kind=job.kind,
            tile=job.tile,
            dtype=job.dtype,
            backend=job.backend,
            priority=priority,
        )
        print_facts(submitted.status().to_dict(), as_json)


@takes_cluster
def status(
    store: Store,
    *,
    cluster: Cluster,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return only when the job has ended.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How the last job of a store is; needs no cluster, only the store.

    With `--scheduler` the cluster is asked, too, whether it still has a job that nobody has begun.
    """
    with cluster.client() as client:
        job = _job(store, client)
        if wait:
            with suppress(RuntimeError, TileMemoryError):  # its status tells what it failed with
                job.wait()
        found = job.status()
    print_facts(found.to_dict(), as_json)
    raise typer.Exit(ExitCode.DONE if found.state in _HEALTHY else ExitCode.FAILED)


@takes_cluster
def jobs(*, cluster: Cluster, as_json: Json = False) -> None:
    """The jobs that a cluster has in hand, oldest first; needs `--scheduler`.

    One that has ended is in its store: `rntk-dist status STORE`.
    """
    from rntk_dist.job import jobs

    with cluster.required() as client:
        found = [_facts(job) for job in jobs(client)]
    if as_json:
        print_facts({"jobs": found}, as_json)
    else:
        print_table(_COLUMNS, [_row(facts) for facts in found])


_COLUMNS = ("job", "state", "tiles", "pair-steps/s", "left", "workers", "store")


def _facts(job: "Job") -> dict[str, Any]:
    try:
        return job.status().to_dict()
    except OSError as error:  # the cluster may see stores that this machine does not
        return {"id": job.id, "store": str(job.store), "state": "unknown", "message": str(error)}


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    if facts["state"] == "unknown":
        return facts["id"], facts["state"], "", "", "", "", f"{facts['store']}: {facts['message']}"
    left = facts["eta_seconds"]
    return (
        facts["id"],
        facts["state"],
        f"{facts['tiles_done']}/{facts['tiles_total']}",
        f"{facts['pair_steps_per_second']:.2g}",
        "" if left is None else shown_seconds(left),
        str(facts["workers"]),
        facts["store"],
    )


@takes_cluster
def cancel(store: Store, *, cluster: Cluster, as_json: Json = False) -> None:
    """Ask the last job of a store to stop, which it does within seconds; what is stored is kept.

    With `--scheduler` a job that nobody has begun is taken off the cluster, too.
    """
    with cluster.client() as client:
        job = _job(store, client)
        job.cancel()
        found = job.status()
    print_facts(found.to_dict(), as_json)


def _job(store: str, client: "Client | None") -> "Job":
    from rntk_dist.job import NoJobError, connect

    try:
        return connect(store, client)
    except NoJobError as error:
        raise ValueError(
            f"{store} has had no job: `rntk-dist info {store}` says how far it is"
        ) from error
