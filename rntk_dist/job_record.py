"""What a store says of the job that fills it: a small JSON record, and the wish to cancel it.

    gram/job.json       who drives the job, where, and how far it is; renewed every few seconds
    gram/cancel.json    the id of a job that is to stop

Both lie inside the array, where readers of Zarr never look. Each is put whole by one request, so
they are where the tiles are, whatever holds those, and are read with no cluster there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Literal, Self

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from rntk_dist.kernel.rntk import Backend
from rntk_dist.lease import current_owner
from rntk_dist.store import GramStore, show

type State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted", "replaced"]
"""The last two are never written: nobody drives the job any more; the store has another job."""

BEAT = 2.0
"""Seconds between two renewals of the record of a running job."""

GRACE = 30.0
"""Seconds without renewal in which a job may be on its way to another worker."""

_RECORD = "gram/job.json"
_CANCEL = "gram/cancel.json"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it was last written down.

    Stamps are UTC by the writer's clock. `host`, `pid` and `worker` (its address) of the worker
    that drives the job, `coordinators` as many as have begun to. `deaths`: tiles by how many of
    those died with them; `fruitless`: how many died in a row with nothing gained. `pair_steps` of
    the whole matrix; rates a second; `failures` maps a tile to its cause. `error` is the type of
    the exception that ended the job, `message` its sentence.
    """

    id: str
    state: State
    submitted: str
    updated: str
    started: str = ""
    backend: Backend = "auto"
    priority: int = 0
    scheduler: str = ""
    dashboard: str = ""
    host: str = ""
    pid: int = 0
    worker: str = ""
    coordinators: int = 0
    deaths: Mapping[str, int] = field(default_factory=dict)
    fruitless: int = 0
    tiles_at_start: int = 0
    pair_steps: int = 0
    pair_steps_total: int = 0
    tiles_per_second: float = 0.0
    pair_steps_per_second: float = 0.0
    workers: int = 0
    retries: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job has come to an end that was written down."""
        return self.state in ("done", "failed", "cancelled")

    def to_json(self) -> bytes:
        """As it is stored; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self | None:
        """None for what is no record; what a newer version has added is passed over."""
        try:
            data = json.loads(text)
            names = {item.name for item in fields(cls)}
            record = cls(**{name: data[name] for name in names & set(data)})
            record.age()  # TypeError or ValueError for a stamp that is none
        except (ValueError, TypeError):
            return None
        return record

    def age(self) -> float:
        """Seconds since it was written, by two clocks that may differ."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated)).total_seconds()


def now() -> str:
    """The present, as it is written in a record."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_record(store: GramStore) -> JobRecord | None:
    """The record of the store's last job; None if it never had one, or it cannot be read."""
    text = _get(store, _RECORD)
    return None if text is None else JobRecord.from_json(text)


def write_record(store: GramStore, record: JobRecord) -> JobRecord:
    """Put the record, as of now, in the place of an earlier one."""
    stamped = replace(record, updated=now())
    _put(store, _RECORD, stamped.to_json())
    return stamped


def ask_to_cancel(store: GramStore, job: str) -> None:
    """Ask whoever drives the job to stop."""
    _put(store, _CANCEL, json.dumps({"job": job, "asked": now()}).encode())


def is_to_cancel(store: GramStore, job: str) -> bool:
    """Whether somebody has asked that."""
    try:
        asked = json.loads(_get(store, _CANCEL) or b"{}")
    except ValueError:
        return False
    return isinstance(asked, dict) and asked.get("job") == job


