"""Why a tile fails or a whole run stops, in words: what is kept, and how to go on.

A failure is one of three. What the tile's own data make is the same at every try: it is reported
with the tile, and the others go on. What the store makes (full, read-only, gone) hits all tiles
alike: the run stops at the first. Anything else may pass, and is tried again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from distributed import KilledWorker
from zarr.abc.store import Store
from zarr.storage import LocalStore

from rntk_dist.plan import MIB, Tile, ceil_div
from rntk_dist.store import (
    GramStore,
    IdentityError,
    Location,
    NeighborsFoundError,
    StoreFormatError,
    SweepFoundError,
    show,
)

_SAME_AT_EVERY_TRY = (OverflowError, ValueError, TypeError)

_OF_THE_STORE = {
    errno.ENOSPC: ("is full", "make room"),
    errno.EDQUOT: ("is at its quota", "make room"),
    errno.EROFS: ("is read-only", "make it writable"),
    errno.EACCES: ("is not writable", "give this user access"),
    errno.EPERM: ("is not writable", "give this user access"),
}
"""By error number: how it is with the store, and what to do."""


class TileError(RuntimeError):
    """Some tiles failed for good; the others are kept. `failed` maps each to its cause."""

    def __init__(self, message: str, failed: dict[Tile, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failed = failed or {}


class StoreUnavailableError(RuntimeError):
    """The store is full, read-only or gone: no tile can be stored, and the run has stopped."""


class SchedulerLostError(RuntimeError):
    """The scheduler is gone, and all it knew of the run; the store has the tiles."""


# -- in a task -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a task returns, for Dask would try again what is raised, where that cannot help.

    `host` of the worker. `lost`: it finds no store.
    """

    cause: Exception
    host: str
    lost: bool = False

    @classmethod
    def of(cls, error: Exception, location: Location) -> Self | None:
        """None if trying again may help."""
        loss = _loss(location)
        if loss is not None:  # whichever request it was that met it
            return cls(loss, socket.gethostname(), lost=True)
        final = isinstance(error, _SAME_AT_EVERY_TRY) or _errno(error) in _OF_THE_STORE
        return cls(error, socket.gethostname()) if final else None

    @property
    def stops_the_run(self) -> bool:
        """Whether all other tiles would meet the same."""
        return self.lost or self.replaced or _errno(self.cause) in _OF_THE_STORE

    @property
    def replaced(self) -> bool:
        """Whether the store holds another matrix by now."""
        return isinstance(self.cause, IdentityError)


def _errno(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _loss(location: Location) -> Exception | None:
    """What says that there is no store; None where there is one, or where that is not known."""
    try:
        GramStore.open(location)
    except (SweepFoundError, NeighborsFoundError):
        return None
    except (FileNotFoundError, StoreFormatError) as error:
        return error
    except OSError:  # a request that fails does not say that there is nothing
        return None
    return None


# -- of a run --------------------------------------------------------------------------------------


def kept(store: GramStore, n: int) -> str:
    """How to go on with a store of `n` tiles."""
    where = show(store.location)
    return f"{n} of {store.plan.n_tiles} tiles are kept in {where}, and the same call resumes"


def check_writable(store: GramStore) -> None:
    """Raise StoreUnavailableError for a folder that this process may not write; others: unknown."""
    files = store.array.store
    if isinstance(files, LocalStore) and not os.access(files.root / "gram", os.W_OK):
        raise StoreUnavailableError(
            f"{show(store.location)} is read-only for this process (its permissions or its mount): "
            f"make it writable; nothing was computed, {kept(store, len(store.stored_tiles()))}"
        )


@contextmanager
def refused(location: str | Store) -> Iterator[None]:
    """Say in a StoreUnavailableError why a store can neither be created nor taken hold of."""
    try:
        yield
    except OSError as error:
        # Object stores say that access is denied without a number.
        code = errno.EACCES if isinstance(error, PermissionError) else error.errno
        if code not in _OF_THE_STORE:
            raise
        state, remedy = _OF_THE_STORE[code]
        raise StoreUnavailableError(
            f"{show(location)} {state} ({in_a_line(error)}): {remedy}; nothing was computed, and "
            "then the same call begins anew"
        ) from error


def check_all_stored(store: GramStore, computed: set[Tile]) -> None:
    """Raise StoreUnavailableError if tiles that were stored are not there at the end."""
    gone = store.gone(computed)
    if gone:
        raise StoreUnavailableError(
            f"{len(gone)} tiles that this run has stored are gone from {show(store.location)}: "
            f"it was removed or replaced meanwhile; {_after_loss(store)}"
        )


def stopped(refusal: Refusal, store: GramStore) -> StoreUnavailableError:
    """The error of a run that the store stops."""
    where, cause = show(store.location), in_a_line(refusal.cause)
    seen = f"(on {refusal.host}: {cause})"
    if refusal.lost and _loss(store.location) is not None:
        return StoreUnavailableError(f"{where} is not there any more {seen}; {_after_loss(store)}")
    if refusal.replaced:
        return StoreUnavailableError(
            f"{where} holds another matrix than at the start of this run {seen}: choose another "
            "store; nothing was written into that one"
        )
    stored = len(store.stored_tiles())
    if refusal.lost:
        return StoreUnavailableError(
            f"{where} is not seen by a worker {seen}: every worker must reach it by this name; "
            f"{kept(store, stored)}"
        )
    state, remedy = _OF_THE_STORE[_errno(refusal.cause) or 0]
    tile, missing = store.plan.bytes_stored // store.plan.n_tiles, store.plan.n_tiles - stored
    return StoreUnavailableError(
        f"{where} {state} {seen}: {remedy}; a tile takes {tile} bytes, the {missing} missing ones "
        f"{missing * tile}; {kept(store, stored)}"
    )


def _after_loss(store: GramStore) -> str:
    return (
        "bring it back, and the same call resumes with the tiles it holds, or delete what is left "
        f"of {show(store.location)}, and the same call starts anew"
    )


def failures(failed: Mapping[Tile, BaseException], n: int, memory: str, shown: int = 10) -> str:
    """One sentence: how many tiles failed, which, and why the first did.

    `memory` is what to say of a worker's memory where the cause is the want of it.
    """
    names = ", ".join(map(str, sorted(failed)[:shown]))
    more = f" and {len(failed) - shown} more" if len(failed) > shown else ""
    first = min(failed)  # by place, not by time: the same in every run
    why = f"the first with {_why(first, failed[first], memory)}"
    return f"{len(failed)} of {n} tiles failed, {names}{more}, {why}"


def _why(tile: Tile, cause: BaseException, memory: str) -> str:
    if isinstance(cause, KilledWorker):
        times = cause.allowed_failures + 1
        died = f"{times} workers died while they computed tile {tile} alone"
        return f"KilledWorker: {died}, most likely for want of memory: {memory}"
    return f"{in_a_line(cause)}: {memory}" if isinstance(cause, MemoryError) else in_a_line(cause)


def memory_remedy(need: int, limit: int, tile: int) -> str:
    """The figures of a worker's memory in bytes (limit 0: none is declared), and what to do."""
    has = f"is limited to {ceil_div(limit, MIB)} MiB" if limit else "declares no limit"
    return (
        f"a worker {has}, and tiles of {tile} need about {ceil_div(need, MIB)} MiB on one: give "
        "workers more memory or fewer threads, or use a smaller tile, which needs another store"
    )


def in_a_line(error: BaseException) -> str:
    """Type and first line of the message."""
    reason = (str(error).splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {reason}"
