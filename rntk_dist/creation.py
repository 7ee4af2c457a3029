"""Find the store of a matrix, or create it: one process, the one that then fills it.

Looking is free for all, and writes nothing. Who finds no store plans it first, so that a plan that
cannot be carried out leaves nothing behind; then takes the lease, looks again, for another may have
been faster, and creates the store. A creation that was interrupted holds no results; where there is
a lease its owner knows that nobody goes on with it, and begins it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from distributed import Client
from zarr.abc.store import Store

from rntk_dist.cluster import available_workers
from rntk_dist.failures import check_writable, refused
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.lease import Lease, has_lease, lease
from rntk_dist.plan import Plan, Samples, Work, Workers, check_memory, choose_tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import (
    CreationBegunError,
    GramStore,
    Location,
    Manifest,
    StoreFormatError,
    in_memory,
    locate,
    provenance,
    show,
)


@dataclass(frozen=True)
class Wanted:
    """A matrix, and where it is to be stored.

    `tile` None takes the stored tile, or chooses one for the workers. Raises ValueError for options
    that do not exist, sequences that the kernel does not take, a store that workers cannot see.
    """

    where: str | Store
    kernel: RNTK
    X: Sequences
    Y: Sequences | None = None
    kind: Kind = "ntk"
    tile: int | None = None
    dtype: DType = "float64"
    backend: Backend = "auto"

    stores: ClassVar[type[GramStore]] = GramStore

    def __post_init__(self) -> None:
        if in_memory(self.where):
            raise ValueError(
                f"{show(self.where)} is in this process's memory, unseen by workers: give a path "
                "or a URL"
            )
        check_run_options(self.kind, self.dtype, self.backend)
        self.kernel.check_sequences(self.X, self.Y)

    def find(self, *, writable: bool = False) -> GramStore | None:
        """The store of this matrix; None if it must be created first.

        Raises IdentityError if it holds another matrix, StoreFormatError if it is something else.
        """
        try:
            existing = self.stores.find(self.where, writable=writable)
        except CreationBegunError:
            if has_lease(self.where):
                return None
            raise
        if existing is not None:
            tile = existing.plan.tile if self.tile is None else self.tile
            existing.check_identity(self._manifest(self._plan(tile)))
        return existing

    def plan_anew(self, client: Client | None = None) -> Manifest:
        """What is to be created; writes nothing.

        Raises TileMemoryError if a worker of the client's cluster (without one: of this machine)
        cannot hold a tile, NoWorkersError if there is none, FileExistsError if the location holds
        something that is not a Gram store.
        """
        samples, work = samples_of(self.X, self.Y), self.work
        workers = available_workers(client, backend=self.backend)
        tile = self.tile
        if tile is None:
            tile = self._choose_tile(samples, workers)
        plan = self._plan(tile)
        check_memory(plan, work, samples, workers)
        GramStore.check_free(self.where)
        return self._manifest(plan)

    def create(self, manifest: Manifest, held: Lease) -> GramStore:
        """An empty store, in place of what an interrupted creation has left.

        Raises StoreFormatError if there is that and no lease.
        """
        if GramStore.is_interrupted(self.where):
            if held.owner is None:
                raise StoreFormatError(
                    f"{show(self.where)} is a Gram store whose creation was interrupted, or goes "
                    "on in another process, which cannot be told without a lease: delete it, or "
                    "choose another store"
                )
            GramStore.clear_interrupted(self.where)
        return self.stores.create(self.where, manifest, self.X, self.Y)

    @property
    def work(self) -> Work:
        """What the kernel does with a pair of sequences."""
        return Work.of(self.kernel.to_dict())

    def _choose_tile(self, samples: Samples, workers: Workers) -> int:
        return choose_tile(self.work, samples, workers, itemsize=self._itemsize)

    @property
    def _itemsize(self) -> int:
        return check_run_options(self.kind, self.dtype, self.backend).itemsize

    def _plan(self, tile: int) -> Plan:
        return samples_of(self.X, self.Y).plan(tile, self._itemsize)

    def _manifest(self, plan: Plan) -> Manifest:
        return Manifest(
            kernel=self.kernel.to_dict(),
            kind=self.kind,
            plan=plan,
            fingerprint=self.X.fingerprint,
            fingerprint_y=None if self.Y is None else self.Y.fingerprint,
            provenance=provenance(backend=self.backend),
        )


def samples_of(X: Sequences, Y: Sequences | None) -> Samples:
    """What a plan needs to know of the sequences of the rows and, unless symmetric, the columns."""
    return Samples(X.lengths.tolist(), None if Y is None else Y.lengths.tolist(), X.step_numbers)


@contextmanager
def owned(
    wanted: Wanted, client: Client | None = None, wait: float = 0.0, job: str = ""
) -> Iterator[tuple[GramStore, Lease]]:
    """The store of a matrix, open for writing, created if need be, which nobody else fills now.

    `client` tells the workers to plan for, `wait` and `job` are as in `lease`.

    Raises as `Wanted.find`, `Wanted.plan_anew` and `lease`; StoreUnavailableError if the storage is
    full, read-only or not accessible.
    """
    existing = wanted.find()
    planned = wanted.plan_anew(client) if existing is None else None
    if existing is not None:
        check_writable(existing)
    with ExitStack() as until_done:
        with refused(wanted.where):
            new = existing is None
            held = until_done.enter_context(lease(wanted.where, wait, job=job, new=new))
            store = wanted.find(writable=True)
            if store is None:
                store = wanted.create(planned or wanted.plan_anew(client), held)
        yield store, held


def ensure_store(
    kernel: RNTK,
    X: Sequences,
    Y: Sequences | None,
    *,
    store: Location,
    kind: Kind = "ntk",
    tile: int | None = None,
    dtype: DType = "float64",
    backend: Backend = "auto",
    client: Client | None = None,
) -> GramStore:
    """Create the store for this matrix, or open it if it is there and holds the same matrix.

    `tile` None takes the stored tile, or chooses one for the client's workers (the local machine's
    without a client). A store that is there is opened whoever holds it; one that is not is created
    by one process alone.

    Raises IdentityError if the store holds another matrix, TileMemoryError if a worker cannot hold
    a tile, ValueError for a store that workers cannot see, StoreBusyError if another process
    creates it now, StoreUnavailableError if the storage is full, read-only or not accessible.
    """
    wanted = Wanted(locate(store), kernel, X, Y, kind, tile, dtype, backend)
    existing = wanted.find(writable=True)
    if existing is not None:
        return existing
    with owned(wanted, client) as (made, _):
        return made
