"""What survives what: each row of docs/faults.md, with worker processes that really fail.

A worker runs a preload, `PRELUDE` and the test's own lines, that makes it slow, dead or unlucky at
one place. After each fault the run is resumed by workers that are well: it computes the tiles that
were missing and no others, and the matrix has the bits of one that was never interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import dask
import numpy as np
import psutil
import pytest
from clusters import client_of, wait_until_idle
from distributed import Client
from zarr.storage import LocalStore

import rntk_dist
from rntk_dist.cluster import NoWorkersError
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.failures import (
    Refusal,
    SchedulerLostError,
    StoreUnavailableError,
    TileError,
    stopped,
)
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.lease import StoreBusyError
from rntk_dist.plan import Tile
from rntk_dist.progress import Progress
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore
from rntk_dist.tile_task import TileRecord

KERNEL = RNTK(sigma_w=1.3, sigma_b=0.1)
TILE = 8  # 40 sequences: 5 x 5 tiles, 15 of them stored
N_TILES = 15
ROOT = Path(rntk_dist.__file__).parents[1]

PRELUDE = """
import errno, inspect, os, signal, time
from pathlib import Path
from zarr.storage import LocalStore
from rntk_dist import tile_task
from rntk_dist.plan import Tile

HERE = Path(os.environ["FAULTS"])

def note(line):
    with (HERE / "started").open("a") as log:
        log.write(line + "\\n")

