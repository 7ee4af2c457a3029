"""Who computes for a command: the workers of a cluster, or some of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rntk_dist.cli.options import Cluster

if TYPE_CHECKING:
    from distributed import Client

Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Worker processes on this machine; by default, a core's."
    ),
]


@contextmanager
def cluster_client(cluster: Cluster, workers: int | None) -> "Iterator[Client | None]":
    """A client of the cluster; None for this machine."""
    if workers is not None and cluster.scheduler is not None:
        raise ValueError("--workers are of this machine: leave it out beside --scheduler")
    with cluster.client() as client:
        yield client


@contextmanager
def workers_client(cluster: Cluster, workers: int | None) -> "Iterator[Client | None]":
    """A client of the cluster, or of so many workers here; None for as many as suit the work."""
    with cluster_client(cluster, workers) as client:
        if client is not None or workers is None:
            yield client
            return
    from rntk_dist.cluster import local_client

    with local_client(workers) as client:
        yield client
