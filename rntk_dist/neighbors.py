"""`neighbors` finds the nearest training sequences of each query by the kernel, with no matrix.

With a store the blocks of queries are kept as they are found, and the same call goes on after
whatever stopped it, in this process or on a Dask cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from rntk_dist.compute import fill
from rntk_dist.creation import owned, samples_of
from rntk_dist.failures import kept
from rntk_dist.in_order import usual_threads
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.lease import Lease
from rntk_dist.neighbor_creation import WantedNeighbors
from rntk_dist.neighbor_manifest import NeighborPlan, NeighborTile, choose_queries
from rntk_dist.neighbor_search import Search, Training
from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.plan import Tile, Work, Workers, tile_costs
from rntk_dist.progress import Progress, progress_report
from rntk_dist.sequences import Sequences
from rntk_dist.store import Location, locate
from rntk_dist.tile_task import compute_neighbors

type Ints = NDArray[np.int64]
type Block = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest training sequences of each of n queries, best first.

    Attributes
    ----------
    indices : (n, k) int64, numbers of training sequences
    values : (n, k), the kernel of the query with each, largest first; of equal values the smaller
        index stands first
    """

    indices: Ints
    values: Block

    def __repr__(self) -> str:
        n, k = self.indices.shape
        return f"Neighbors(n={n}, k={k}, {self.values.dtype})"


def neighbors(
    kernel: RNTK,
    X_query: Any,
    X_train: Any,
    k: int,
    *,
    kind: Kind = "ntk",
    dtype: DType = "float64",
    backend: Backend = "auto",
    store: Location | None = None,
    client: Client | None = None,
    tile: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    wait: float = 0.0,
) -> Neighbors:
    """The k training sequences of each query that the kernel is largest for: exact, not stored.

    Values have the bits of ``kernel(X_query, X_train)``, and of equal ones the smaller index comes
    first, however the work is cut and whoever does it. With ``normalize=True`` the kernel is a
    cosine; without, long sequences and large values are near to everything.

    What is in memory at once, beside the sequences: for each thread the values of `tile` queries
    with 1024 training sequences, twice.

    Parameters
    ----------
    kernel
        The kernel and its hyper-parameters.
    X_query, X_train
        Sequences, or what `Sequences.from_arrays` takes. They are different samples, also where
        they are the same sequences: each is then its own nearest, most often.
    k
        How many neighbours, 1 to the number of training sequences.
    kind, dtype, backend
        As for the kernel.
    store
        A local path or a URL. Blocks of queries are kept there as they are found; the same call
        goes on with those that are missing or damaged, and a finished store is read. Default:
        nothing is kept.
    client
        A Dask client, whose workers can reach the store. Default: this process.
    tile
        Queries of a block; by default what is stored, or what takes 2 to 20 seconds.
    threads
        Slabs that this process compares at once; by default one a core, at most 4.
    progress
        A bar on stderr, or lines where that is no terminal.
    wait
        Seconds to wait for another process that fills the same store.

    Raises
    ------
    ValueError
        k is not possible, the kernel does not take the sequences, or there is a client and no
        store.
    IdentityError
        The store holds the neighbours of another kernel, other sequences or another k.
    OverflowError
        A value exceeds the number type, naming the sequences.
    Exception
        As `rd.gram`, where workers, the store or its owner are the reason. What is stored is kept,
        and the same call resumes.
    """
    queries, training = Sequences.from_arrays(X_query), Sequences.from_arrays(X_train)
    count = usual_threads() if threads is None else threads
    if store is None:
        if client is not None:
            raise ValueError("workers need a store that they can reach: give store= with client=")
        return _in_memory(kernel, queries, training, k, kind, dtype, backend, tile, count, progress)
    wanted = WantedNeighbors(
        locate(store), kernel, queries, training, kind, tile, dtype, backend, k
    )
    found = wanted.find()
    if not _is_whole(found):
        with owned(wanted, client, wait) as (opened, held):
            assert isinstance(opened, NeighborStore)
            opened.discard(opened.damaged_tiles())
            _fill(opened, client, backend, count, progress, held)
    return open_neighbors(store)


