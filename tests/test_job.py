"""Jobs on real worker processes: what outlives whom, and what the store alone tells of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import dask
import numpy as np
import pytest
import s3_servers
from clusters import client_of, wait_until_idle
from distributed import Client
from test_faults import ROOT, Workers

import rntk_dist as rd
from benchmarks.scheduler import measure_scheduler, scheduler_table
from rntk_dist import job_record
from rntk_dist.cluster import TASKS_PER_SLOT, Crew, NoWorkersError, Worker
from rntk_dist.compute import MOST_DEATHS, Drive
from rntk_dist.coordinator import MOST_FRUITLESS, coordinate, name_of, tile_of
from rntk_dist.creation import ensure_store
from rntk_dist.failures import TileError
from rntk_dist.job_record import JobRecord, JobStatus, ask_to_cancel, now, read_record, write_record
from rntk_dist.lease import lease
from rntk_dist.plan import Tile
from rntk_dist.store import GramStore

KERNEL = rd.RNTK(sigma_w=1.3, sigma_b=0.1)
TILE = 8  # 40 sequences: 5 x 5 tiles, 15 of them stored
N_TILES = 15
MANY = 4  # 55 tiles: enough for two jobs to share the workers

LOGGED = """
def is_held(location, place):
    try:
        return place > int(Path(f"{location}.hold").read_text())
    except FileNotFoundError:
        return False
def logged(location, tile, *args, real=tile_task.compute_tile):
    with open(f"{location}.tiles", "ab", buffering=0) as log:
        log.write(f"{tile}\\n".encode())
        end = log.tell()
    act(tile)
    place = Path(f"{location}.tiles").read_bytes()[:end].count(b"\\n")
    while is_held(location, place):
        time.sleep(0.02)
    return real(location, tile, *args)
tile_task.compute_tile = logged
"""
"""Lines for a worker, after those that say what `act` is: each store has a log of its tiles.

The file beside it that `held` writes says how many of the tiles that are begun do not wait.
"""

SLOW = "act = lambda tile: time.sleep(0.12)\n" + LOGGED


def started(where: Path) -> list[Tile]:
    """The tiles of a store that were begun, as often as they were."""
    return [tile_of(line) for line in Path(f"{where}.tiles").read_text().splitlines()]


@contextmanager
def held(where: Path, after: int = 4) -> Iterator[Callable[[int], None]]:
    """Nothing but the first tiles of a store is computed meanwhile; lets more of them go."""
    hold, written = Path(f"{where}.hold"), Path(f"{where}.hold.tmp")

    def let_go(first: int) -> None:
        written.write_text(str(first))
        written.replace(hold)

    let_go(after)
    try:
        yield let_go
    finally:
        hold.unlink()


def until(true: Callable[[], Any], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def tasks(client: Client) -> list[str]:
    """The keys of all tasks that the scheduler knows."""
    return client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.tasks))


@pytest.fixture(scope="module")
def X() -> rd.Sequences:
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 12, size=40)
    return rd.Sequences.from_arrays([rng.normal(size=(t, 2)) for t in lengths])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a scheduler whose workers come and go."""
    # One more death of a worker than this, and Dask gives up what it was doing.
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), client_of(0) as client:
        yield client


@pytest.fixture
def workers(client: Client, tmp_path: Path) -> Iterator[Workers]:
    """Workers of one test."""
    begun = Workers(client.scheduler_info()["address"], tmp_path / "faults")
    try:
        yield begun
    finally:
        begun.kill_all()
        until(lambda: not client.nthreads())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of two slow workers that nothing happens to."""
    with client_of(0) as client:
        folder = tmp_path_factory.mktemp("pair") / "faults"
        begun = Workers(client.scheduler_info()["address"], folder).start(2, SLOW)
        try:
            client.wait_for_workers(2, timeout=60)
            yield client
        finally:
            begun.kill_all()


def submitted(where: Path, X: rd.Sequences, client: Client, **options: Any) -> rd.Job:
    return rd.submit(
        KERNEL, X, store=where, client=client, **({"backend": "numpy", "tile": TILE} | options)
    )


def is_right(job: rd.Job, X: rd.Sequences) -> bool:
    return bool(np.array_equal(np.asarray(job.gram()), KERNEL(X, backend="numpy")))


def record_of(job: rd.Job) -> JobRecord:
    record = read_record(GramStore.open(job.store))
    assert record is not None
    return record


# -- a job and its client -------------------------------------------------------------------------


SUBMIT = """
import json, sys
import numpy as np
import rntk_dist as rd
from distributed import Client