def once(name):
    try:
        os.close(os.open(HERE / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_tile(act):
    real = tile_task.compute_tile
    def computed(location, tile, *args):
        act(tile)
        return real(location, tile, *args)
    tile_task.compute_tile = computed

def on_request(verb, act):
    for name in (verb, f"{verb}_sync"):
        real = getattr(LocalStore, name, None)
        if inspect.iscoroutinefunction(real):
            async def requested(self, key, *args, _real=real, **options):
                act(self, key)
                return await _real(self, key, *args, **options)
        elif real is not None:
            def requested(self, key, *args, _real=real, **options):
                act(self, key)
                return _real(self, key, *args, **options)
        if real is not None:
            setattr(LocalStore, name, requested)

VERBS = ("get", "set", "exists", "delete", "getsize", "list_dir", "list_prefix")

def on_listing(act):
    real = os.scandir  # FolderStore lists by itself
    def listed(path="."):
        if str(path).startswith(str(HERE.parent / "gram")):
            act(None, str(path))
        return real(path)
    os.scandir = listed

def fail_when(when, *verbs):
    seen = []
    for verb in verbs:
        def count(store, key, verb=verb):
            seen.append(key)
            if when(len(seen)):
                raise OSError(errno.EIO, f"the {verb} fails", key)
        on_listing(count) if verb == "list_prefix" else on_request(verb, count)

def faults():
    pass
"""

START = """
if not hasattr(tile_task, "faulty"):  # Dask runs this file more than once
    tile_task.faulty = True
    faults()
    on_tile(lambda tile: note(f"{tile.row} {tile.col}"))
"""


# -- machines -------------------------------------------------------------------------------------


def preload(folder: Path, lines: str) -> dict[str, str]:
    """The environment of a process whose workers run these lines; indented into `faults`."""
    folder.mkdir(exist_ok=True)
    body = "".join(f"    {line}\n" for line in dedent(lines).strip().splitlines())
    (folder / "faults.py").write_text(PRELUDE + body + START)
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FAULTS": str(folder),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(folder / "faults.py")]),
    }


def ended(processes: list[psutil.Process], within: float = 10.0) -> bool:
    """Whether all processes end by themselves; those that do not are killed."""
    _, alive = psutil.wait_procs(processes, timeout=within)
    for process in alive:
        process.kill()
    return not alive


def family(pid: int) -> list[psutil.Process]:
    """A process and all its children, of which some may end at this moment."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class Workers:
    """Worker processes of one test, which share its faults."""

    scheduler: str
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, n: int, lines: str, *, nanny: bool = False, **settings: str) -> Workers:
        env = preload(self.folder, lines) | settings
        options = ["--no-dashboard", "--host=127.0.0.1", "--nthreads=1", "--memory-limit=2GiB"]
        options += ["--nanny" if nanny else "--no-nanny"]
        with (self.folder / "log").open("ab") as log:
            self.running += [
                subprocess.Popen(
                    [sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler, *options],
                    stdout=log,
                    stderr=log,
                    env=env,
                )
                for _ in range(n)
            ]
        return self

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        everyone = family(worker.pid)
        for process in everyone:
            process.kill()
        worker.wait()
        psutil.wait_procs(everyone, timeout=10)

    def kill_all(self) -> None:
        for worker in self.running:
            self.kill(worker)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def started(self) -> list[Tile]:
        """The tiles that were begun, as often as they were."""
        lines = (self.folder / "started").read_text().splitlines()
        return [Tile(*map(int, line.split()[:2])) for line in lines]


@contextmanager
def scheduler() -> Iterator[Client]:
    with (
        # One more death of a worker than this, and its tiles are taken to be what kills it.
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        client_of(0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a scheduler whose workers each test starts and kills."""
    with scheduler() as client:
        yield client


@pytest.fixture(scope="module")
def healthy() -> Iterator[Client]:
    """Of a cluster in which nothing fails."""
    with client_of(2) as client:
        yield client


@pytest.fixture(autouse=True)
def no_process_is_left_over(client: Client, healthy: Client) -> Iterator[None]:
    before = {process.pid for process in family(os.getpid())}
    yield
    assert ended([process for process in family(os.getpid()) if process.pid not in before])


@pytest.fixture
def workers(client: Client, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(client.scheduler_info()["address"], tmp_path / "faults")
    try:
        yield started
    finally:
        started.kill_all()


# -- the matrix, and what is checked after each fault ---------------------------------------------


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(11)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 12, size=40)])


def opened(where: Path, X: Sequences) -> GramStore:
    return ensure_store(KERNEL, X, None, store=where, tile=TILE, backend="numpy")


def chunks(store: GramStore) -> dict[Tile, bytes]:
    where = Path(str(store.location))
    return {
        tile: (where / f"gram/c/{tile.row}/{tile.col}").read_bytes()
        for tile in store.stored_tiles()
    }


@pytest.fixture(scope="module")
def uninterrupted(
    healthy: Client, X: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> dict[Tile, bytes]:
    store = opened(tmp_path_factory.mktemp("uninterrupted") / "gram", X)
    fill(store, healthy, backend="numpy")
    return chunks(store)


type Resume = Callable[[Path], list[TileRecord]]


@pytest.fixture
def resume(healthy: Client, X: Sequences, uninterrupted: dict[Tile, bytes]) -> Resume:
    """Resume a run by workers that are well, and check all that a resumed run promises."""

    def resumed(where: Path) -> list[TileRecord]:
        wait_until_idle(healthy)  # a tile in flight may still be stored
        store = opened(where, X)
        missing = store.missing_tiles()
        records = fill(store, healthy, backend="numpy")
        assert sorted(record.tile for record in records) == missing
        assert chunks(store) == uninterrupted
        return records

    return resumed


def after(tiles: int, act: Callable[[], object]) -> Callable[[Progress], None]:
    """An `on_progress` that acts once, when so many tiles are stored."""
    left = [act]

    def watch(now: Progress) -> None:
        if left and now.tiles >= tiles:
            left.pop()()

    return watch


SLOW = "on_tile(lambda tile: time.sleep(0.4 if tile.row else 0.1))"
"""Some tiles soon, and then time to act before the last."""


# -- a worker dies --------------------------------------------------------------------------------


def test_a_killed_worker_costs_its_tile_in_flight(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(2, "on_tile(lambda tile: time.sleep(0.3))")
    client.wait_for_workers(2, timeout=60)
    store = opened(tmp_path / "gram", X)
    victim = workers.running[0]
    records = fill(
        store, client, backend="numpy", on_progress=after(4, lambda: workers.kill(victim))
    )
    assert len(records) == N_TILES
    assert len(workers.started) == N_TILES + 1
    assert resume(tmp_path / "gram") == []


DIES_IN_WRITE = """
def half(store, key):
    if key == "gram/c/1/2" and once("died"):
        chunk = store.root / "gram/c/1/2"
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.with_suffix(".0123.partial").write_bytes(b"half")
        die()
on_request("set", half)
"""


def test_a_worker_killed_while_it_writes_leaves_no_half_tile(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(2, DIES_IN_WRITE)
    client.wait_for_workers(2, timeout=60)
    store = opened(tmp_path / "gram", X)
    assert len(fill(store, client, backend="numpy")) == N_TILES
    assert (tmp_path / "faults/died").exists()
    assert workers.started.count(Tile(1, 2)) == 2
    assert resume(tmp_path / "gram") == []


@pytest.mark.slow
def test_a_tile_that_kills_every_worker_fails_alone(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(2, "on_tile(lambda tile: tile == Tile(0, 1) and die())", nanny=True)
    client.wait_for_workers(2, timeout=60)
    store = opened(tmp_path / "gram", X)
    with pytest.raises(TileError, match=r"1 of 15 tiles failed, \(0, 1\)") as failure:
        fill(store, client, backend="numpy", wait=30)
    assert list(failure.value.failed) == [Tile(0, 1)]
    message = str(failure.value)
    assert "KilledWorker: 2 workers died while they computed tile (0, 1) alone, most" in message
    assert "for want of memory: a worker is limited to 2048 MiB, and tiles of 8 need" in message
    assert "or use a smaller tile, which needs another store; 14 of 15 tiles are kept" in message
    assert len(resume(tmp_path / "gram")) == 1


# -- a tile fails ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing:
    """What a tile raises, how often it is tried, and what is told at the end."""

    error: str
    tries: int
    told: str


@pytest.mark.parametrize(
    "failing",
    [
        Failing("OSError(errno.EIO, 'torn cable')", 4, "OSError: .Errno 5. torn cable"),
        Failing("ValueError('bad data')", 1, "ValueError: bad data"),
        Failing("MemoryError('1 TiB')", 4, "MemoryError: 1 TiB: a worker is limited to 2048 MiB"),
    ],
    ids=lambda failing: failing.told.split(":")[0],
)
def test_a_failing_tile_is_tried_again_where_that_may_help(
    failing: Failing,
    client: Client,
    workers: Workers,
    X: Sequences,
    tmp_path: Path,
    resume: Resume,
) -> None:
    workers.start(
        1,
        f"""
        def fail(tile):
            if tile == Tile(1, 3):
                raise {failing.error}
        on_tile(fail)
        """,
    )
    client.wait_for_workers(1, timeout=60)
    store = opened(tmp_path / "gram", X)
    seen: list[Progress] = []
    with pytest.raises(TileError, match=rf"1 of 15 .* \(1, 3\), the first with {failing.told}"):
        fill(store, client, backend="numpy", on_progress=seen.append)
    assert workers.started.count(Tile(1, 3)) == failing.tries
    assert seen[-1].retries == failing.tries - 1
    logged = workers.log.count("tile (1, 3) failed with ")
    assert logged == (failing.tries if failing.tries > 1 else 0)
    assert len(resume(tmp_path / "gram")) == 1


# -- the store ------------------------------------------------------------------------------------


EVERY_FIFTH = "fail_when(lambda n: n % 5 == 0, *VERBS)"


@pytest.mark.slow
def test_a_store_that_fails_at_every_fifth_request_of_any_kind_is_asked_again(
    client: Client,
    workers: Workers,
    X: Sequences,
    tmp_path: Path,
    resume: Resume,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers.start(2, EVERY_FIFTH)
    client.wait_for_workers(2, timeout=60)
    with monkeypatch.context() as here:  # where the store is created and listed
        here.setenv("FAULTS", str(tmp_path / "faults"))
        here.setattr("os.scandir", os.scandir)
        for name in (name for name in vars(LocalStore) if not name.startswith("_")):
            here.setattr(LocalStore, name, vars(LocalStore)[name])
        exec(PRELUDE + EVERY_FIFTH, {})
        store = opened(tmp_path / "gram", X)
        assert len(fill(store, client, backend="numpy", retries=0)) == N_TILES
        assert store.missing_tiles() == []
    assert sorted(workers.started) == list(store.plan.tiles())  # no tile is computed twice
    for verb in ("get", "set"):
        assert f"failed and is repeated: [Errno 5] the {verb} fails: '" in workers.log
    for verb in ("get", "set", "list_prefix"):
        assert f"failed and is repeated: [Errno 5] the {verb} fails: '" in caplog.text
    assert resume(tmp_path / "gram") == []


def test_a_store_that_fails_for_longer_costs_a_try_of_the_tile(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(1, "fail_when(lambda n: 2 < n <= 6, 'set')")
    client.wait_for_workers(1, timeout=60)
    store = opened(tmp_path / "gram", X)
    assert len(fill(store, client, backend="numpy")) == N_TILES
    assert workers.log.count("failed with OSError: [Errno 5] the set fails: 'gram/c/") == 1
    assert len(workers.started) == N_TILES + 1
    assert resume(tmp_path / "gram") == []


@pytest.mark.slow
def test_a_slow_store_is_waited_for(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    slow = "on_request({!r}, lambda store, key: time.sleep(0.02))"
    workers.start(2, slow.format("set") + "\n" + slow.format("get"))
    client.wait_for_workers(2, timeout=60)
    records = fill(opened(tmp_path / "gram", X), client, backend="numpy", wait=0.2)
    assert len(records) == N_TILES
    assert resume(tmp_path / "gram") == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ENOSPC", r"is full .*: make room; a tile takes 516 bytes, the (\d+) missing ones \d+; "),
        ("EROFS", r"is read-only .*: make it writable; a tile takes 516 bytes, the (\d+) miss.*; "),
    ],
)
def test_a_store_that_takes_no_more_stops_the_run(
    code: str,
    says: str,
    client: Client,
    workers: Workers,
    X: Sequences,
    tmp_path: Path,
    resume: Resume,
) -> None:
    workers.start(
        1,
        f"""
        written = []
        def full(store, key):
            written.append(key)
            if sum("gram/c/" in key for key in written) > 4:
                raise OSError(errno.{code}, os.strerror(errno.{code}), key)
        on_request("set", full)
        """,
    )
    client.wait_for_workers(1, timeout=60)
    with pytest.raises(StoreUnavailableError, match=says + "4 of 15 tiles are kept") as stop:
        fill(opened(tmp_path / "gram", X), client, backend="numpy")
    assert str(stop.value).endswith("and the same call resumes")
    assert len(workers.started) <= 4 + 2  # nothing is tried again, nothing more is begun
    assert len(resume(tmp_path / "gram")) == N_TILES - 4


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "is full (on "),
        (errno.EDQUOT, "is at its quota (on "),
        (errno.EROFS, "is read-only (on "),
        (errno.EACCES, "is not writable (on "),
    ],
)
def test_what_a_store_refuses_to_all_tiles(
    code: int, says: str, X: Sequences, tmp_path: Path
) -> None:
    store = opened(tmp_path / "gram", X)
    refusal = Refusal.of(OSError(code, os.strerror(code)), store.location)
    assert refusal is not None
    assert refusal.stops_the_run
    assert says in str(stopped(refusal, store))
    assert Refusal.of(OSError(errno.EIO, "may pass"), store.location) is None
    assert Refusal.of(RuntimeError("may pass"), store.location) is None


@pytest.mark.parametrize("met", [FileNotFoundError(errno.ENOENT, "a chunk"), KeyError("values")])
def test_a_lost_store_is_told_alike_by_whichever_request_meets_it(
    met: Exception, X: Sequences, tmp_path: Path
) -> None:
    store = opened(tmp_path / "gram", X)
    shutil.rmtree(tmp_path / "gram")
    refusal = Refusal.of(met, store.location)
    assert refusal is not None
    assert refusal.stops_the_run
    says = r"gram is not there any more \(on .*: FileNotFoundError: there is no Gram store at .*\);"
    assert re.search(says, str(stopped(refusal, store)))


def test_what_is_left_of_a_store_is_no_store(X: Sequences, tmp_path: Path) -> None:
    """A late task writes its tile where the store was; no other run counts it as its own."""
    late = tmp_path / "gram/gram/c/0/1"
    late.parent.mkdir(parents=True)
    late.write_bytes(bytes(516))
    with pytest.raises(FileExistsError, match="holds something that is not a Gram store"):
        opened(tmp_path / "gram", X)
    assert late.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "rntk-test", str(where)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    small_disk: Path, healthy: Client, X: Sequences, resume: Resume
) -> None:
    where = small_disk / "gram"
    store = opened(where, X)
    others = small_disk / "others"
    free = os.statvfs(small_disk)
    others.write_bytes(bytes((free.f_bavail - 5) * free.f_frsize))
    with pytest.raises(StoreUnavailableError, match=r"is full .*OSError: .Errno 28.*make room"):
        fill(store, healthy, backend="numpy")
    assert 1 <= len(store.stored_tiles()) <= 5
    others.unlink()
    assert len(resume(where)) >= N_TILES - 5


def test_a_disk_that_is_full_at_the_creation_is_named_and_room_is_all_it_needs(
    small_disk: Path, X: Sequences, resume: Resume
) -> None:
    where, others = small_disk / "gram", small_disk / "others"
    free = os.statvfs(small_disk)
    for pages in (0, 2, 5):
        others.write_bytes(bytes((free.f_bavail - 1 - pages) * free.f_frsize))
        with pytest.raises(StoreUnavailableError, match=f"{where} is full .*: make room; nothing"):
            opened(where, X)
    others.unlink()
    assert len(resume(where)) == N_TILES


def test_a_read_only_store_is_refused_before_anything_is_computed(
    small_disk: Path, healthy: Client, X: Sequences, resume: Resume
) -> None:
    where = small_disk / "gram"
    store = opened(where, X)
    fill_one = after(1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fill(store, healthy, backend="numpy", on_progress=fill_one)
    wait_until_idle(healthy)  # what ran is stored
    kept = len(store.stored_tiles())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    says = rf"is read-only for this process .*: make it writable; nothing .* {kept} of 15 tiles"
    try:
        with pytest.raises(StoreUnavailableError, match=says):
            fill(store, healthy, backend="numpy")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert len(resume(where)) == N_TILES - kept


@pytest.mark.slow
def test_a_store_that_vanishes_stops_the_run(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(2, SLOW)
    client.wait_for_workers(2, timeout=60)
    where, away = tmp_path / "gram", tmp_path / "away"
    store = opened(where, X)
    with pytest.raises(StoreUnavailableError, match=r"is not there any more .*; bring it") as stop:
        fill(store, client, backend="numpy", on_progress=after(4, lambda: where.rename(away)))
    assert "FileNotFoundError: there is no Gram store at" in str(stop.value)
    workers.kill_all()
    assert not where.exists()  # a task that was late does not make it anew
    away.rename(where)
    assert 1 <= len(resume(where)) <= N_TILES - 4


def test_a_worker_that_does_not_see_the_store_stops_the_run(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(
        1,
        """
        from rntk_dist.store import GramStore
        def nothing(cls, location, *, writable=False):
            raise FileNotFoundError(f"there is no Gram store at {location}")
        GramStore.open = classmethod(nothing)
        """,
    )
    client.wait_for_workers(1, timeout=60)
    says = r"is not seen by a worker .*: every worker must reach it by this name; 0 of 15 tiles"
    with pytest.raises(StoreUnavailableError, match=says):
        fill(opened(tmp_path / "gram", X), client, backend="numpy")
    assert len(workers.started) <= 2
    assert len(resume(tmp_path / "gram")) == N_TILES


def test_a_store_that_vanishes_at_the_end_is_no_success(
    healthy: Client, X: Sequences, tmp_path: Path
) -> None:
    store = opened(tmp_path / "gram", X)
    with pytest.raises(StoreUnavailableError, match="15 tiles that this run has stored are gone"):
        fill(
            store,
            healthy,
            backend="numpy",
            on_progress=after(N_TILES, lambda: shutil.rmtree(tmp_path / "gram")),
        )


# -- the cluster ----------------------------------------------------------------------------------


PAUSES = """
def pause(tile):
    if tile == Tile(0, 4):
        from distributed import get_worker
        get_worker().memory_manager.memory_pause_fraction = 0.01
on_tile(pause)
"""


@pytest.mark.slow
def test_workers_that_are_all_paused_are_an_error_after_the_wait(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(1, SLOW + PAUSES)
    client.wait_for_workers(1, timeout=60)
    says = r"all workers .* have been paused for 2 s: .*memory.*a smaller tile.*are kept in"
    with pytest.raises(NoWorkersError, match=says):
        fill(opened(tmp_path / "gram", X), client, backend="numpy", wait=2)
    with pytest.raises(NoWorkersError, match=r"all workers .* paused for 1 s"):
        fill(opened(tmp_path / "gram", X), client, backend="numpy", wait=1)
    assert 1 <= len(resume(tmp_path / "gram")) <= N_TILES - 5


@contextmanager
def scheduler_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler that can be killed; its address is in a file."""
    folder.mkdir(exist_ok=True)
    where = folder / "scheduler.json"
    options = ["--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={where}"]
    with (folder / "scheduler.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *options],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(where.exists, process)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(
    true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 60
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_scheduler_ends_the_run_in_words(
    blow: signal.Signals, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    with scheduler_process(tmp_path / "faults") as process:
        address = json.loads((tmp_path / "faults/scheduler.json").read_text())["address"]
        workers = Workers(address, tmp_path / "faults").start(2, SLOW, nanny=True)
        try:
            with Client(address, set_as_default=False, timeout=5) as client:
                client.wait_for_workers(2, timeout=60)
                everyone = [member for worker in workers.running for member in family(worker.pid)]
                store = opened(tmp_path / "gram", X)
                lost_at: list[float] = []

                def lose() -> None:
                    process.send_signal(blow)
                    lost_at.append(time.monotonic())

                with pytest.raises(SchedulerLostError, match=f"at {address} is lost") as lost:
                    fill(store, client, backend="numpy", on_progress=after(4, lose), wait=5)
                assert time.monotonic() - lost_at[0] < 45
                # Those of a scheduler that is only frozen wait for it.
                assert blow == signal.SIGSTOP or ended(everyone, within=30)
        finally:
            workers.kill_all()
    assert "start a cluster and connect a new client; " in str(lost.value)
    assert "tiles are kept in" in str(lost.value)
    assert 1 <= len(resume(tmp_path / "gram")) <= N_TILES - 4


# -- the client, and everything at once -----------------------------------------------------------


SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
import rntk_dist as rd
from distributed import Client

if __name__ == "__main__":
    where, data, scheduler = sys.argv[1:]
    client = Client(scheduler, set_as_default=False) if scheduler else None
    X = rd.Sequences.read(data)
    kernel = rd.RNTK(sigma_w=1.3, sigma_b=0.1)
    options = {}
    exec(os.environ.get("HERE", ""))
    options |= {"tile": 8, "backend": "numpy", "client": client, "progress": False}
    rd.gram(kernel, X, store=where, **options)
"""


@contextmanager
def script(
    folder: Path,
    where: Path,
    X: Sequences,
    lines: str = SLOW,
    scheduler: str = "",
    here: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs rd.gram, its own lines `here` before; its family is gone on leaving."""
    env = preload(folder, lines) | {"HERE": dedent(here)}
    (folder / "script.py").write_text(SCRIPT)
    X.write(folder / "X.npz")
    with (folder / "script.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, folder / "script.py", where, folder / "X.npz", scheduler],
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


def n_stored(where: Path) -> int:
    """Counted without opening the store, which may not be whole."""
    return sum(not path.suffix for path in where.glob("gram/c/*/*"))


def end_a_client(how: signal.Signals, X: Sequences, folder: Path) -> Path:
    """Run with workers of its own, and end the client; all its workers must end, too."""
    where = folder / "gram"
    with script(folder / "faults", where, X) as process:
        wait_until(lambda: n_stored(where) >= 3, process)
        everyone = family(process.pid)
        assert len(everyone) > 2
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        process.wait(timeout=30)
        assert ended(everyone)
    return where


def at_once[T](run: Callable[[T, Path], Path], cases: list[T], folder: Path) -> list[Path]:
    """The stores of several runs, side by side: most of their time is the start of processes."""
    folders = [folder / str(case) for case in cases]
    for each in folders:
        each.mkdir()
    with ThreadPoolExecutor() as threads:
        return list(threads.map(run, cases, folders))


@pytest.mark.parametrize(
    "how",
    [
        pytest.param([signal.SIGTERM, signal.SIGINT], id="asked to"),
        pytest.param([signal.SIGKILL, signal.SIGINT], id="killed"),
    ],
)
@pytest.mark.slow
def test_a_client_that_ends_takes_its_own_workers_along(
    how: list[signal.Signals], X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    for where in at_once(lambda how, folder: end_a_client(how, X, folder), how, tmp_path):
        assert 1 <= len(resume(where)) <= N_TILES - 3
    told = (where.parent / "faults/script.log").read_text()
    assert "KeyboardInterrupt: interrupted: " in told
    assert "the same call resumes" in told


def test_a_cluster_outlives_its_client(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(1, SLOW)
    client.wait_for_workers(1, timeout=60)
    where = tmp_path / "gram"
    with script(tmp_path / "faults", where, X, SLOW, workers.scheduler) as process:
        wait_until(lambda: n_stored(where) >= 3, process)
        process.kill()
        process.wait()
    wait_until(lambda: not client.run_on_scheduler(n_tasks))
    store = opened(where, X)
    missing = store.missing_tiles()
    assert 1 <= len(missing) <= N_TILES - 3
    assert sorted(record.tile for record in fill(store, client, backend="numpy")) == missing
    assert len(workers.started) <= N_TILES + 1
    assert resume(where) == []


def n_tasks(dask_scheduler: object) -> int:
    return len(dask_scheduler.tasks)  # type: ignore[attr-defined]


TAKES_LONG = """
real = rd.Sequences.write_to
def slowly(self, group):
    real(self, group)
    (Path(where).parent / f"creating-{os.getpid()}").touch()
    time.sleep(SECONDS)
rd.Sequences.write_to = slowly
"""

BOTH = """
options["wait"] = 60
(Path(where).parent / f"here-{os.getpid()}").touch()
while len(list(Path(where).parent.glob("here-*"))) < 2:
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_of_two_that_create_at_once_one_creates_and_none_computes_twice(
    client: Client, workers: Workers, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    workers.start(1, SLOW)
    client.wait_for_workers(1, timeout=60)
    where, folders = tmp_path / "gram", [tmp_path / "one", tmp_path / "two"]
    lines = TAKES_LONG.replace("SECONDS", "0.5") + BOTH
    with ExitStack() as running:
        pair = [
            running.enter_context(script(folder, where, X, SLOW, workers.scheduler, lines))
            for folder in folders
        ]
        ends = [process.wait(timeout=60) for process in pair]
    told = "".join((folder / "script.log").read_text() for folder in folders)
    assert ends == [0, 0], told
    assert len(list(tmp_path.glob("creating-*"))) == 1
    assert told.count(f"{where} is being filled by process ") == 1
    assert sorted(workers.started) == list(GramStore.open(where).plan.tiles())
    assert resume(where) == []


def test_a_creation_that_was_killed_is_begun_anew(
    X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    where = tmp_path / "gram"
    here = TAKES_LONG.replace("SECONDS", "600")
    with script(tmp_path / "faults", where, X, here=here) as process:
        wait_until(lambda: any(tmp_path.glob("creating-*")), process)
        with pytest.raises(StoreBusyError, match=f"process {process.pid} on "):
            opened(where, X)
        process.kill()
        process.wait()
    assert GramStore.is_interrupted(where)
    assert len(resume(where)) == N_TILES


def kill_the_tree(seed: int, X: Sequences, folder: Path) -> Path:
    """Run, and kill every process at once at a random moment; may be before there is a store."""
    where, moment = folder / "gram", random.Random(seed)
    lines = SLOW + "\non_request('set', lambda store, key: time.sleep(0.01))"
    with script(folder / "faults", where, X, lines) as process:
        tiles = moment.randrange(N_TILES)
        wait_until(lambda: n_stored(where) >= tiles or process.poll() is not None)
        time.sleep(moment.uniform(0, 0.1))
        everyone = family(process.pid)
        for member in everyone:
            member.suspend()  # so that none sees another die
        for member in everyone:
            member.kill()
        process.wait()
        assert ended(everyone)
    return where


@pytest.mark.slow
def test_the_whole_tree_killed(X: Sequences, tmp_path: Path, resume: Resume) -> None:
    for where in at_once(lambda seed, folder: kill_the_tree(seed, X, folder), [0, 1, 2], tmp_path):
        resume(where)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_the_whole_tree_killed_more_often(
    seed: int, X: Sequences, tmp_path: Path, resume: Resume
) -> None:
    resume(kill_the_tree(seed, X, tmp_path))
