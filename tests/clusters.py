"""Dask clusters on loopback, each with a client that is no default, closed on leaving."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client, LocalCluster


def cluster_of(n_workers: int, **options: Any) -> LocalCluster:
    """Worker processes of one thread, unless told otherwise, on free ports."""
    usual = {"threads_per_worker": 1, "processes": True, "silence_logs": 50}
    loopback = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    return LocalCluster(n_workers=n_workers, **loopback, **(usual | options))


@contextmanager
def client_of(n_workers: int, **options: Any) -> Iterator[Client]:
    """A client of `cluster_of`."""
    with (
        cluster_of(n_workers, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def wait_until_idle(client: Client, seconds: float = 60.0) -> None:
    """Until no worker runs a task, a cancelled one included: that goes on to its end."""
    deadline = time.monotonic() + seconds
    # By value, as Dask sends what has no name: not all workers can import the tests.
    while any(client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
        assert time.monotonic() < deadline, "workers are still busy"
        time.sleep(0.05)
