"""One owner of a store: who fills it now, told to everyone else.

    with lease("s3://bucket/gram") as held:
        ...                       # StoreBusyError if another process has it
        held.check()              # now and then: LeaseLostError if another took over

A lease is a small JSON record in the store, beside the tiles, where Zarr passes over it: who holds
it (host, process), since when, and when it was last renewed. A thread of the holder renews it every
third of its time to live (`ttl`). A lease that is not renewed for its whole ttl is stale, and may
be taken over; who was only stopped for that long notices when it renews, and is told to stop.

*Clocks.* No decision compares two machines' clocks. Who waits measures with its own monotonic clock
how long the record stays as it is. (The stamps of the record only decide whether that is worth
doing at all when the caller did not want to wait.) On the holder's own machine nobody need wait: a
process that has ended, or whose number another process has now, holds nothing.

*Atomicity.* Every change is a compare-and-swap that the storage carries out, so of any number of
processes that take a free or stale lease one succeeds (see `slots`). A lease that is given back
stays, marked as released: removing it could hit the record of a successor.

*What a lease is not.* It saves double work and tells people apart; it does not guard the values. A
tile is one whole chunk and the same bytes whoever computes it, so two processes that fill one store
do no harm to it.

There is no lease where nothing can be changed atomically for others to see: stores in memory, Zarr
store objects, URLs other than file:// and s3://, and old S3 servers. The block then runs without.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
from zarr.abc.store import Store

from rntk_dist.location import Location, locate, show
from rntk_dist.slots import NoCompareAndSwapError, Seen, Slot, slot_of

TTL = 60.0
"""Seconds without renewal after which a lease is stale, unless told otherwise."""

_POLL = 1.0

_log = logging.getLogger(__name__)


class StoreBusyError(RuntimeError):
    """Another process holds the store; the message says who, since when, and what can be done."""


class LeaseLostError(RuntimeError):
    """Another process took the store over while this one was stopped or cut off from it."""


# -- the record ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a store; `since` and `renewed` are UTC by the owner's clock, `ttl` in seconds.

    `machine` and `birth` tell, on the same machine, whether the process still runs. `job` is the
    id of what it does, if that goes on in another process when this one ends.
    """

    id: str
    host: str
    pid: int
    machine: str
    birth: str
    since: str
    renewed: str
    ttl: float
    released: bool = False
    job: str = ""

    @classmethod
    def here(cls, ttl: float, job: str = "") -> Owner:
        """The process that asks, as from now."""
        now, pid = _now().isoformat(timespec="seconds"), os.getpid()
        host, birth = socket.gethostname(), _birth(pid)
        return cls(uuid.uuid4().hex, host, pid, _machine(), birth, now, now, ttl, job=job)

    def encode(self) -> bytes:
        """As it stands in the store."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes) -> Owner:
        """Inverse of `encode`; a record that cannot be read is that of an unknown owner.

        A power cut may leave an empty record. It must block nobody for ever, so it is one like
        others that is stale if it does not change.
        """
        names = {item.name for item in fields(cls)}
        try:
            data = json.loads(content)
            owner = cls(**{name: data[name] for name in names & set(data)})
            owner = replace(owner, ttl=float(owner.ttl), pid=int(owner.pid))
            owner.silent()  # TypeError if a stamp has no time zone
            if owner.ttl > 0:
                return owner
        except (ValueError, TypeError):
            pass
        return cls("", "an unknown host", 0, "", "", "an unknown time", _EPOCH, TTL)

    def renewed_now(self, *, released: bool = False) -> Owner:
        """The same owner, heard of just now."""
        return replace(self, renewed=_now().isoformat(timespec="microseconds"), released=released)

    def silent(self) -> float:
        """Seconds since the renewal, by two clocks that may differ: a hint, never a proof."""
        return (_now() - datetime.fromisoformat(self.renewed)).total_seconds()

    def has_ended(self) -> bool:
        """True if the process certainly runs no more; False if that cannot be told from here."""
        if self.machine != _machine():
            return False
        return not psutil.pid_exists(self.pid) or _birth(self.pid) not in (self.birth, "")

    def is_followed_by(self, other: Owner) -> bool:
        """True if the other goes on with this one's job."""
        return bool(self.job) and self.job == other.job

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


