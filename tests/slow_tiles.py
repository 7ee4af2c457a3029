"""Preloaded by workers: while a file named `slow` lies beside the store, tiles take their time."""

import time
from pathlib import Path
from typing import Any

from rntk_dist.plan import Tile
from rntk_dist.store import Block, GramStore

SECONDS = 0.6

PRELOAD = {
    "PYTHONPATH": str(Path(__file__).parent),
    "DASK_DISTRIBUTED__WORKER__PRELOAD": Path(__file__).stem,
}
"""The environment of processes whose workers preload it."""


def dask_setup(worker: Any) -> None:
    """Called by Dask in each worker process, before its first task."""
    write_tile = GramStore.write_tile

    def write_slowly(store: GramStore, tile: Tile, block: Block) -> None:
        if Path(str(store.location)).with_name("slow").exists():
            time.sleep(SECONDS)
        write_tile(store, tile, block)

    GramStore.write_tile = write_slowly  # type: ignore[method-assign]