address, data, store = sys.argv[1:]
client = Client(address, set_as_default=False)
kernel = rd.RNTK(sigma_w=1.3, sigma_b=0.1)
X = rd.Sequences.read(data)
job = rd.submit(kernel, X, store=store, client=client, tile=8, backend="numpy")
print(json.dumps(job.status().to_dict()))
"""


def test_a_job_outlives_the_process_that_submitted_it(
    pair: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    X.write(tmp_path / "x.npz")
    where, address = tmp_path / "gram", pair.scheduler_info()["address"]
    with held(where):
        told = subprocess.run(
            [sys.executable, "-c", dedent(SUBMIT), address, tmp_path / "x.npz", where],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        status = json.loads(told.stdout)
        assert status["state"] in ("queued", "running")
        assert status["tiles_done"] < N_TILES
        job = rd.connect(where)
        assert (job.id, job.client) == (status["id"], None)
        assert [known.id for known in rd.jobs(pair)] == [job.id]
    assert job.wait(60).state == "done"
    assert Counter(started(where)) == Counter(GramStore.open(where).plan.tiles())
    assert is_right(job, X)
    until(lambda: not tasks(pair))
    assert rd.jobs(pair) == []


def test_status_tells_how_a_running_job_is(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    with held(tmp_path / "gram", after=20):
        job = submitted(tmp_path / "gram", X, pair, tile=4)
        until(lambda: job.status().tiles_per_second)
        status = job.status()
        assert status.state == "running"
        assert status.workers == 2
        assert 0 < status.tiles_done < status.tiles_total == 55
        assert status.pair_steps_per_second > 0
        assert 0 < (status.eta_seconds or 0) < 60
        assert not status.failures
        assert status.to_dict() == json.loads(json.dumps(status.to_dict()))
        assert f"{status.tiles_done} of 55 (" in str(status)
        assert "tiles/s" in str(status)
        with pytest.raises(TimeoutError, match=r"is running after 0 s: \d+ of 55 tiles"):
            job.wait(0)
        job.cancel()
        assert str(job.wait(60)).startswith(f"job {job.id}: cancelled")


def test_a_store_has_one_job_at_a_time(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    with held(tmp_path / "gram"):
        job = submitted(tmp_path / "gram", X, pair)
        ask_to_cancel(GramStore.open(job.store, writable=True), "another")
        assert submitted(tmp_path / "gram", X, pair) == job
    with pytest.raises(rd.IdentityError, match="sigma_w"):
        rd.submit(rd.RNTK(sigma_w=1.2), X, store=tmp_path / "gram", client=pair)
    assert job.wait(60).state == "done"
    # A whole store has nothing to be done: the job that did it is the one.
    assert submitted(tmp_path / "gram", X, pair) == job
    assert sorted(started(tmp_path / "gram")) == list(job.gram().plan.tiles())
    assert rd.verify(tmp_path / "gram").foreign == ()


def test_a_matrix_that_was_computed_otherwise_is_a_job_that_is_done(
    pair: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    rd.gram(KERNEL, X, store=tmp_path / "gram", client=pair, tile=20, progress=False)
    with pytest.raises(rd.NoJobError, match=r"gram has had no job: rd\.submit starts one"):
        rd.connect(tmp_path / "gram")
    assert rd.submit(KERNEL, X, store=tmp_path / "gram", client=pair).wait(0).state == "done"
    assert tasks(pair) == []


def test_a_store_that_a_process_fills_takes_no_job(
    pair: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)
    with (
        lease(tmp_path / "gram", wait=30),
        pytest.raises(rd.StoreBusyError, match=str(os.getpid())),
    ):
        submitted(tmp_path / "gram", X, pair)


# -- several jobs ---------------------------------------------------------------------------------


def test_two_jobs_share_the_workers(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    with held(tmp_path / "one", after=0), held(tmp_path / "two", after=0):
        one, two = (submitted(tmp_path / name, X, pair, tile=MANY) for name in ("one", "two"))
        assert {job.id for job in rd.jobs(pair)} == {one.id, two.id}
    until(lambda: max(one.status().tiles_done, two.status().tiles_done) > 40)
    assert min(one.status().tiles_done, two.status().tiles_done) >= 4
    assert is_right(one, X)
    assert is_right(two, X)


def test_a_job_of_higher_priority_goes_first(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    with held(tmp_path / "low"):
        low = submitted(tmp_path / "low", X, pair, tile=MANY)
        until(lambda: low.status().tiles_done)
        high = submitted(tmp_path / "high", X, pair, priority=5)
    assert high.wait(60).updated < low.wait(60).updated


# -- cancelling -----------------------------------------------------------------------------------


def test_a_cancelled_job_leaves_no_task_and_a_store_that_resumes(
    pair: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    where = tmp_path / "gram"
    with held(where, after=4):
        job = submitted(where, X, pair)
        until(lambda: job.status().tiles_done == 4)
        rd.connect(where).cancel()  # by the store alone
        status = job.wait(30)
        assert (status.state, job.status().state) == ("cancelled", "cancelled")
        until(lambda: not tasks(pair))
        kept = GramStore.open(where).stored_tiles()
        assert len(kept) == 4
    wait_until_idle(pair)  # what was running is stored
    assert 4 <= len(GramStore.open(where).stored_tiles()) < N_TILES
    again = submitted(where, X, pair)
    assert again.id != job.id
    assert is_right(again, X)
    assert job.status().state == "replaced"
    with pytest.raises(rd.JobInterruptedError, match=f"present job is {again.id}"):
        job.wait()
    times = Counter(started(where))
    assert all(times[tile] == 1 for tile in kept)
    job.cancel()
    again.cancel()
    assert again.status().state == "done"


def test_a_job_that_nobody_has_begun_is_cancelled_at_once(
    client: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)
    job = submitted(tmp_path / "gram", X, client)  # which has no workers
    assert job.status().state == rd.connect(tmp_path / "gram").status().state == "queued"
    assert "queued" in str(job.status())
    job.cancel()
    assert job.wait(0).state == "cancelled"
    assert rd.connect(tmp_path / "gram").status().state == "cancelled"
    until(lambda: not tasks(client))
    assert rd.jobs(client) == []


@pytest.mark.slow
def test_a_job_waits_for_who_fills_its_store(
    client: Client, workers: Workers, X: rd.Sequences, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        ensure_store(KERNEL, X, None, store=tmp_path / name, tile=TILE)
    one, two = (submitted(tmp_path / name, X, client) for name in ("one", "two"))
    with lease(tmp_path / "one"), lease(tmp_path / "two"):
        workers.start(1, SLOW)
        until(lambda: set(tasks(client)) == {name_of(one.id), name_of(two.id)})
        time.sleep(3)
        assert (one.status().state, two.status().state) == ("queued", "queued")
        two.cancel()
        assert two.wait(0).state == "cancelled"
    assert is_right(one, X)
    assert not Path(f"{tmp_path}/two.tiles").exists()
    until(lambda: not tasks(client))


# -- workers that die -----------------------------------------------------------------------------


def kill_coordinator(job: rd.Job, workers: Workers, let_go: Callable[[int], None]) -> None:
    """Kill the worker that drives a job, once it has got on; lets four more tiles of it go."""
    until(lambda: record_of(job).state == "running")
    begun = record_of(job)
    until(lambda: job.status().tiles_done > begun.tiles_at_start)
    victim = next(worker for worker in workers.running if worker.pid == record_of(job).pid)
    workers.kill(victim)
    let_go(len(started(Path(str(job.store)))) + 4)  # for the next one to get a thread
    until(lambda: record_of(job).coordinators > begun.coordinators)


@pytest.mark.parametrize("deaths", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_job_goes_on_when_its_coordinators_worker_dies(
    client: Client, workers: Workers, X: rd.Sequences, tmp_path: Path, deaths: int
) -> None:
    workers.start(deaths + 1, SLOW)
    client.wait_for_workers(deaths + 1, timeout=60)
    with held(tmp_path / "gram") as let_go:
        job = submitted(tmp_path / "gram", X, client, tile=TILE if deaths == 1 else MANY)
        for _ in range(deaths):  # of which Dask itself would give up a task after two
            kill_coordinator(job, workers, let_go)
            assert job.status().state == "running"
    assert job.wait(60).state == "done"
    assert record_of(job).coordinators == deaths + 1
    assert is_right(job, X)
    assert len(started(tmp_path / "gram")) <= job.status().tiles_total + 4 * deaths
    until(lambda: not tasks(client))


@pytest.mark.slow
def test_a_job_goes_on_when_its_coordinators_worker_is_retired(
    client: Client, workers: Workers, X: rd.Sequences, tmp_path: Path
) -> None:
    workers.start(2, SLOW)
    client.wait_for_workers(2, timeout=60)
    with held(tmp_path / "gram"):
        job = submitted(tmp_path / "gram", X, client)
        until(lambda: job.status().tiles_done)
        client.retire_workers([record_of(job).worker])
    assert job.wait(60).state == "done"
    assert record_of(job).coordinators == 2
    assert record_of(job).deaths == {}
    assert is_right(job, X)


KILLER = "act = lambda tile: die() if tile == Tile(1, 2) else None\n" + LOGGED


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tile_that_kills_its_workers_is_not_the_jobs_end(
    client: Client, workers: Workers, X: rd.Sequences, tmp_path: Path, n: int
) -> None:
    workers.start(n, KILLER, nanny=True)
    client.wait_for_workers(n, timeout=60)
    job = submitted(tmp_path / "gram", X, client)
    told = r"1 of .* tiles failed, .* died .* for want of memory: a worker .* needs another store"
    with pytest.raises(TileError, match=told) as caught:
        job.wait(120)
    assert set(caught.value.failed) == {Tile(1, 2)}
    assert job.status().tiles_done == N_TILES - 1
    # Dask tries it twice, and twice again when it is alone; the last try may be its coordinator's.
    assert max(Counter(started(tmp_path / "gram")).values()) <= 4 * MOST_DEATHS
    until(lambda: not tasks(client))


@pytest.mark.slow
def test_a_coordinator_that_cannot_begin_is_told_of(
    client: Client, workers: Workers, X: rd.Sequences, tmp_path: Path
) -> None:
    workers.start(
        2, "from rntk_dist import coordinator\ncoordinator._taken_over = lambda *_: die()"
    )
    client.wait_for_workers(2, timeout=60)
    job = submitted(tmp_path / "gram", X, client)
    with pytest.raises(rd.JobInterruptedError, match=r"coordinator failed with KilledWorker"):
        job.wait(60)
    assert [known.id for known in rd.jobs(client)] == [job.id]
    workers.start(1, SLOW)
    again = submitted(tmp_path / "gram", X, client)
    assert is_right(again, X)
    until(lambda: not tasks(client))


def test_coordinators_that_die_with_nothing_gained_end_their_job(
    pair: Client, X: rd.Sequences, tmp_path: Path
) -> None:
    store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)
    dead = JobRecord(
        "dead",
        "running",
        now(),
        now(),
        worker="tcp://127.0.0.1:1",
        coordinators=12,
        fruitless=MOST_FRUITLESS - 1,
    )
    write_record(store, dead)
    pair.submit(coordinate, store.location, "dead", key=name_of("dead"), pure=False)
    with pytest.raises(RuntimeError, match=r"10 workers died one after another .* no tile"):
        rd.connect(store.location).wait(30)


# -- a cluster that is gone -----------------------------------------------------------------------


def test_the_store_alone_tells_of_a_job_whose_cluster_is_gone(
    pair: Client, X: rd.Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "gram"
    monkeypatch.setattr(job_record, "GRACE", 2.5)
    with held(where), client_of(0) as client:
        gone = Workers(client.scheduler_info()["address"], tmp_path / "faults").start(1, SLOW)
        try:
            job = submitted(where, X, client)
            until(lambda: job.status().tiles_done > 2)
            dashboard = job.status().dashboard
        finally:
            gone.kill_all()
    job = rd.connect(where)
    until(lambda: job.status().state == "interrupted")
    status = job.status()
    assert status.tiles_done == len(GramStore.open(where).stored_tiles()) < N_TILES
    assert (status.workers, status.eta_seconds) == (0, None)
    assert status.dashboard == dashboard != ""
    assert "submit it again, which resumes" in str(status)
    with pytest.raises(rd.JobInterruptedError, match=rf"at {status.tiles_done} of 15 tiles"):
        job.wait()
    kept = GramStore.open(where).stored_tiles()
    assert is_right(submitted(where, X, pair), X)
    assert all(Counter(started(where))[tile] == 1 for tile in kept)


GATED = """
def opened(tile):
    while (HERE / "shut").exists():
        time.sleep(0.02)