_EPOCH = datetime.fromtimestamp(0, UTC).isoformat()


def _now() -> datetime:
    return datetime.now(UTC)


def _machine() -> str:
    """What two processes have in common if each can see whether the other runs.

    The host's name alone will not do: containers have process numbers of their own and may share
    a name, and a machine that started anew has given its numbers to others.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _birth(pid: int) -> str:
    """What tells a process from a later one with the same number: its start, in clock ticks.

    They count from the machine's start, so setting the clock does not change them. Empty where
    that is not known; a process that has died but was not yet waited for has none any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return "dead" if state in "ZX" else rest[18]


# -- taking it -------------------------------------------------------------------------------------


class _Watch:
    """How long another owner's record has stayed as it is, by this process's own clock.

    Only what was watched counts: where the storage hung, or this process was stopped, its owner
    may have fared no better, and gets its whole ttl again.
    """

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.since = self.looked = time.monotonic()
        self.records = 0

    def look(self, seen: Seen) -> Owner:
        owner, last, self.looked = Owner.decode(seen.content), self.looked, time.monotonic()
        if seen.content != self.content:
            self.content, self.since = seen.content, self.looked
            self.records += 1
        elif self.looked - last > owner.ttl / 2:
            self.since = self.looked
        return owner

    def is_stale(self, owner: Owner) -> bool:
        return owner.has_ended() or self.looked - self.since >= owner.ttl

    def seems_abandoned(self, owner: Owner) -> bool:
        """True if the record says that it is old, and was not renewed before our eyes."""
        return self.records == 1 and owner.silent() > owner.ttl


def _acquire(slot: Slot, me: Owner, wait: float, where: str) -> Seen:
    """Take the lease as soon as it is free or stale.

    Raises StoreBusyError if another process has it for `wait` seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        free = _wait_until_free(slot, me, deadline, where)
        taken = slot.take(me.renewed_now().encode(), free)
        if taken is not None:
            return taken


def _wait_until_free(slot: Slot, me: Owner, deadline: float, where: str) -> Seen | None:
    """The record that may be replaced: none, a released one, one's own job's, or a stale one."""
    watch, told = _Watch(), False
    while (seen := slot.read()) is not None:
        owner = watch.look(seen)
        if owner.released:
            break
        if owner.is_followed_by(me):
            _log.warning("%s: going on with job %s of %s", where, me.job, owner)
            break
        if watch.is_stale(owner):
            _log.warning("%s: taking over from %s, which has gone", where, owner)
            break
        if time.monotonic() >= deadline and not watch.seems_abandoned(owner):
            raise StoreBusyError(_busy(where, owner))
        if not told:
            _log.warning("%s is being filled by %s: waiting", where, owner)
            told = True
        time.sleep(min(_POLL, owner.ttl / 10))
    return seen


def _busy(where: str, owner: Owner) -> str:
    return (
        f"{where} is being filled by {owner} (renewed {owner.renewed}, by its clock): wait for it "
        "to end, or end it, then make the same call again, which resumes. If it has died unseen, "
        f"the call takes the store over {owner.ttl:g} s after its last renewal"
    )


# -- holding it ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """A store that this process holds. `lost` is set, for good, if another took it over."""

    location: str
    owner: Owner | None
    """None where the store can have no lease; it is then never lost."""
    lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken the store over."""
        if self.lost.is_set():
            raise LeaseLostError(
                f"another process has taken over {self.location}, which this one had not been able "
                "to renew its hold of (stopped, or cut off from the store, for long): this run "
                "stops. Tiles that both have written are the same bytes, so nothing is harmed; "
                "rd.gram on the same store tells who holds it now"
            )