def _get(store: GramStore, key: str) -> bytes | None:
    found = sync(store.array.store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def _put(store: GramStore, key: str, content: bytes) -> None:
    sync(store.array.store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


# -- what is so now --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job is: `str()` of it is a page for people, `to_dict()` is JSON.

    `state` is "queued" (no worker drives it yet, or again), "running", "done", "failed",
    "cancelled", "interrupted" (nobody drives it any more: submitting it again resumes) or
    "replaced" (the store has had another job since). Rates are of the last minute; `eta_seconds`
    is None where it cannot be told. `updated` is when the job was last heard of, in UTC by its
    worker's clock.
    """

    id: str
    store: str
    state: State
    tiles_done: int
    tiles_total: int
    tiles_per_second: float
    pair_steps_per_second: float
    eta_seconds: float | None
    workers: int
    retries: int
    failures: Mapping[str, str]
    dashboard: str
    submitted: str
    updated: str
    message: str
    error: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of the job by itself."""
        return self.state not in ("queued", "running")

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {**asdict(self), "failures": dict(self.failures)}

    def __str__(self) -> str:
        share = self.tiles_done / self.tiles_total
        lines = [
            f"job {self.id}: {self.state}",
            f"  store      {self.store}",
            f"  tiles      {self.tiles_done} of {self.tiles_total} ({share:.0%})",
        ]
        if self.state == "running":
            lines += [f"  speed      {self._speed()}", f"  workers    {self.workers}"]
        if self.retries:
            lines.append(f"  retries    {self.retries}")
        lines += [f"  failed     {tile}: {cause}" for tile, cause in self._shown_failures()]
        if self.dashboard and not self.has_ended:
            lines.append(f"  dashboard  {self.dashboard}")
        lines += [f"  submitted  {self.submitted}", f"  heard of   {self.updated}"]
        return "\n".join([*lines, *([f"  {self.message}"] if self.message else [])])

    def _speed(self) -> str:
        left = "" if self.eta_seconds is None else f", {self.eta_seconds:.0f} s left"
        tiles, steps = self.tiles_per_second, self.pair_steps_per_second
        return f"{tiles:.3g} tiles/s, {steps:.2g} pair-steps/s{left}"

    def _shown_failures(self, most: int = 5) -> list[tuple[str, str]]:
        shown = list(self.failures.items())[:most]
        more = len(self.failures) - most
        return [*shown, (f"{more} more", "...")] if more > 0 else shown


def status_now(
    store: GramStore, job: str, on_cluster: Callable[[JobRecord], bool | None]
) -> JobStatus:
    """The status of a job from its record, the lease and the tiles that are there.

    `on_cluster` is called where those do not tell whether the job is alive: it says whether the
    scheduler knows it, None where its scheduler cannot be asked.
    """
    record = read_record(store)
    stored = len(store.stored_tiles())
    whole = stored == store.plan.n_tiles
    if record is None or record.id != job:
        record = _stand_in(job, record, whole)
    state = _state(store, record, whole, on_cluster)
    running = state == "running"
    return JobStatus(
        id=job,
        store=show(store.location),
        state=state,
        tiles_done=stored,
        tiles_total=store.plan.n_tiles,
        tiles_per_second=record.tiles_per_second,
        pair_steps_per_second=record.pair_steps_per_second,
        eta_seconds=_eta(record) if running else None,
        workers=record.workers if running else 0,
        retries=record.retries,
        failures=record.failures,
        dashboard=record.dashboard,
        submitted=record.submitted,
        updated=record.updated,
        message=record.message or _advice(state),
        error=record.error,
    )


def _state(
    store: GramStore, record: JobRecord, whole: bool, on_cluster: Callable[[JobRecord], bool | None]
) -> State:
    if record.has_ended or record.state == "replaced":
        return "done" if whole and record.state != "replaced" else record.state
    begun = record.state == "running"
    if begun and is_driven(store, record):
        return "running"
    if whole:  # its coordinator went before it could say so, or another run computed the rest
        return "done"
    known = on_cluster(record)
    # Who has not begun yet will look at this before anything else.
    if is_to_cancel(store, record.id) and not (begun and known):
        return "cancelled"
    fresh = begun and record.age() < GRACE
    if known or (known is None and (fresh or not begun)):
        return "running" if fresh else "queued"
    return "interrupted"


def is_driven(store: GramStore, record: JobRecord) -> bool:
    """Whether a coordinator of the job holds the store now, as far as that can be told."""
    owner = current_owner(store.location)
    if owner is None or owner.job != record.id:
        return False
    return not owner.has_ended() and owner.silent() <= owner.ttl


def _eta(record: JobRecord) -> float | None:
    left = record.pair_steps_total - record.pair_steps
    return left / record.pair_steps_per_second if record.pair_steps_per_second else None


def _stand_in(job: str, record: JobRecord | None, whole: bool) -> JobRecord:
    """For a job that the store does not tell of: it had nothing to do, or another came after it."""
    if whole and record is None:
        return JobRecord(job, "done", "", "")
    follower = "none" if record is None else record.id
    message = f"the store's present job is {follower}"
    return JobRecord(job, "replaced", "", "", message=message)


def _advice(state: State) -> str:
    if state == "interrupted":
        return "nobody drives it any more: submit it again, which resumes"
    return "cancelled: submit it again to resume" if state == "cancelled" else ""