on_tile(opened)
"""


@pytest.mark.slow
def test_a_job_in_a_bucket(
    client: Client, workers: Workers, X: rd.Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"s3://{s3_servers.BUCKET}/job"
    with s3_servers.moto() as address:
        s3_servers.use(monkeypatch, address)
        workers.start(1, GATED)
        client.wait_for_workers(1, timeout=60)
        shut = workers.folder / "shut"
        shut.touch()
        job = submitted(where, X, client)
        assert rd.connect(where).id == job.id
        until(lambda: record_of(job).state == "running")
        job.cancel()
        assert rd.connect(where).wait(60).state == "cancelled"
        shut.unlink()
        assert is_right(submitted(where, X, client), X)
        assert rd.connect(where).status().state == "done"


@pytest.mark.slow
def test_the_scheduler_keeps_nothing_of_the_tiles_that_are_done() -> None:
    found = measure_scheduler(30)
    assert found.tiles == 465
    assert max(sample.tasks for sample in found.samples) <= 4 * TASKS_PER_SLOT
    assert found.samples[-1].tiles == 465
    assert len(scheduler_table(found).splitlines()) == 7


# -- what is refused, and what fails --------------------------------------------------------------


def test_no_gpu_is_an_error_at_once(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(NoWorkersError, match=r"no worker .* has a GPU .*--resources GPU=1"):
        submitted(tmp_path / "gram", X, pair, backend="cupy")
    assert time.monotonic() - before < 30  # nobody is waited for
    assert not (tmp_path / "gram").exists()


def test_what_fails_a_job_is_raised_by_who_waits_for_it(pair: Client, tmp_path: Path) -> None:
    X = [np.ones((t, 2)) for t in (3, 4, 3000, 5)]
    kernel = rd.RNTK(sigma_w=2.0)  # relu values grow as 2^T: the long one overflows
    job = rd.submit(kernel, X, store=tmp_path / "gram", client=pair, tile=2, backend="numpy")
    with pytest.raises(
        TileError, match=r"2 of 3 tiles failed, \(0, 1\), \(1, 1\), .*Overflow"
    ) as e:
        job.wait(60)
    assert set(e.value.failed) == {Tile(0, 1), Tile(1, 1)}
    status = job.status()
    assert (status.state, status.error, status.tiles_done) == ("failed", "TileError", 1)
    assert all("OverflowError" in cause for cause in status.failures.values())
    assert "(1, 1): OverflowError" in str(status)
    until(lambda: not tasks(pair))


def test_a_store_that_vanishes_ends_its_job(pair: Client, X: rd.Sequences, tmp_path: Path) -> None:
    with held(tmp_path / "gram"):
        job = submitted(tmp_path / "gram", X, pair)
        until(lambda: job.status().tiles_done)
        (tmp_path / "gram").rename(tmp_path / "elsewhere")
    until(lambda: not tasks(pair))
    with pytest.raises(FileNotFoundError):
        job.status()
    (tmp_path / "elsewhere").rename(tmp_path / "back")
    assert rd.connect(tmp_path / "back").status().state != "done"


# -- who is to blame ------------------------------------------------------------------------------


def test_tiles_that_workers_died_with_come_last_alone_or_not_at_all() -> None:
    once, twice, often, never = missing = [Tile(0, col) for col in range(4)]
    drive = Drive(deaths={once: 1, twice: 2, often: 4})
    assert drive.in_turn(missing) == [never, once]
    assert drive.alone(missing) == [twice]
    (given_up,) = drive.given_up(missing, "the figures").items()
    assert given_up[0] == often
    assert str(given_up[1]).startswith("4 workers died while they computed it")
    assert str(given_up[1]).endswith("the figures")


def test_a_suspect_is_kept_from_the_worker_that_drives_the_run() -> None:
    crew = Crew({"tcp://a": Worker(1), "tcp://b": Worker(2)}, "numba")
    assert Drive(worker="tcp://a").elsewhere(crew).restrictions() == {"workers": ["tcp://b"]}
    assert Drive(worker="tcp://c").elsewhere(crew) == crew
    assert Drive().elsewhere(crew) == crew
    single = Crew({"tcp://a": Worker(1)}, "numba")
    assert Drive(worker="tcp://a").elsewhere(single) == single


# -- the record -----------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written_and_nothing_else_is() -> None:
    record = JobRecord("a", "running", now(), now(), deaths={"(0, 1)": 2}, failures={"(0, 2)": "x"})
    assert JobRecord.from_json(record.to_json()) == record
    newer = {**json.loads(record.to_json()), "added_later": 1}
    assert JobRecord.from_json(json.dumps(newer).encode()) == record
    for text in (b"", b"{", b"[]", b'{"id": "a"}', replace(record, updated="then").to_json()):
        assert JobRecord.from_json(text) is None
    assert not replace(record, state="interrupted").has_ended


def test_a_status_is_one_screen() -> None:
    failures = {str(Tile(0, col)): "OSError: the disk is full" for col in range(9)}
    status = JobStatus(
        id="a",
        store="s3://bucket/gram",
        state="running",
        tiles_done=30,
        tiles_total=120,
        tiles_per_second=2.0,
        pair_steps_per_second=3e8,
        eta_seconds=45.0,
        workers=4,
        retries=2,
        failures=failures,
        dashboard="http://127.0.0.1:8787/status",
        submitted="yesterday",
        updated="now",
        message="",
    )
    lines = str(status).splitlines()
    assert lines[2].split() == ["tiles", "30", "of", "120", "(25%)"]
    assert lines[3].split()[1:] == ["2", "tiles/s,", "3e+08", "pair-steps/s,", "45", "s", "left"]
    assert sum("failed" in line for line in lines) == 6
    assert "4 more" in str(status)
    assert "8787" in str(status)
    assert "8787" not in str(replace(status, state="done"))


def test_tiles_are_named_and_found_again() -> None:
    assert tile_of(str(Tile(12, 345))) == Tile(12, 345)
    with pytest.raises(ValueError, match="is no tile"):
        tile_of("12 345")


def test_no_task_of_any_job_is_left(pair: Client) -> None:
    """The last test of this module, for all the others."""
    until(lambda: not tasks(pair))
    assert pair.list_datasets() == ()
