"""What a worker tells those who watch it: counters for Prometheus, and logs with fields."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from clusters import client_of
from distributed import Client
from pythonjsonlogger.json import JsonFormatter

from rntk_dist import metrics, tile_task
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore
from rntk_dist.tile_task import attempt_tile

KERNEL = RNTK(sigma_w=1.3)


@pytest.fixture
def store(tmp_path: Path) -> GramStore:
    X = Sequences.from_arrays(np.random.default_rng(0).normal(size=(20, 6)))
    return ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=8)


def scraped(client: Client) -> dict[str, float]:
    """Our counters, as they stand at the endpoint of the cluster's only worker."""
    ports = client.run(lambda dask_worker: dask_worker.service_ports["dashboard"])
    ((address, port),) = ports.items()
    host = address.split("://")[1].split(":")[0]
    with urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line.rsplit(" ", 1) for line in lines if line.startswith("rntk_")]
    return {name: float(value) for name, value in ours if "_created" not in name}


def test_a_workers_endpoint_counts_its_tiles(store: GramStore) -> None:
    with client_of(1, worker_dashboard_address="127.0.0.1:0") as client:
        records = fill(store, client, backend="numpy")
        counted = scraped(client)
    assert counted == {
        'rntk_tiles_total{backend="numpy"}': 6,
        'rntk_pair_steps_total{backend="numpy"}': 20 * 21 / 2 * 6,
        'rntk_tile_seconds_total{backend="numpy"}': pytest.approx(sum(r.seconds for r in records)),
        'rntk_bytes_written_total{backend="numpy"}': sum(r.nbytes for r in records),
        'rntk_tile_retries_total{backend="numpy"}': 0,
    }


def attempt(store: GramStore, tile: Tile, number: int) -> object:
    identity = store.manifest.identity_sha256()
    return attempt_tile(store.location, tile, "numpy", identity, number, "job-1")


def test_a_try_that_fails_is_counted_and_logged_with_job_and_tile(
    store: GramStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = metrics._counters()
    assert counters is not None
    failures, retries = counters.failures.labels("numpy"), counters.retries.labels("numpy")
    before = failures._value.get(), retries._value.get()
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "rntk_dist"):
        patched.setattr(tile_task, "compute_tile", unlucky)
        with pytest.raises(ConnectionError):
            attempt(store, Tile(0, 1), 1)
    with caplog.at_level(logging.INFO, "rntk_dist"):
        attempt(store, Tile(0, 1), 2)
    assert (failures._value.get(), retries._value.get()) == (before[0] + 1, before[1] + 1)
    failed, stored = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert failed == {
        "message": "tile (0, 1) failed with ConnectionError: the drive is away, at try 1",
        "job": "job-1",
        "tile": [0, 1],
        "attempt": 1,
    }
    assert stored["message"].startswith("tile (0, 1) is stored after ")
    assert (stored["job"], stored["tile"], stored["attempt"]) == ("job-1", [0, 1], 2)
    assert stored["pair_steps"] == 8 * 8 * 6
    assert stored["seconds"] > 0


def unlucky(*args: object) -> None:
    raise ConnectionError("the drive is away")


def test_without_prometheus_nothing_is_counted(
    store: GramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setattr(metrics, "_registered", metrics._registered.__wrapped__)
    attempt(store, Tile(0, 0), 1)
    metrics.count_failure("numpy")
    assert metrics._counters() is None
    assert Tile(0, 0) in store.stored_tiles()


def test_threads_that_are_first_at_once_register_once() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor; from rntk_dist import metrics;"
        "pool = ThreadPoolExecutor(16);"
        "list(pool.map(lambda k: metrics.count_failure('numpy'), range(64)));"
        "print(metrics._counters().failures.labels('numpy')._value.get())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("64.0", 0), done.stderr
