"""What the store of nearest neighbours holds, and how it is cut: a task is a block of queries.

A task compares its queries with all training sequences, a slab of these at a time, and keeps the k
best of each: `slab` and `tile` say what is in memory at once, and no matrix ever is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rntk_dist.manifest import NEIGHBORS_FORMAT, Manifest
from rntk_dist.plan import (
    SECONDS_PER_PAIR_STEP,
    TILE_STEP,
    Plan,
    Samples,
    Tile,
    Work,
    Workers,
    ceil_div,
    total_pair_steps,
)

SLAB = 1024
"""Training sequences that queries are compared with at once."""

MOST_QUERIES = 4096
"""Queries of a task at most, where nobody says how many."""

_TASK_SECONDS = (2.0, 20.0)
"""For each task the training sequences are prepared anew: less than this would be felt."""

_TASKS_A_WORKER = 4


@dataclass(frozen=True, order=True)
class NeighborTile(Tile):
    """A block of queries, `row`, against all training sequences; `col` is 0."""

    def __str__(self) -> str:
        return f"{self.row} of queries"


@dataclass(frozen=True)
class NeighborPlan(Plan):
    """`tile` queries a task; n_rows queries, n_cols training sequences, `k` neighbours of each.

    Raises ValueError as `Plan`, and for k outside 1 .. n_cols.
    """

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k is {self.k}: ask for at least 1 neighbour")
        if self.k > self.n_cols:
            raise ValueError(
                f"k is {self.k} and there are {self.n_cols} training sequences: ask for at most "
                "as many neighbours"
            )

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """What a task compares at once: its queries with a slab of training sequences."""
        return min(self.tile, self.n_rows), min(max(SLAB, self.k), self.n_cols)

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of queries, and one of all training sequences."""
        return ceil_div(self.n_rows, self.tile), 1

    @property
    def bytes_stored(self) -> int:
        """Bytes of all chunks: of each query k indices and k values, in float64."""
        return self.n_tiles * (min(self.tile, self.n_rows) * 16 * self.k + 4)

    def tiles(self) -> Iterator[Tile]:
        """All tasks, in the order of the queries."""
        return (NeighborTile(row, 0) for row in range(self.grid[0]))

    def block_bounds(self, block: int, *, axis: int) -> tuple[int, int]:
        """(start, stop) of a block of queries, or of all training sequences."""
        return (0, self.n_cols) if axis else super().block_bounds(block, axis=0)

    def block_shape(self, tile: Tile) -> tuple[int, int]:
        """Shape of what is stored of a task."""
        start, stop = self.rows(tile)
        return stop - start, 2 * self.k


@dataclass(frozen=True)
class NeighborManifest(Manifest):
    """What the store of nearest neighbours holds; the plan says how many of them.

    `fingerprint` is that of the queries, `fingerprint_y` of the training sequences.
    """

    plan: NeighborPlan

    format: ClassVar[int] = NEIGHBORS_FORMAT
    dimensions: ClassVar[tuple[str, ...]] = ("query", "indices_then_values")

    @property
    def shape(self) -> tuple[int, ...]:
        """(queries, 2 k)."""
        return self.plan.n_rows, 2 * self.plan.k

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The queries of a task."""
        return min(self.plan.tile, self.plan.n_rows), 2 * self.plan.k

    @property
    def stored_dtype(self) -> np.dtype[np.floating[Any]]:
        """Of indices and values side by side; float64 holds both as they are."""
        return np.dtype(np.float64)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeighborManifest:
        """Inverse of `to_dict`."""
        identity = data["identity"]
        return cls(
            kernel=identity["kernel"],
            kind=identity["kind"],
            plan=NeighborPlan.from_dict(identity["plan"]),
            fingerprint=identity["fingerprint"],
            fingerprint_y=identity["fingerprint_y"],
            provenance=data["provenance"],
        )


def choose_queries(work: Work, samples: Samples, workers: Workers) -> int:
    """Queries of a task, a multiple of 64: tasks of 2 to 20 seconds, several for each worker."""
    seconds = total_pair_steps(work, samples) * SECONDS_PER_PAIR_STEP
    share = seconds / (_TASKS_A_WORKER * workers.count)
    task = min(max(share, _TASK_SECONDS[0]), _TASK_SECONDS[1])
    rows = int(len(samples.row_lengths) * task / seconds)
    return min(max(rows // TILE_STEP, 1) * TILE_STEP, MOST_QUERIES)
