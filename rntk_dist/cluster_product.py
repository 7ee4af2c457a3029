"""Products of a matrix on a Dask cluster whose workers keep their tiles in memory.

Each worker process has a share of the tiles, the same one in every product. The first product reads
them from a store, or has them computed; what fits in the worker's room stays there, and only the
rest is read again. A worker that has gone or come changes the shares, and what is then missing is
read. The source of the tiles stays the truth: nothing is lost with a worker but time.

Memory: of a worker its room, by default half of its memory limit, and one tile a thread besides;
of the client one (n, k) result at a time.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Any, Protocol, Self, cast, override

import dask
import numpy as np
from distributed import Client, Worker, WorkerPlugin, get_worker
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from rntk_dist.operators import Block, Float64, Indices, Operator, View
from rntk_dist.plan import Plan, Tile
from rntk_dist.tile_product import multiply

SHARE_OF_LIMIT = 0.5
"""Of a worker's memory limit: Dask pauses a worker at 0.8 of it, and products need some, too."""


_NO_WARNING = {"distributed.admin.large-graph-warning-threshold": "1 PiB"}


class NoWorkerError(RuntimeError):
    """A cluster that is to multiply has no worker."""


class TileSource(Protocol):
    """Where a worker has tiles from: a store that holds them, or a kernel that computes them."""

    @property
    def plan(self) -> Plan:
        """How the matrix is cut into tiles."""
        ...

    def opener(self) -> Callable[[], TileSource]:
        """What gives the source on a worker."""
        ...

    def read_tile(self, tile: Tile) -> Block:
        """The values of a tile."""
        ...


class OnCluster(View):
    """A matrix whose products a cluster computes; blocks and diagonal are read here.

    A context manager: on leaving, the workers drop the tiles that they keep.
    """

    def __init__(
        self, inner: Operator, source: TileSource, client: Client, room: int | None = None
    ) -> None:
        """`room` is the bytes of tiles that each worker process keeps, by default half its limit.

        Raises NoWorkerError if the client's cluster has no worker.
        """
        super().__init__(inner)
        self.client, self.plan = client, source.plan
        self._name = f"rntk_dist-tiles-{uuid.uuid4().hex}"
        self._shares = _shares(_threads(client), self.plan)
        client.register_plugin(TileKeeper(source.opener(), room), name=self._name)

    # -- as what it multiplies ---------------------------------------------------------------------

    @property
    @override
    def dtype(self) -> np.dtype[np.floating[Any]]:
        return self.inner.dtype

    @property
    @override
    def identity(self) -> str:
        return self.inner.identity

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        return self.inner.block(rows, cols)

    @override
    def diag(self) -> Block:
        return self.inner.diag()

    @override
    def to_dask(self) -> Any:
        return self.inner.to_dask()

    # -- on the cluster ----------------------------------------------------------------------------

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        """Each worker's part of the sum is added in the order of the shares.

        Raises NoWorkerError if all workers have gone.
        """
        workers = _threads(self.client)
        if set(workers) != set(self._shares):
            self._shares = _shares(workers, self.plan)
        # Inside each task, not scattered: a worker that dies would take scattered columns along.
        with dask.config.set(_NO_WARNING):
            futures = [
                self.client.submit(
                    _part,
                    *(self._name, self.plan, tiles, V, transposed),
                    workers=[address],
                    allow_other_workers=True,
                    pure=False,
                    retries=2,
                )
                for address, tiles in self._shares.items()
            ]
        out = np.zeros((self.shape[1 if transposed else 0], V.shape[1]))
        while futures:
            out += futures.pop(0).result()
        return out

    def kept(self) -> dict[str, int]:
        """Of each worker's address the number of tiles that it keeps."""
        counts: dict[str, int] = self.client.run(_count, self._name)
        return counts

    def close(self) -> None:
        """Have the workers drop their tiles; products are then refused by Dask."""
        self.client.unregister_worker_plugin(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _threads(client: Client) -> dict[str, int]:
    """Of each worker's address its threads."""
    threads: Mapping[str, int] = client.nthreads()
    if not threads:
        raise NoWorkerError(
            "the cluster has no worker to multiply with: start some, or multiply without a client"
        )
    return dict(sorted(threads.items()))


def _shares(workers: Mapping[str, int], plan: Plan) -> dict[str, list[Tile]]:
    """Neighbouring tiles for each worker, as many as its part of all threads."""
    tiles, total = list(plan.tiles()), sum(workers.values())
    ends = [len(tiles) * done // total for done in accumulate(workers.values())]
    starts = [0, *ends[:-1]]
    return {
        address: tiles[start:end] for address, start, end in zip(workers, starts, ends, strict=True)
    }


# -- on a worker -----------------------------------------------------------------------------------


class TileKeeper(WorkerPlugin):
    """The tiles that a worker process keeps of one matrix."""

    def __init__(self, opener: Callable[[], TileSource], room: int | None) -> None:
        self._opener, self._asked = opener, room
        self.tiles: dict[Tile, Block] = {}

    def setup(self, worker: Worker) -> None:
        """What cannot travel is made here."""
        limit = worker.memory_manager.memory_limit or MEMORY_LIMIT
        self.room = int(limit * SHARE_OF_LIMIT) if self._asked is None else self._asked
        self._lock, self._source = threading.Lock(), self._opener()

    def teardown(self, worker: Worker) -> None:
        """Drop the tiles."""
        self.tiles.clear()

    def take(self, tiles: Sequence[Tile]) -> None:
        """Make room for a share: what is of no use to it goes, if it would not fit otherwise."""
        with self._lock:
            size = sum(block.nbytes for block in self.tiles.values())
            missing = [tile for tile in tiles if tile not in self.tiles]
            plan = self._source.plan
            wanted = sum(_nbytes(plan, tile) for tile in missing)
            if size + wanted > self.room:
                self.tiles = {t: self.tiles[t] for t in tiles if t in self.tiles}
            self._left = self.room - sum(block.nbytes for block in self.tiles.values())

    def read(self, tile: Tile) -> Block:
        """The values of a tile, from memory or the source; kept if there is room."""
        with self._lock:
            if tile in self.tiles:
                return self.tiles[tile]
        block = self._source.read_tile(tile)
        with self._lock:
            if block.nbytes <= self._left:
                self.tiles[tile] = block
                self._left -= block.nbytes
        return block


def _nbytes(plan: Plan, tile: Tile) -> int:
    rows, cols = plan.block_shape(tile)
    return rows * cols * plan.itemsize


def _keeper(worker: Worker, name: str) -> TileKeeper:
    return cast(TileKeeper, worker.plugins[name])


def _part(
    name: str, plan: Plan, tiles: Sequence[Tile], V: Float64, transposed: bool
) -> NDArray[np.float64]:
    """What a share of the tiles adds to the product."""
    worker = get_worker()
    keeper = _keeper(worker, name)
    keeper.take(tiles)
    threads = worker.state.nthreads
    return multiply(keeper.read, plan, V, transposed=transposed, tiles=tiles, threads=threads)


def _count(name: str, dask_worker: Worker) -> int:
    return len(_keeper(dask_worker, name).tiles)