def open_neighbors(store: Location) -> Neighbors:
    """The nearest neighbours in a finished store.

    Raises FileNotFoundError if nothing is there, StoreFormatError if it is something else,
    MissingTileError if it is not finished, CorruptTileError if it is damaged.
    """
    parts = list(NeighborStore.open(store).all_neighbors())
    return Neighbors(
        _sealed(np.concatenate([indices for indices, _ in parts])),
        _sealed(np.concatenate([values for _, values in parts])),
    )


def _is_whole(found: object) -> bool:
    if not isinstance(found, NeighborStore):
        return False
    return not (found.missing_tiles() or found.damaged_tiles())


def _sealed[A: NDArray[Any]](array: A) -> A:
    array.flags.writeable = False
    return array


# -- in this process, nothing kept -----------------------------------------------------------------


def _in_memory(
    kernel: RNTK,
    queries: Sequences,
    training: Sequences,
    k: int,
    kind: Kind,
    dtype: DType,
    backend: Backend,
    tile: int | None,
    threads: int,
    progress: bool,
) -> Neighbors:
    number = check_run_options(kind, dtype, backend)
    kernel.check_sequences(queries, training)
    work, samples = Work.of(kernel.to_dict()), samples_of(queries, training)
    rows = choose_queries(work, samples, Workers(threads)) if tile is None else tile
    shape = len(queries), len(training)
    plan = NeighborPlan(*shape, min(rows, len(queries)), False, number.itemsize, k)
    indices, values = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), number)
    search, source = Search(kernel, k, kind, number, backend), Training.of(training)
    costs = tile_costs(plan, work, samples, plan.tiles())
    with progress_report(progress) as report:
        for done in _steps(plan, costs):
            start, stop = plan.rows(done.tile)
            best = search.nearest(queries[start:stop], start, source, threads)
            indices[start:stop], values[start:stop] = best.indices, best.values
            if report is not None:
                report(done.progress())
    return Neighbors(_sealed(indices), _sealed(values))


@dataclass(frozen=True)
class _Step:
    """One block of queries of a run in this process, and how far that is with it done."""

    tile: Tile
    tiles: int
    tiles_total: int
    pair_steps: int
    pair_steps_total: int

    def progress(self) -> Progress:
        """As it is shown."""
        left = self.tiles_total - self.tiles
        return Progress(
            self.tiles, self.tiles_total, self.pair_steps, self.pair_steps_total, 0, min(1, left)
        )


def _steps(plan: NeighborPlan, costs: dict[Tile, int]) -> Iterator[_Step]:
    """The blocks of queries that are to be computed, with their pair-steps, one after another."""
    done, total = 0, sum(costs.values())
    stored = plan.n_tiles - len(costs)
    for i, (tile, cost) in enumerate(costs.items(), start=1):
        done += cost
        yield _Step(tile, stored + i, plan.n_tiles, done, total)


# -- into a store ----------------------------------------------------------------------------------


def _fill(
    store: NeighborStore,
    client: Client | None,
    backend: Backend,
    threads: int,
    progress: bool,
    held: Lease,
) -> None:
    """Compute what is missing now: whoever held the store before may have gone on with it."""
    with progress_report(progress) as report:
        if client is not None:
            fill(store, client, backend=backend, on_progress=report, check=held.check)
            return
        store.clean()
        work = Work.of(store.manifest.kernel)
        costs = tile_costs(store.plan, work, store.samples(), store.missing_tiles())
        identity = store.manifest.identity_sha256()
        for done in _steps(store.plan, costs):
            held.check()
            assert isinstance(done.tile, NeighborTile)
            try:
                compute_neighbors(store.location, done.tile, backend, identity, threads=threads)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"interrupted: {kept(store, done.tiles - 1)}") from None
            if report is not None:
                report(done.progress())
    store.finish()
