"""Sweeps whose processes are killed: nothing that was stored is written again, and no bit differs.

The workers are those of `test_faults`. Each chunk that is about to be stored is written down first,
so what is counted is how often each was computed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import psutil
import pytest
from clusters import client_of
from distributed import Client
from test_faults import TAKES_LONG, Workers, ended, family, preload, scheduler, wait_until

import rntk_dist as rd
from rntk_dist.compute import fill
from rntk_dist.failures import TileError
from rntk_dist.lease import StoreBusyError
from rntk_dist.sweep_creation import wanted_sweep
from rntk_dist.sweep_store import SweepStore

TILE = 8  # 40 sequences: 5 x 5 tiles, 15 of each kernel stored
# The second is a multiple of the first, by a factor that rounds: it comes of the first alone.
KERNELS = [
    rd.RNTK(sigma_w=1.3),
    rd.RNTK(sigma_w=1.3, sigma_v=1.7),
    *(rd.RNTK(sigma_w=1.4, sigma_b=b) for b in (0.1, 0.2, 0.3, 0.4)),
]
N_CHUNKS = 15 * len(KERNELS)
GROUPS = ((0, 1, 2), (3, 4, 5))
"""Kernels that stay in one task."""

NOTED = """
def noted(store, key):
    if key.startswith("gram/c/"):
        note(key.removeprefix("gram/c/"))
on_request("set", noted)
"""

HELD = """
def held(store, key):
    if key.startswith("gram/c/"):
        begun = (HERE / "started").read_text().count("/") // 2
        time.sleep(0.02 if begun <= MOST else 600)
on_request("set", held)
"""
"""Before `NOTED`: no more than so many chunks are stored, until somebody kills the worker."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a scheduler whose workers each test starts and kills."""
    with scheduler() as client:
        yield client


@pytest.fixture(scope="module")
def healthy() -> Iterator[Client]:
    """Workers that are threads of this process, in which nothing fails."""
    with client_of(1, threads_per_worker=2, processes=False, protocol="tcp") as client:
        yield client


@pytest.fixture
def workers(client: Client, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(client.scheduler_info()["address"], tmp_path / "faults")
    try:
        yield started
    finally:
        started.kill_all()


@pytest.fixture(scope="module")
def X() -> rd.Sequences:
    rng = np.random.default_rng(11)
    return rd.Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 12, 40)])


def swept(where: Path, X: rd.Sequences, client: Client, **options: object) -> rd.Sweep:
    how: dict = {"tile": TILE, "backend": "numpy", "progress": False} | options
    return rd.sweep(KERNELS, X, store=where, client=client, **how)


