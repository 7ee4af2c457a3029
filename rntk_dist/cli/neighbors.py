"""The command that finds nearest neighbours by the kernel: neighbors."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from rntk_dist.cli.exits import interruptible
from rntk_dist.cli.options import Cluster, Quiet, Wait, takes_cluster, takes_job
from rntk_dist.cli.output import Json, print_facts, shown_seconds
from rntk_dist.job_file import JobFile

if TYPE_CHECKING:
    from rntk_dist.neighbors import Neighbors

_K = Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours of each sequence.")]
_Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="An .npz file for `indices` and `values`, (sequences, k) each."
    ),
]


@takes_cluster
@takes_job
def neighbors(
    *,
    job: JobFile,
    k: _K = 10,
    output: _Output = None,
    cluster: Cluster,
    wait: Wait = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the k sequences of --against that the kernel is largest for, for each of DATA.

    No matrix is made. With --store it goes on where it was; without --scheduler it runs here, and
    without --store nothing is kept but --output.
    """
    from rntk_dist.neighbors import neighbors as find

    X, Y = job.sequences()
    if Y is None:
        raise ValueError("neighbours are looked for in a second file: add --against DATA2")
    _check_kept(job.store, output)
    started = time.monotonic()
    with interruptible(job.store or ""), cluster.client() as client:
        found = find(
            job.kernel,
            X,
            Y,
            k,
            kind=job.kind,
            dtype=job.dtype,
            backend=job.backend,
            store=job.store,
            client=client,
            tile=job.tile,
            progress=not quiet,
            wait=wait,
        )
    if output is not None:
        with output.open("xb") as file:
            np.savez(file, indices=found.indices, values=found.values)
    _print(found, len(Y), job, output, time.monotonic() - started, as_json)


def _check_kept(store: str | None, output: Path | None) -> None:
    if store is None and output is None:
        raise ValueError("nothing would be kept: add --store STORE, --output FILE.npz, or both")
    if output is not None and output.suffix != ".npz":
        raise ValueError(f"{output}: suffix {output.suffix!r} cannot be written: use .npz")
    if output is not None and output.exists():
        raise FileExistsError(f"{output}: exists already: remove it or choose another name")


def _print(
    found: "Neighbors",
    training: int,
    job: JobFile,
    output: Path | None,
    seconds: float,
    as_json: bool,
) -> None:
    queries, k = found.indices.shape
    if not as_json:
        where = " and ".join(str(place) for place in (job.store, output) if place is not None)
        taken = shown_seconds(seconds)
        typer.echo(f"{k} of {training} for each of {queries} in {taken}, in {where}")
        return
    facts = {
        "store": job.store,
        "output": None if output is None else str(output),
        "queries": queries,
        "training": training,
        "k": k,
        "kind": job.kind,
        "dtype": job.dtype,
        "seconds": round(seconds, 3),
    }
    print_facts(facts, as_json)
