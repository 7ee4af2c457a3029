"""`gram` computes a Gram matrix into a store, and `Gram` reads it as one symmetric matrix.

The store holds the upper triangle of tiles; the view mirrors it. Whatever part is asked for, each
stored tile it touches is read once, and a tile that has not been computed is an error, never a NaN.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from rntk_dist.cluster import local_client
from rntk_dist.cluster_product import OnCluster
from rntk_dist.compute import fill
from rntk_dist.creation import Wanted, owned
from rntk_dist.failures import check_writable
from rntk_dist.gram_view import gram_html
from rntk_dist.growth import begin
from rntk_dist.in_order import usual_threads
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.lease import lease
from rntk_dist.operators import Operator
from rntk_dist.plan import Plan, Tile
from rntk_dist.progress import progress_report
from rntk_dist.sequences import Sequences
from rntk_dist.store import Block, GramStore, Location, MissingTileError, locate, show
from rntk_dist.tile_product import multiply

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


class IncompleteGramError(RuntimeError):
    """Tiles that are needed have not been computed; the message says how many and how to go on."""


def gram(
    kernel: RNTK,
    X: Any,
    Y: Any = None,
    *,
    store: Location,
    kind: Kind = "ntk",
    client: Client | None = None,
    tile: int | None = None,
    dtype: DType = "float64",
    backend: Backend = "auto",
    progress: bool = True,
    wait: float = 0.0,
) -> Gram:
    """Compute the Gram matrix of X, or of X against Y, into a store: run it, or resume it.

    Only tiles that the store lacks are computed; on a complete store this is `open_gram`.

    Parameters
    ----------
    kernel
        The kernel and its hyper-parameters.
    X, Y
        Sequences, or what `Sequences.from_arrays` takes: n and m sequences. Without Y the matrix is
        the symmetric (n, n); with Y the (n, m) of two sets of samples.
    store
        A local path, an fsspec URL or a Zarr store that all workers can reach.
    kind
        "ntk", the tangent kernel, or "nngp".
    client
        A Dask client. Without one a cluster of worker processes on this machine is started and
        closed again; a script must then call from under ``if __name__ == "__main__":``.
    tile
        Edge of a tile; by default what is stored, or what suits the workers' memory and number.
    dtype
        "float64" or "float32".
    backend
        What computes a tile: "auto", "numpy", "numba" or "cupy".
    progress
        A bar on stderr, or lines where that is no terminal.
    wait
        Seconds to wait for another process that fills the same store.

    Raises
    ------
    IdentityError
        The store holds another matrix.
    StoreFormatError, FileExistsError
        The location holds something else.
    TileMemoryError
        A worker cannot hold a tile.
    TileError
        Tiles failed; the others are kept, and the same call resumes.
    NoWorkersError
        The client's cluster has no worker, or all are paused.
    StoreBusyError, LeaseLostError
        Another process creates or fills the store, or took it over while this one was stopped.
    StoreUnavailableError, SchedulerLostError
        The store is full, read-only or gone; the scheduler is. What is stored is kept.
    """
    rows = Sequences.from_arrays(X)
    cols = None if Y is None else Sequences.from_arrays(Y)
    wanted = Wanted(locate(store), kernel, rows, cols, kind, tile, dtype, backend)
    opened = wanted.find()
    if opened is None or opened.missing_tiles():
        with owned(wanted, client, wait) as (opened, held):
            fill_missing(opened, client, backend, progress, held.check)
    elif opened.report() is None:
        with suppress(OSError):  # a whole store that cannot be written to is whole all the same
            opened.finish()
    return Gram(opened)


def fill_missing(
    store: GramStore,
    client: Client | None,
    backend: Backend,
    progress: bool,
    check: Callable[[], None],
) -> None:
    """Compute what is missing now: whoever held the store before may have gone on with it."""
    missing = len(store.missing_tiles())
    if not missing:
        return
    with progress_report(progress) as report, _client(client, missing) as workers:
        fill(store, workers, backend=backend, on_progress=report, check=check)


def open_gram(store: Location) -> Gram:
    """The Gram matrix in a store, complete or not, for reading.

    Raises FileNotFoundError if nothing is there, StoreFormatError if it is something else.
    """
    return Gram(GramStore.open(store))


@contextmanager
def _client(client: Client | None, n_tiles: int) -> Iterator[Client]:
    """The given client, or one of a local cluster that is closed on leaving."""
    if client is not None:
        yield client
    else:
        with local_client(n_tiles) as own:
            yield own


class Gram(Operator):
    """A view of a stored Gram matrix of shape (n, n), or (n, m) if rectangular.

    Each axis is indexed on its own, as with `numpy.ix_`: by an int, a slice, integers or a mask, so
    `gram[[0, 5], [1, 2, 3]]` is a (2, 3) part. `np.asarray(gram)` is the whole, `gram @ V` streams
    it tile by tile, `to_dask()` is lazy. `normalized()`, `centered()`, `gram + gram` and
    `2 * gram` are lazy, too (see `Operator`).

    Reading raises IncompleteGramError where a needed tile has not been computed, CorruptTileError
    where one is damaged.
    """

    def __init__(self, store: GramStore) -> None:
        self.store = store

    # -- what it is -------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """How the matrix is cut into tiles."""
        return self.store.plan

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.plan.shape

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """Of the stored values: float32 or float64."""
        return self.store.manifest.dtype

    @property
    def symmetric(self) -> bool:
        """Whether it is the kernel of samples with themselves."""
        return self.plan.symmetric

    @property
    def edge(self) -> int:
        """Of a tile."""
        return self.plan.tile

    @property
    def identity(self) -> str:
        """The SHA-256 of what the store says that it holds: kernel, kind, dtype, plan, samples."""
        return self.store.manifest.identity_sha256()

    @property
    def kind(self) -> str:
        """Either "ntk" or "nngp"."""
        return self.store.manifest.kind

    @cached_property
    def kernel(self) -> RNTK:
        """The kernel that the matrix belongs to."""
        return RNTK.from_dict(dict(self.store.manifest.kernel))

    @cached_property
    def sequences(self) -> Sequences:
        """The samples of the rows, and of the columns if symmetric."""
        return self.store.sequences()

    @cached_property
    def sequences_y(self) -> Sequences | None:
        """The samples of the columns if rectangular, else None."""
        return self.store.sequences_y()

    @property
    def labels(self) -> NDArray[Any] | None:
        """The labels (n,) of the rows' samples, if they came with any."""
        return self.sequences.labels

    @property
    def missing(self) -> list[Tile]:
        """The tiles not computed so far; lists the store anew at every call."""
        return self.store.missing_tiles()

    @property
    def complete(self) -> bool:
        """True if every tile has been computed."""
        return not self.missing

    def __len__(self) -> int:
        return self.plan.n_rows

    def __repr__(self) -> str:
        plan, stored = self.plan, self.plan.n_tiles - len(self.missing)
        what = f"{plan.n_rows} x {plan.n_cols} {self.dtype.name} {self.kind}"
        tiles = f"{stored}/{plan.n_tiles} tiles of {plan.tile}"
        return f"Gram({what}, {tiles}, store={show(self.store.location)!r})"

    def _repr_html_(self) -> str:
        return gram_html(self.store)

    # -- reading ----------------------------------------------------------------------------------

    def block(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Block:
        """The values (len(rows), len(cols)); each stored tile that is needed is read once."""
        out = np.empty((len(rows), len(cols)), self.dtype)
        needs = _by_tile(self.plan, _by_block(rows, self.plan), _by_block(cols, self.plan))
        self._require(needs)
        for tile, parts in needs.items():
            values = self.store.read_tile(tile)
            for at, within, mirrored in parts:
                out[np.ix_(*at)] = (values.T if mirrored else values)[np.ix_(*within)]
        return out

    def diag(self) -> Block:
        """The diagonal (n,) of a symmetric matrix; reads its diagonal tiles.

        Raises ValueError for a rectangular one.
        """
        if not self.plan.symmetric:
            raise ValueError("the rectangular Gram matrix of two sets of samples has no diagonal")
        tiles = [tile for tile in self.plan.tiles() if self.plan.is_diagonal(tile)]
        self._require(tiles)
        return np.concatenate([np.diagonal(self.store.read_tile(tile)) for tile in tiles])

    def product(
        self, V: NDArray[np.float64], *, transposed: bool = False, threads: int | None = None
    ) -> NDArray[np.float64]:
        """The product (n, k) with V (m, k); transposed (m, k) with V (n, k). Float64 throughout.

        Every stored tile is read once. `threads` read and multiply tiles, one each at a time, and
        no more tiles are in memory; by default as many as cores, but no more than 4. The result has
        the same bits with any number of threads.
        """
        count = usual_threads() if threads is None else threads
        read = self.store.view_tile
        try:
            return multiply(read, self.plan, V, transposed=transposed, threads=count)
        except MissingTileError:
            # Only now, for to list the store takes as long as to multiply some tiles.
            self._require(self.plan.tiles())
            raise

    def distribute(self, client: Client, room: int | None = None) -> OnCluster:
        """The matrix with products computed on a cluster, whose workers keep tiles in memory.

        A context manager. Every worker process keeps up to `room` bytes of tiles, by default half
        its memory limit, and reads the rest again in each product. Workers reach the store by the
        same name. `gram.distribute(client).normalized()` and the other views compute there, too.

        Raises NoWorkerError if there is no worker.
        """
        self._require(self.plan.tiles())
        return OnCluster(self, self.store, client, room)

    def to_dask(self) -> da.Array:
        """The matrix as a lazy Dask array, one block a tile; mirrors the lower half.

        A block opens the store from its location, so it can be computed on any worker.
        """
        import dask.array as da  # here, for it takes pandas and xarray along: most of a second

        self._require(self.plan.tiles())
        blocks: da.Array = da.map_blocks(
            _read_block,
            self.store.opener(),
            self.plan,
            chunks=(extents(self.plan, 0), extents(self.plan, 1)),
            dtype=self.dtype,
            meta=np.empty((0, 0), self.dtype),
            name=f"gram-{uuid.uuid4().hex}",
        )
        return blocks

    def to_xarray(self) -> xr.DataArray:
        """The matrix as a lazy xarray DataArray with dimensions "row" and "col".

        Raises ImportError without xarray.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install xarray") from error
        manifest = self.store.manifest
        attrs = {**manifest.kernel, "kind": self.kind, "fingerprint": manifest.fingerprint}
        return xr.DataArray(self.to_dask(), dims=("row", "col"), name=self.kind, attrs=attrs)

    # -- growing ----------------------------------------------------------------------------------

    def append(
        self,
        X: Any = None,
        *,
        client: Client | None = None,
        backend: Backend = "auto",
        progress: bool = True,
        wait: float = 0.0,
    ) -> Gram:
        """Extend a finished symmetric matrix (n, n) by m sequences to (n + m, n + m), in its store.

        Only what is new is computed, at the ragged edge, too. The old matrix stays readable until
        the new one is whole; this view goes on showing the old one, the returned one is the new.

        Where this is interrupted, the same call goes on, and so does one without sequences. To
        append the sequences that the matrix ends in already does nothing.

        Parameters
        ----------
        X
            New sequences, or what `Sequences.from_arrays` takes, of the stored ones' features;
            labelled if those are. None goes on with an interrupted call.
        client, backend, progress, wait
            As for `rd.gram`.

        Raises
        ------
        ValueError
            The matrix is rectangular or unfinished, or the sequences cannot stand beside it.
        IdentityError
            An interrupted call has appended other sequences.
        Exception
            As `rd.gram`, where tiles, workers, the store or its owner are the reason.
        """
        fresh = None if X is None else Sequences.from_arrays(X)
        if fresh is not None:
            self.kernel.check_sequences(fresh, None)
        check_writable(self.store)
        with lease(self.store.location, wait) as held:
            growing = begin(GramStore.open(self.store.location, writable=True), fresh)
            if growing is not None:
                fill_missing(growing, client, backend, progress, held.check)
                growing.finish()
        return open_gram(self.store.location)

    # -- how --------------------------------------------------------------------------------------

    def _require(self, tiles: Iterable[Tile]) -> None:
        """Raise IncompleteGramError unless all the tiles are stored."""
        missing = self.missing
        gaps = set(missing).intersection(tiles) if missing else ()
        if gaps:
            first, total = min(gaps), self.plan.n_tiles
            raise IncompleteGramError(
                f"{len(missing)} of {total} tiles have not been computed, here the first needed is "
                f"{first}: run {self.store.filled_by} again with the same arguments and "
                f"store={show(self.store.location)!r} to resume"
            )


# -- which tiles ----------------------------------------------------------------------------------


type _Blocks = dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Of one axis: block -> (positions in the output, offsets in the block)."""

type _Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


def extents(plan: Plan, axis: int) -> tuple[int, ...]:
    """The lengths of an axis's blocks."""
    bounds = (plan.block_bounds(block, axis=axis) for block in range(plan.grid[axis]))
    return tuple(stop - start for start, stop in bounds)


def _by_block(indices: NDArray[np.int64], plan: Plan) -> _Blocks:
    blocks, offsets = np.divmod(indices, plan.tile)
    return {
        int(block): (np.flatnonzero(blocks == block), offsets[blocks == block])
        for block in np.unique(blocks)
    }


def _by_tile(
    plan: Plan, rows: _Blocks, cols: _Blocks
) -> dict[Tile, list[tuple[_Pair, _Pair, bool]]]:
    """For each stored tile that is needed: (where it goes, what of it, mirrored), once or twice."""
    needs: dict[Tile, list[tuple[_Pair, _Pair, bool]]] = {}
    for row, (row_at, row_in) in rows.items():
        for col, (col_at, col_in) in cols.items():
            mirrored = plan.symmetric and row > col
            tile = Tile(col, row) if mirrored else Tile(row, col)
            needs.setdefault(tile, []).append(((row_at, col_at), (row_in, col_in), mirrored))
    return needs


def _read_block(opener: Callable[[], GramStore], plan: Plan, block_id: tuple[int, int]) -> Block:
    """One block of `Gram.to_dask`; `block_id` is its row and column block."""
    return read_block(opener(), plan, *block_id)


def read_block(store: GramStore, plan: Plan, row: int, col: int) -> Block:
    """The values of a row and a column block of the whole matrix, those below the diagonal, too."""
    mirrored = plan.symmetric and row > col
    tile = Tile(col, row) if mirrored else Tile(row, col)
    n_rows, n_cols = plan.block_shape(tile)  # the store may have grown since
    block = store.read_tile(tile)[:n_rows, :n_cols]
    # A mirrored view is not contiguous, which many a consumer of a block would copy anyway.
    return np.ascontiguousarray(block.T) if mirrored else block