@pytest.fixture(scope="module")
def uninterrupted(
    healthy: Client, X: rd.Sequences, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    where = tmp_path_factory.mktemp("uninterrupted") / "sweep"
    swept(where, X, healthy)
    return contents(where)


def contents(where: Path) -> dict[str, bytes]:
    """Each chunk that is stored, by kernel/row/column."""
    found = {path for path in where.glob("gram/c/*/*/*") if not path.suffix}
    return {str(path.relative_to(where / "gram/c")): path.read_bytes() for path in found}


def times(folder: Path) -> Counter[str]:
    """How often each chunk was about to be stored."""
    lines = (folder / "started").read_text().splitlines()
    return Counter(line for line in lines if "/" in line)


def resumed(
    where: Path, X: rd.Sequences, healthy: Client, uninterrupted: dict[str, bytes]
) -> set[str]:
    """Go on with it; returns the chunks that were computed now: those that were not there."""
    before = {key: (where / "gram/c" / key).stat().st_mtime_ns for key in contents(where)}
    swept(where, X, healthy)
    after = contents(where)
    assert after == uninterrupted
    for key, written in before.items():
        assert (where / "gram/c" / key).stat().st_mtime_ns == written
    return set(after) - set(before)


DIES = """
def dies(store, key):
    if key == "gram/c/4/1/2" and once("died"):
        die()
on_request("set", dies)
"""


def test_a_killed_worker_costs_the_kernel_that_it_was_at(
    client: Client,
    healthy: Client,
    workers: Workers,
    X: rd.Sequences,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
) -> None:
    where = tmp_path / "gram"
    workers.start(2, DIES + NOTED)
    client.wait_for_workers(2, timeout=60)
    wanted = wanted_sweep(KERNELS, X, None, where=str(where), tile=TILE, backend="numpy")
    made = SweepStore.create(where, wanted.plan_anew(), X)
    fill(replace(made, groups=GROUPS), client, backend="numpy")
    assert (tmp_path / "faults/died").exists()
    assert contents(where) == uninterrupted
    assert times(tmp_path / "faults") == Counter([*uninterrupted.keys(), "4/1/2"])
    assert resumed(where, X, healthy, uninterrupted) == set()


RUN = """
import os, sys, time
from pathlib import Path
import rntk_dist as rd

if __name__ == "__main__":
    where, data = sys.argv[1:]
    X = rd.Sequences.read(data)
    kernels = KERNELS
    exec(os.environ.get("HERE", ""))
    rd.sweep(kernels, X, store=where, tile=8, backend="numpy", progress=False)
"""


@contextmanager
def script(
    folder: Path, where: Path, X: rd.Sequences, lines: str, here: str = ""
) -> Iterator[psutil.Popen]:
    """A process that sweeps with workers of its own; its family is gone on leaving."""
    env = preload(folder, lines) | {"HERE": dedent(here)}
    kernels = repr(KERNELS).replace("RNTK(", "rd.RNTK(")
    (folder / "script.py").write_text(RUN.replace("KERNELS", kernels))
    X.write(folder / "X.npz")
    with (folder / "script.log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, folder / "script.py", where, folder / "X.npz"],
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for member in family(process.pid):
            member.kill()
        process.wait()


@pytest.mark.parametrize("stored", [pytest.param(3, marks=pytest.mark.slow), 40])
def test_all_processes_killed_in_the_middle_of_a_sweep(
    healthy: Client,
    X: rd.Sequences,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    stored: int,
) -> None:
    where = tmp_path / "gram"
    held = HELD.replace("MOST", str(stored + 20))
    with script(tmp_path / "faults", where, X, held + NOTED) as process:
        wait_until(lambda: len(contents(where)) >= stored, process)
        everyone = family(process.pid)
        for member in everyone:
            member.suspend()  # so that none sees another die
        for member in everyone:
            member.kill()
        process.wait()
        assert ended(everyone)
    kept = contents(where)
    assert stored <= len(kept) < N_CHUNKS
    seen = times(tmp_path / "faults")
    assert set(seen.values()) == {1}
    in_flight = seen.keys() - kept.keys()
    assert len(in_flight) <= 2  # one a worker
    assert resumed(where, X, healthy, uninterrupted) == uninterrupted.keys() - kept.keys()
    assert rd.verify(where).ok


@pytest.mark.slow
def test_the_creation_of_a_sweep_that_was_killed_is_begun_anew(
    healthy: Client, X: rd.Sequences, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    where = tmp_path / "gram"
    here = TAKES_LONG.replace("SECONDS", "600")
    with script(tmp_path / "faults", where, X, NOTED, here) as process:
        wait_until(lambda: any(tmp_path.glob("creating-*")), process)
        with pytest.raises(StoreBusyError, match=f"process {process.pid} on "):
            swept(where, X, healthy)
        process.kill()
        process.wait()
    assert SweepStore.is_interrupted(where)
    assert resumed(where, X, healthy, uninterrupted) == uninterrupted.keys()


def test_a_kernel_that_overflows_in_some_tiles_loses_those_alone(
    healthy: Client, tmp_path: Path
) -> None:
    """One long sequence among short ones: it is in three of the six tiles."""
    rng = np.random.default_rng(3)
    lengths = [3] * 19 + [60]
    X = rd.Sequences.from_arrays([rng.normal(size=t) for t in lengths])
    kernels = [rd.RNTK(sigma_w=1.3), rd.RNTK(sigma_w=9.0), rd.RNTK(sigma_w=9.0, sigma_v=2.0)]
    where = tmp_path / "sweep"
    started = time.monotonic()
    how: dict = {"tile": TILE, "backend": "numpy", "progress": False, "dtype": "float32"}
    with pytest.raises(TileError) as failure:
        rd.sweep(kernels, X, store=where, client=healthy, **how)
    assert time.monotonic() - started < 60  # it is not tried again and again
    told = str(failure.value)
    assert "of kernel 1" in told or "of the 2 kernels 1 to 2" in told
    assert "with kernel 1 of the sweep" in told
    sweep = rd.open_sweep(where)
    assert sweep[0].complete
    for i in (1, 2):
        assert {(tile.row, tile.col) for tile in sweep[i].missing} == {(0, 2), (1, 2), (2, 2)}
    np.testing.assert_array_equal(
        np.asarray(sweep[0]), kernels[0](X, backend="numpy", dtype="float32")
    )
