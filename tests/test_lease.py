"""One owner of a store: who gets it, who is told what, and what a stopped or dead owner leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from rntk_dist import lease as lease_module
from rntk_dist.lease import LeaseLostError, Owner, StoreBusyError, current_owner, lease
from rntk_dist.plan import Plan
from rntk_dist.sequences import Sequences
from rntk_dist.slots import Folder, NoCompareAndSwapError, Seen
from rntk_dist.store import GramStore, Manifest

TTL = 0.4
HOLDER = """
import sys, time
from rntk_dist.lease import lease

with lease(sys.argv[1], wait=float(sys.argv[2]), ttl=float(sys.argv[3])) as held:
    print("held", flush=True)
    while not held.lost.wait(0.02):
        pass
    print("lost", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store as far as a lease is concerned: one made in earnest takes far longer."""
    (tmp_path / "store" / "gram").mkdir(parents=True)
    return tmp_path / "store"


def slot(store: Path) -> Folder:
    return Folder(store / "gram")


def files(store: Path) -> list[str]:
    return sorted(os.listdir(store / "gram"))


def elsewhere(ttl: float = TTL, renewed: datetime | None = None) -> Owner:
    """An owner on another machine, of which nothing can be known but what it writes."""
    stamp = (renewed or datetime.now(UTC)).isoformat()
    return replace(Owner.here(ttl), machine="another", host="far", pid=4711, renewed=stamp)


@contextmanager
def holder(store: Path | str, wait: float = 0.0, ttl: float = 60.0) -> Iterator[subprocess.Popen]:
    """A process that holds the store until it is ended or loses it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store), str(wait), str(ttl)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -- taking it and giving it back ------------------------------------------------------------------


def test_a_lease_is_taken_and_given_back(store: Path) -> None:
    with lease(store) as held:
        owner = current_owner(store)
        assert owner is not None
        assert (owner.id, owner.pid) == (held.owner and held.owner.id, os.getpid())
        held.check()
    assert current_owner(store) is None
    with lease(store):
        assert files(store) == ["lease-2.json"]  # the former owner's is gone


