"""The command that computes the matrices of many kernels into one store: sweep."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from rntk_dist.cli.exits import interruptible
from rntk_dist.cli.matrices import Workers, workers_client
from rntk_dist.cli.options import Cluster, Quiet, Wait, required_store, takes_cluster, takes_job
from rntk_dist.cli.output import Json, print_facts, shown_seconds
from rntk_dist.job_file import JobFile
from rntk_dist.store import show

if TYPE_CHECKING:
    from rntk_dist.sweep import Sweep

_Over = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=V1,V2,...",
        help="Values of one option of the kernel, such as sigma_b=0,0.1,0.5; once for each option.",
        rich_help_panel="Kernel",
    ),
]


@takes_cluster
@takes_job
def sweep(
    *,
    job: JobFile,
    over: _Over = None,
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
    from rntk_dist.sweep import sweep as run

    store, started = required_store(job), time.monotonic()
    kernels = grid(job.kernel, dict(map(_values, over or [])))
    X, Y = job.sequences()
    with interruptible(store), workers_client(cluster, workers) as client:
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
    _print_sweep(done, time.monotonic() - started, as_json)


def _values(given: str) -> tuple[str, list[Any]]:
    """The name and the values in NAME=V1,V2,...; numbers, words, true and false."""
    name, separator, values = given.partition("=")
    if not separator or not values:
        raise ValueError(f"--over {given}: expected NAME=V1,V2,... such as sigma_b=0,0.1,0.5")
    return name.strip().replace("-", "_"), [yaml.safe_load(value) for value in values.split(",")]


def _print_sweep(sweep: "Sweep", seconds: float, as_json: bool) -> None:
    stored, total = sum(sweep.progress()), len(sweep) * sweep.plan.n_tiles
    if not as_json:
        typer.echo(f"{sweep} in {shown_seconds(seconds)}")
        return
    facts = {
        "store": show(sweep.store.location),
        "shape": list(sweep.shape),
        "kind": sweep.kind,
        "dtype": sweep.dtype.name,
        "tile": sweep.plan.tile,
        "tiles": {"stored": stored, "total": total},
        "seconds": round(seconds, 3),
    }
    print_facts(facts, as_json)
