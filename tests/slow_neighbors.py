"""A search that stores a block of queries every now and then, until it is killed."""

import sys
import time

from rntk_dist import RNTK, Sequences, neighbors
from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.plan import Tile
from rntk_dist.store import Block

SECONDS = 0.3


def main(queries: str, training: str, store: str) -> None:
    """The search of `tests/test_neighbors.py`, slowed down."""
    write_tile = NeighborStore.write_tile

    def write_slowly(opened: NeighborStore, tile: Tile, block: Block) -> None:
        write_tile(opened, tile, block)
        time.sleep(600 if tile.row == 3 else SECONDS)

    NeighborStore.write_tile = write_slowly  # type: ignore[method-assign]
    X, Y = Sequences.read(queries), Sequences.read(training)
    kernel = RNTK(normalize=True)
    neighbors(kernel, X, Y, 5, store=store, tile=20, backend="numpy", progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