def test_it_is_given_back_after_an_error(store: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(store):
        raise ZeroDivisionError
    assert current_owner(store) is None


def test_the_second_is_told_who_holds_the_store(store: Path) -> None:
    with lease(store) as held, pytest.raises(StoreBusyError) as caught, lease(store):
        pytest.fail("two hold the store")
    assert held.owner is not None
    for part in (str(store), held.owner.host, f"process {os.getpid()}", held.owner.since, "60 s"):
        assert part in str(caught.value)


def test_another_process_is_refused_and_then_waited_for(store: Path) -> None:
    with holder(store) as process:
        with pytest.raises(StoreBusyError, match=f"process {process.pid} on "), lease(store):
            pytest.fail("two hold the store")
        started = time.monotonic()
        threading.Timer(0.3, process.kill).start()
        with lease(store, wait=30):
            assert time.monotonic() - started > 0.2


def test_who_waits_gets_it_when_it_is_given_back(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order: list[str] = []

    def wait() -> None:
        with lease(store, wait=30, ttl=TTL):
            order.append("second")

    waiter = threading.Thread(target=wait)
    with lease(store):
        waiter.start()
        time.sleep(2 * TTL)
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]
    assert f"is being filled by process {os.getpid()}" in caplog.text


def test_waiting_ends_though_it_takes_longer_than_a_ttl(store: Path) -> None:
    with lease(store, ttl=2), pytest.raises(StoreBusyError), lease(store, wait=3):
        pytest.fail("two hold the store")


@pytest.mark.parametrize("options", [{"wait": -1}, {"ttl": 0}, {"ttl": float("nan")}])
def test_senseless_times_are_refused(store: Path, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wait must be >= 0"), lease(store, **options):
        pass


def test_a_store_that_is_not_there_has_no_lease(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lease(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [MemoryStore(), "memory://here", "gs://bucket/store"])
def test_where_nothing_is_atomic_the_block_runs_without(where: MemoryStore | str) -> None:
    with lease(where) as first, lease(where) as second:
        assert first.owner is second.owner is None
        second.check()
    assert current_owner(where) is None


def test_a_zarr_store_object_has_no_lease(store: Path) -> None:
    with lease(LocalStore(store)):
        assert files(store) == []


def test_a_file_url_and_a_path_are_one_store(store: Path) -> None:
    with lease(f"file://{store}"), pytest.raises(StoreBusyError), lease(store):
        pytest.fail("two hold the store")


def test_zarr_passes_over_the_record(tmp_path: Path) -> None:
    X = Sequences.from_arrays(np.random.default_rng(0).normal(size=(3, 4, 1)))
    manifest = Manifest({}, "ntk", Plan(3, 3, 2, True, 8), X.fingerprint)
    made = GramStore.create(tmp_path / "gram", manifest, X)
    with lease(made.location), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {name for name, _ in zarr.open_group(made.location, mode="r").members()} == {
            "gram",
            "sequences",
        }
        assert made.stored_tiles() == frozenset()


# -- owners that are gone --------------------------------------------------------------------------


def test_a_killed_owner_on_this_machine_is_followed_at_once(store: Path) -> None:
    with holder(store) as process:
        process.kill()
        process.wait()
        started = time.monotonic()
        with lease(store):
            assert time.monotonic() - started < 30  # half its ttl


def test_a_dead_owner_that_nobody_waited_for_is_followed_at_once(store: Path) -> None:
    with holder(store) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
        with lease(store):
            pass


def test_a_process_number_used_again_holds_nothing(store: Path) -> None:
    slot(store).take(replace(Owner.here(60.0), birth="1").encode(), None)
    with lease(store):
        pass


def test_an_owner_elsewhere_is_followed_after_its_ttl_by_our_clock(store: Path) -> None:
    seen = slot(store).take(elsewhere(ttl=60.0).encode(), None)
    with pytest.raises(StoreBusyError, match="process 4711 on far"), lease(store):
        pytest.fail("taken at once")
    slot(store).take(elsewhere().encode(), seen)
    started = time.monotonic()
    with lease(store, wait=30):
        assert time.monotonic() - started >= TTL


@pytest.mark.parametrize("content", [b"", b"5", b"{", b'{"id": 1}'])
def test_an_unreadable_record_blocks_nobody_for_ever(
    store: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL", 0.1)
    slot(store).take(content, None)
    with lease(store):
        pass


def test_records_that_make_no_sense_are_those_of_an_unknown_owner() -> None:
    data = json.loads(elsewhere().encode())
    for wrong in ({"ttl": -1}, {"ttl": None}, {"renewed": "2026-01-01T00:00"}, {"pid": "x"}):
        assert Owner.decode(json.dumps(data | wrong).encode()).host == "an unknown host"
    assert Owner.decode(json.dumps(data | {"later": 1}).encode()).host == "far"


# -- jobs ------------------------------------------------------------------------------------------


def test_a_job_is_gone_on_with_at_once_wherever_its_owner_was(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slot(store).take(replace(elsewhere(ttl=60.0), job="night").encode(), None)
    with lease(store, job="night") as held:
        owner = current_owner(store)
        assert owner is not None
        assert (owner.id, owner.job) == (held.owner and held.owner.id, "night")
    assert "going on with job night of process 4711 on far" in caplog.text


def test_the_owner_before_is_told_that_its_job_went_on(store: Path) -> None:
    with lease(store, ttl=TTL, job="night") as first:
        with lease(store, job="night") as second:
            assert first.lost.wait(10)
            with pytest.raises(LeaseLostError):
                first.check()
            second.check()
        assert current_owner(store) is None


@pytest.mark.parametrize(("theirs", "ours"), [("night", "day"), ("night", ""), ("", "night")])
def test_another_job_is_waited_for(store: Path, theirs: str, ours: str) -> None:
    slot(store).take(replace(elsewhere(ttl=60.0), job=theirs).encode(), None)
    with pytest.raises(StoreBusyError), lease(store, job=ours):
        pytest.fail("two hold the store")


def test_no_job_is_no_common_job(store: Path) -> None:
    slot(store).take(elsewhere(ttl=60.0).encode(), None)
    with pytest.raises(StoreBusyError), lease(store, job=""):
        pytest.fail("two hold the store")


def test_records_of_versions_without_jobs_are_read() -> None:
    data = json.loads(elsewhere().encode())
    assert data.pop("job") == ""
    assert Owner.decode(json.dumps(data).encode()) == replace(
        elsewhere(), id=data["id"], renewed=data["renewed"], since=data["since"]
    )
    strange = Owner.decode(json.dumps(data | {"job": None}).encode())
    assert not strange.is_followed_by(strange)


# -- stores that are not there yet -----------------------------------------------------------------


def test_a_new_store_s_folder_is_made_and_one_that_cannot_be_held_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "to/come"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"), lease(where, new=True):
            pytest.fail("it is held")
    assert list(tmp_path.iterdir()) == []
    with lease(where, new=True), pytest.raises(StoreBusyError), lease(where, new=True):
        pytest.fail("two hold the store")
    assert current_owner(where) is None


# -- clocks ----------------------------------------------------------------------------------------


@contextmanager
def renewing(store: Path, skew: timedelta, ttl: float) -> Iterator[None]:
    """An owner elsewhere, alive, whose clock is wrong."""
    place, owner, leaving = slot(store), elsewhere(ttl), threading.Event()
    mine = place.take(replace(owner, renewed=(datetime.now(UTC) + skew).isoformat()).encode(), None)
    assert mine is not None

    def renew() -> None:
        while not leaving.wait(0.1):
            stamp = (datetime.now(UTC) + skew).isoformat()
            place.renew(replace(owner, renewed=stamp).encode(), mine)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


@pytest.mark.parametrize("days", [-1, 1])
@pytest.mark.parametrize(("wait", "ttl"), [(0.0, 30.0), (3.0, 2.0)])
def test_a_wrong_clock_costs_a_living_owner_nothing(
    store: Path, days: int, wait: float, ttl: float
) -> None:
    started = time.monotonic()
    with (
        renewing(store, timedelta(days=days), ttl),
        pytest.raises(StoreBusyError),
        lease(store, wait=wait),
    ):
        pytest.fail("two hold the store")
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("days", [-1, 1])
def test_a_wrong_clock_does_not_keep_a_dead_owner_alive(store: Path, days: int) -> None:
    stamp = datetime.now(UTC) + timedelta(days=days)
    slot(store).take(elsewhere(renewed=stamp).encode(), None)
    started = time.monotonic()
    # An old stamp is worth a look of one ttl although the caller did not want to wait.
    with lease(store, wait=0 if days < 0 else 30):
        assert time.monotonic() - started >= TTL


@dataclass
class Hanging:
    """A slot that answers its second request late, and so its owner's; with a clock of its own."""

    seconds: float = 0.0
    requests: int = 0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def read(self) -> Seen:
        self.requests += 1
        if self.requests == 2:
            self.sleep(100)
        renewed = datetime(2026, 1, 1, second=max(2, self.requests) // 2, tzinfo=UTC)
        return Seen(replace(elsewhere(60.0, renewed), id="alive", since="").encode(), "")

    def take(self, content: bytes, over: Seen | None) -> Seen:
        pytest.fail("two hold the store")


def test_a_storage_that_hangs_makes_no_living_owner_stale(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging()
    monkeypatch.setattr(lease_module, "slot_of", lambda where: hanging)
    monkeypatch.setattr(lease_module, "time", hanging)
    with pytest.raises(StoreBusyError, match="4711"), lease(store, wait=150):
        pytest.fail("two hold the store")
    assert hanging.requests > 40


# -- owners that come back -------------------------------------------------------------------------


def test_an_owner_that_was_stopped_too_long_is_told(store: Path) -> None:
    with holder(store, ttl=TTL) as process:
        process.send_signal(signal.SIGSTOP)
        with lease(store, wait=30) as held:
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline() == "lost\n"
            assert process.wait(10) == 0
            held.check()
            owner = current_owner(store)
            assert owner is not None
            assert owner.pid == os.getpid()


def test_a_lost_lease_is_not_given_back_and_says_so(store: Path) -> None:
    with lease(store, ttl=TTL) as held:
        taken = slot(store).take(elsewhere(ttl=60.0).encode(), slot(store).read())
        assert taken is not None
        assert held.lost.wait(10)
        with pytest.raises(LeaseLostError, match="the same bytes"):
            held.check()
    assert slot(store).read() == taken


@dataclass
class Flaky:
    """A slot whose renewals fail, `after` or before the record has been written."""

    slot: Folder
    after: bool
    failures: int = 2
    asked: threading.Event = field(default_factory=threading.Event)

    def read(self) -> Seen | None:
        return self.slot.read()

    def take(self, content: bytes, over: Seen | None) -> Seen | None:
        return self.slot.take(content, over)

    def renew(self, content: bytes, mine: Seen) -> Seen | None:
        if self.failures:
            self.failures -= 1
            if self.after:
                self.slot.renew(content, mine)
            raise OSError("the network is down")
        self.asked.set()
        # As a bucket does: one's own record, but not the one that was seen.
        return self.slot.renew(content, mine) if self.slot.read() == mine else None


@pytest.mark.parametrize("after", [False, True])
def test_a_storage_that_fails_for_a_while_costs_no_lease(
    store: Path, after: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(slot(store), after)
    monkeypatch.setattr(lease_module, "slot_of", lambda where: flaky)
    with lease(store, ttl=TTL) as held:
        assert flaky.asked.wait(10)
        time.sleep(TTL)
        held.check()
    assert "could not be renewed: the network is down" in caplog.text
    assert current_owner(store) is None


def test_a_server_without_conditions_is_used_without_a_lease(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass
    class Old(Flaky):
        def take(self, content: bytes, over: Seen | None) -> Seen | None:
            raise NoCompareAndSwapError("501")

    monkeypatch.setattr(lease_module, "slot_of", lambda where: Old(slot(store), False))
    with lease(store) as held:
        held.check()
    assert "can have no lease" in caplog.text


# -- races -----------------------------------------------------------------------------------------


def race(n: int, attempt: Callable[[int], bool]) -> list[int]:
    """Those of n threads, started together, whose attempt succeeded."""
    ready, won = threading.Barrier(n), []

    def run(k: int) -> None:
        ready.wait()
        if attempt(k):
            won.append(k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_that_take_at_once_one_succeeds(store: Path) -> None:
    for _ in range(50):
        seen = slot(store).read()
        won = race(8, lambda k, over=seen: slot(store).take(b"%d" % k, over) is not None)
        now = slot(store).read()
        assert now is not None
        assert [b"%d" % k for k in won] == [now.content]
        assert len(files(store)) == 1


def test_processes_that_find_a_stale_lease_hold_it_one_after_another(store: Path) -> None:
    slot(store).take(elsewhere().encode(), None)
    taker = """
import sys, time
from rntk_dist.lease import lease

with lease(sys.argv[1], wait=60):
    entered = time.monotonic()
    time.sleep(0.3)
    print(entered, time.monotonic())
"""
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", taker, str(store)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    spans = sorted([float(t) for t in process.communicate()[0].split()] for process in takers)
    assert [process.returncode for process in takers] == [0, 0, 0]
    assert all(one[1] <= next_[0] for one, next_ in pairwise(spans))


def test_who_comes_too_late_withdraws(store: Path) -> None:
    seen = slot(store).take(b"1", None)
    second = slot(store).take(b"2", seen)
    third = slot(store).take(b"3", second)
    assert slot(store).take(b"late", seen) is None
    assert slot(store).take(b"first of all", None) is None
    assert slot(store).read() == third
    assert files(store) == ["lease-3.json"]


def test_a_renewal_after_a_take_over_harms_nobody(store: Path) -> None:
    mine = slot(store).take(b"1", None)
    assert mine is not None
    theirs = slot(store).take(b"2", mine)
    assert slot(store).renew(b"1 again", mine) is None
    assert slot(store).read() == theirs
    assert files(store) == ["lease-2.json"]


def test_what_killed_writers_left_is_cleaned_up(store: Path) -> None:
    seen = slot(store).take(b"1", None)
    (store / "gram" / ".lease-1.00ff.tmp").write_bytes(b"half")
    (store / "gram" / ".lease-3.00ff.tmp").write_bytes(b"of one that comes after us")
    slot(store).take(b"2", seen)
    assert files(store) == [".lease-3.00ff.tmp", "lease-2.json"]


def test_a_drive_without_hard_links_will_do(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with lease(store), pytest.raises(StoreBusyError), lease(store):
        pytest.fail("two hold the store")
    seen = slot(store).read()
    won = race(8, lambda k: slot(store).take(b"%d" % k, seen) is not None)
    assert len(won) == len(files(store)) == 1


def full(path: Path, content: bytes) -> int:
    path.touch()
    raise OSError(28, "No space left on device")


def test_a_full_drive_keeps_no_lease(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(store, ttl=3) as held:
        monkeypatch.setattr(Path, "write_bytes", full)
        taken = slot(store).read()
        while slot(store).read() == taken:  # to be renewed
            time.sleep(0.05)
        held.check()
        with pytest.raises(StoreBusyError), lease(store):
            pytest.fail("two hold the store")
    assert current_owner(store) is None
    assert files(store) == ["lease-1.json"]


def test_a_renewal_on_a_full_drive_after_a_take_over_harms_nobody(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = slot(store).take(b"1", None)
    assert mine is not None
    theirs = slot(store).take(b"2", mine)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert slot(store).renew(b"1 again", mine) is None
    assert slot(store).read() == theirs


def test_a_full_drive_leaves_nothing_behind(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"), lease(store):
        pass
    assert files(store) == []