class _Renewer(threading.Thread):
    """Renews a lease until it is given back or lost."""

    def __init__(self, slot: Slot, held: Lease, owner: Owner, mine: Seen) -> None:
        super().__init__(name=f"lease of {held.location}", daemon=True)
        self.slot, self.held, self.owner, self.mine = slot, held, owner, mine
        self.leaving = threading.Event()

    def run(self) -> None:
        while not self.leaving.wait(self.owner.ttl / 3):
            self._put(self.owner.renewed_now())
            if self.held.lost.is_set():
                return

    def release(self) -> None:
        """Stop renewing and give the lease back."""
        self.leaving.set()
        self.join(self.owner.ttl)
        # One that still hangs in a request to the storage would overtake us: it goes stale instead.
        if not self.is_alive() and not self.held.lost.is_set():
            self._put(self.owner.renewed_now(released=True))

    def _put(self, owner: Owner) -> None:
        content = owner.encode()
        try:
            now = self.slot.renew(content, self.mine) or self._renew_again(content)
        except OSError as error:
            # The lease is not lost before another takes it, and the storage may be back next time.
            _log.warning("%s: the lease could not be renewed: %s", self.held.location, error)
            return
        if now is None:
            self.held.lost.set()
        else:
            self.mine = now

    def _renew_again(self, content: bytes) -> Seen | None:
        """An earlier renewal may have come about though it failed: its record is ours, too."""
        seen = self.slot.read()
        if seen is None or Owner.decode(seen.content).id != self.owner.id:
            return None
        return self.slot.renew(content, seen)


@contextmanager
def lease(
    location: Location, wait: float = 0.0, ttl: float = TTL, *, job: str = "", new: bool = False
) -> Iterator[Lease]:
    """Hold a store: nobody else gets its lease meanwhile.

    Parameters
    ----------
    location
        The store's path, URL or Zarr store. A Zarr store and a URL other than file:// and s3://
        have no lease: the block runs without.
    wait
        Seconds to wait for another process to end. With 0, a lease that says it was renewed within
        its ttl is refused at once; one that looks abandoned is watched for one ttl all the same.
    ttl
        Seconds without renewal after which others may take the lease over.
    job
        Id of a job of which one process at a time runs, as somebody else sees to: the next takes
        the lease over from the one before at once. Both may run for a moment, if that was wrong;
        tiles that both write are the same bytes.
    new
        The store may not be there yet: the folder of a local one is made, and removed again if the
        lease cannot be had.

    Yields
    ------
    Lease
        Ask its `check()`, or its event `lost`, now and then.

    Raises
    ------
    StoreBusyError
        Another process holds the store; the message says who and since when.
    OSError
        The storage cannot be read or written, FileNotFoundError if a local store is not there and
        not `new`.
    ValueError
        `wait` is negative or `ttl` not positive.
    ImportError
        s3:// without the extra s3.
    """
    if wait < 0 or not ttl > 0:
        raise ValueError(f"wait must be >= 0 and ttl > 0, got wait={wait:g}, ttl={ttl:g}")
    where = locate(location)
    renewer = _take(where, Owner.here(ttl, job), wait, new)
    if renewer is None:
        yield Lease(show(where), None)
        return
    renewer.start()
    try:
        yield renewer.held
    finally:
        renewer.release()


def has_lease(location: Location) -> bool:
    """Whether the location can have a lease, as far as its name tells. ImportError as `lease`."""
    where = locate(location)
    return isinstance(where, str) and slot_of(where) is not None


def _take(where: str | Store, owner: Owner, wait: float, new: bool) -> _Renewer | None:
    slot = slot_of(where) if isinstance(where, str) else None
    if slot is None:
        return None
    try:
        with slot.prepared() if new else nullcontext():
            mine = _acquire(slot, owner, wait, show(where))
    except NoCompareAndSwapError as error:
        _log.warning("%s can have no lease, nobody is kept from filling it: %s", show(where), error)
        return None
    return _Renewer(slot, Lease(show(where), owner), owner, mine)


def current_owner(location: Location) -> Owner | None:
    """Who holds the store, as its record says; None if nobody does, or it can have no lease.

    Raises OSError and ImportError as `lease`.
    """
    where = locate(location)
    slot = slot_of(where) if isinstance(where, str) else None
    seen = None if slot is None else slot.read()
    owner = None if seen is None else Owner.decode(seen.content)
    return None if owner is None or owner.released else owner
