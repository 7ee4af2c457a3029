"""Which tiles make up a Gram matrix, how many bytes they take and how much work they are.

Words used throughout: a *tile* is the index pair of two blocks of samples, a *block* its computed
values, a *slab* the sequences of one side of it. A *pair-step* is one recurrent step of one pair of
sequences in one layer and one direction: the unit in which the kernel's cost is counted. Nothing
here reads, writes or computes; every number is known before any work starts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from math import isqrt
from typing import Self

MIB = 2**20

BASE_BYTES = 256 * MIB
"""Of a Dask worker process: 60 MiB alone, 75 with this package, 245 with compiled Numba loops."""

SCRATCH_BYTES = 64 * MIB
"""Temporaries of the kernel's inner blocks, and what the allocator holds back."""

LAYER_FEATURES, ERF_FEATURES = 3, 12
"""Numbers that a time step has in each layer, of relu and linear and of erf."""

BLOCK_COPIES = 3
"""Copies of a block alive at once, as it is stored: its values, the chunk with its checksum (2.04
blocks measured), and at the ragged edge the values padded to a whole chunk (2.99)."""

TILE_STEP = 64
"""Chosen tile edges are multiples of this, so that the kernel's inner blocks are full."""

SECONDS_PER_PAIR_STEP = 2e-9
"""For one core: the compiled loops take 1 to 4 ns."""


class TileMemoryError(ValueError):
    """A tile needs more memory than a worker has; the message says how much, and what fits."""


@dataclass(frozen=True, order=True, slots=True)
class Tile:
    """The pair (row block, column block); ordered row by row."""

    row: int
    col: int

    @property
    def name(self) -> str:
        """What tells it from the other tiles of a matrix, in the key of its task."""
        return f"{self.row}-{self.col}"

    def __str__(self) -> str:
        return f"({self.row}, {self.col})"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a Gram matrix of shape (n_rows, n_cols) is cut into tiles of edge `tile`.

    Invariants (checked by the tests for every shape): a symmetric plan's tiles cover each pair i <=
    j exactly once together with the mirror image inside the diagonal tiles, and no tile lies below
    the diagonal; a rectangular plan's tiles cover each (i, j) exactly once.

    Raises ValueError for sizes below 1, a symmetric plan that is not square, an itemsize other than
    4 or 8.
    """

    n_rows: int
    n_cols: int
    tile: int
    symmetric: bool
    itemsize: int = 8

    def __post_init__(self) -> None:
        for name in ("n_rows", "n_cols", "tile"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.symmetric and self.n_rows != self.n_cols:
            raise ValueError(f"a symmetric plan is square, got {self.n_rows} x {self.n_cols}")
        if self.itemsize not in (4, 8):
            raise ValueError(f"itemsize must be 4 (float32) or 8 (float64), got {self.itemsize}")

    # -- shape -------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_cols)."""
        return self.n_rows, self.n_cols

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """Shape of a stored chunk: the tile edge, or the whole axis where that is shorter."""
        return min(self.tile, self.n_rows), min(self.tile, self.n_cols)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of row blocks and of column blocks."""
        return ceil_div(self.n_rows, self.tile), ceil_div(self.n_cols, self.tile)

    @property
    def n_tiles(self) -> int:
        """Number of tiles to compute; where symmetric, of the upper triangle and the diagonal."""
        rows, cols = self.grid
        return rows * (rows + 1) // 2 if self.symmetric else rows * cols

    @property
    def bytes_stored(self) -> int:
        """Bytes of all chunks: full also at the ragged edge, with 4 bytes of checksum each."""
        rows, cols = self.chunk_shape
        return self.n_tiles * (rows * cols * self.itemsize + 4)

    def tiles(self) -> Iterator[Tile]:
        """All tiles to compute, row by row."""
        rows, cols = self.grid
        for row in range(rows):
            for col in range(row if self.symmetric else 0, cols):
                yield Tile(row, col)

    def __contains__(self, tile: Tile) -> bool:
        rows, cols = self.grid
        inside = 0 <= tile.row < rows and 0 <= tile.col < cols
        return inside and (tile.row <= tile.col or not self.symmetric)

    def rows(self, tile: Tile) -> tuple[int, int]:
        """First row of the tile and the one after its last."""
        return self.block_bounds(tile.row, axis=0)

    def cols(self, tile: Tile) -> tuple[int, int]:
        """First column of the tile and the one after its last."""
        return self.block_bounds(tile.col, axis=1)

    def block_bounds(self, block: int, *, axis: int) -> tuple[int, int]:
        """(start, stop) of one block of samples along an axis; the last block may be shorter."""
        start = block * self.tile
        return start, min(start + self.tile, self.shape[axis])

    def block_shape(self, tile: Tile) -> tuple[int, int]:
        """Shape of a tile's values."""
        (r0, r1), (c0, c1) = self.rows(tile), self.cols(tile)
        return r1 - r0, c1 - c0

    def is_diagonal(self, tile: Tile) -> bool:
        """True where a tile compares a slab with itself (symmetric plans only)."""
        return self.symmetric and tile.row == tile.col

    def tile_of(self, i: int, j: int) -> Tile:
        """The tile that stores element (i, j), or (j, i) if symmetric and below the diagonal.

        Raises IndexError outside the matrix.
        """
        if not (0 <= i < self.n_rows and 0 <= j < self.n_cols):
            raise IndexError(
                f"({i}, {j}) is outside a matrix of shape {self.n_rows} x {self.n_cols}"
            )
        row, col = i // self.tile, j // self.tile
        return Tile(min(row, col), max(row, col)) if self.symmetric else Tile(row, col)

    # -- JSON --------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, int | bool]:
        """A JSON-able dict; `Plan.from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Inverse of `to_dict`. Raises ValueError for missing or unknown fields."""
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise ValueError(f"a plan has the fields {sorted(names)}, got {sorted(data)}")
        return cls(**data)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernel does with one pair of sequences of lengths T and T', in pair-steps.

    readouts "last", "per_step", "diagonal_authors" walk one diagonal: min(T, T') steps; "mean"
    walks the whole grid: T * T'. Both times `depth` layers, times two directions if
    `bidirectional`. The O(T) variances of the single sequences and the diagonal that `normalize`
    needs are left out: they are one part in `tile` of it.

    `copies` of a block are alive at once; of each slab `side_by_side` time steps are prepared at
    least, where there are several kernels. A step has `features` numbers in each layer, beside its
    inputs.
    """

    readout: str = "last"
    depth: int = 1
    bidirectional: bool = False
    features: int = LAYER_FEATURES
    copies: int = BLOCK_COPIES
    side_by_side: int = 0

    @classmethod
    def of(cls, kernel: Mapping[str, object]) -> Work:
        """From the dict of a kernel (`RNTK.to_dict`)."""
        depth = kernel["depth"]
        if not isinstance(depth, int):
            raise TypeError(f"depth must be an int, got {depth!r}")
        features = ERF_FEATURES if kernel.get("activation") == "erf" else LAYER_FEATURES
        return cls(str(kernel["readout"]), depth, bool(kernel["bidirectional"]), features)

    @property
    def factor(self) -> int:
        """Layers times directions."""
        return self.depth * (2 if self.bidirectional else 1)

    @property
    def whole_grid(self) -> bool:
        """True if every pair of time steps is visited, not one diagonal."""
        return self.readout == "mean"

    def between(self, a: SortedLengths, b: SortedLengths) -> int:
        """Pair-steps of all pairs of one slab with another."""
        return self.factor * (a.total * b.total if self.whole_grid else _sum_of_minima(a, b))

    def within(self, a: SortedLengths) -> int:
        """Pair-steps of the pairs i <= j of one slab with itself."""
        if self.whole_grid:
            return self.factor * (a.total**2 + sum(t * t for t in a.lengths)) // 2
        # The k-th shortest is the shorter one against itself and the n - 1 - k longer ones.
        n = len(a.lengths)
        return self.factor * sum(t * (n - k) for k, t in enumerate(a.lengths))


@dataclass(frozen=True, slots=True)
class SortedLengths:
    """The lengths of one slab in ascending order; `sums[k]` is the sum of the k shortest."""

    lengths: tuple[int, ...]
    sums: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> SortedLengths:
        """From lengths in any order."""
        ordered = tuple(sorted(map(int, lengths)))
        return cls(ordered, (0, *accumulate(ordered)))

    @property
    def total(self) -> int:
        """Sum of the lengths."""
        return self.sums[-1]


def _sum_of_minima(a: SortedLengths, b: SortedLengths) -> int:
    """sum_i sum_j min(a_i, b_j) without visiting the pairs: O(n log n)."""
    if a.lengths[0] >= b.lengths[-1]:
        return b.total * len(a.lengths)
    if a.lengths[-1] <= b.lengths[0]:
        return a.total * len(b.lengths)
    total, n = 0, len(b.lengths)
    for t in a.lengths:
        shorter = bisect_right(b.lengths, t)
        total += b.sums[shorter] + t * (n - shorter)
    return total


@dataclass(frozen=True, slots=True)
class Samples:
    """The sequences of a matrix as a plan sees them.

    `row_lengths` (n_rows,); `col_lengths` (n_cols,), or None for a symmetric matrix; `n_features`
    numbers of every time step.
    """

    row_lengths: Sequence[int]
    col_lengths: Sequence[int] | None = None
    n_features: int = 1

    @property
    def columns(self) -> Sequence[int]:
        """The lengths of the columns' samples, symmetric or not."""
        return self.row_lengths if self.col_lengths is None else self.col_lengths

    def plan(self, tile: int, itemsize: int = 8) -> Plan:
        """The plan of their matrix; an edge longer than the matrix is cut to its longer side."""
        shape = len(self.row_lengths), len(self.columns)
        return Plan(*shape, min(tile, max(shape)), self.col_lengths is None, itemsize)


def tile_costs(plan: Plan, work: Work, samples: Samples, tiles: Iterable[Tile]) -> dict[Tile, int]:
    """Pair-steps of each of the tiles; a diagonal tile counts its pairs i <= j only.

    Each slab is sorted once, and no pair is visited.
    """
    row_slabs: dict[int, SortedLengths] = {}
    col_slabs = row_slabs if plan.symmetric else {}

    def cost(tile: Tile) -> int:
        row = _slab(row_slabs, tile.row, samples.row_lengths, plan.rows(tile))
        if plan.is_diagonal(tile):
            return work.within(row)
        return work.between(row, _slab(col_slabs, tile.col, samples.columns, plan.cols(tile)))

    return {tile: cost(tile) for tile in tiles}


def _slab(
    known: dict[int, SortedLengths], block: int, lengths: Sequence[int], bounds: tuple[int, int]
) -> SortedLengths:
    if block not in known:
        known[block] = SortedLengths.of(lengths[bounds[0] : bounds[1]])
    return known[block]


def pair_steps(plan: Plan, work: Work, samples: Samples, tile: Tile) -> int:
    """Pair-steps of one tile; see `tile_costs`."""
    return tile_costs(plan, work, samples, (tile,))[tile]


def total_pair_steps(work: Work, samples: Samples) -> int:
    """Pair-steps of the whole matrix, the sum over its tiles however it is cut."""
    rows = SortedLengths.of(samples.row_lengths)
    if samples.col_lengths is None:
        return work.within(rows)
    return work.between(rows, SortedLengths.of(samples.col_lengths))


# -- memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workers:
    """What will run the plan.

    `count` worker threads in all, `threads` at most in one process, and at least `memory` bytes
    in each process (0: no limit).
    """

    count: int = 1
    memory: int = 0
    threads: int = 1


def worker_bytes(plan: Plan, work: Work, samples: Samples, threads: int = 1) -> int:
    """Peak memory of a worker process that computes `threads` tiles of this plan at once."""
    rows, cols = plan.chunk_shape
    blocks = work.copies * rows * cols * plan.itemsize
    # A diagonal tile has one slab only, but the peak is that of the others.
    sides = (
        _largest_slab(lengths, plan.tile) for lengths in (samples.row_lengths, samples.columns)
    )
    steps = sum(max(side, work.side_by_side) for side in sides)
    slabs = steps * step_bytes(work, samples.n_features)
    return BASE_BYTES + threads * (blocks + slabs + SCRATCH_BYTES)


def step_bytes(work: Work, n_features: int) -> int:
    """Bytes that one time step of one sequence takes in a task, in float64.

    The values as they are read; for each direction the kernel's inputs and the features of every
    layer, twice: once for the copy in the dtype of the computation; and the sweeps over the whole
    grid of one sequence with itself, for its variance. Measured: 54 to 97 % of this.
    """
    directions = 2 if work.bidirectional else 1
    features = n_features + 2 + work.features * work.depth
    grid = 6 if work.whole_grid else 0
    return 8 * (2 * n_features + 2 * directions * features + grid)


def _largest_slab(lengths: Sequence[int], tile: int) -> int:
    """The largest number of time steps in one block of `tile` sequences."""
    return max(
        sum(map(int, lengths[start : start + tile])) for start in range(0, len(lengths), tile)
    )


def check_memory(plan: Plan, work: Work, samples: Samples, workers: Workers) -> None:
    """Raise TileMemoryError if a worker cannot hold a tile of this plan.

    The message names what the tile needs, what the worker has and the largest tile that fits.
    """
    need = worker_bytes(plan, work, samples, workers.threads)
    if not workers.memory or need <= workers.memory:
        return
    best = largest_tile(plan, work, samples, workers)
    smallest = replace(plan, tile=min(plan.tile, TILE_STEP))
    least = ceil_div(worker_bytes(smallest, work, samples, workers.threads), MIB)
    remedy = f"use tile={best}" if best else f"no tile fits, give each worker {least} MiB"
    have = _size(workers.memory)
    raise TileMemoryError(
        f"tile {plan.tile} needs {_size(need)} on a worker limited to {have}: {remedy}"
    )


def largest_tile(plan: Plan, work: Work, samples: Samples, workers: Workers) -> int:
    """The largest multiple of 64, up to the plan's tile, that workers can hold; 0 if none."""
    # Scanned, not bisected: with ragged lengths a smaller tile can have the larger slab.
    for tile in range(plan.tile // TILE_STEP * TILE_STEP, 0, -TILE_STEP):
        need = worker_bytes(replace(plan, tile=tile), work, samples, workers.threads)
        if need <= workers.memory:
            return tile
    return 0


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / MIB:.0f} MiB"


# -- choice of the tile ----------------------------------------------------------------------------


def choose_tile(
    work: Work,
    samples: Samples,
    workers: Workers,
    *,
    itemsize: int = 8,
    seconds_per_pair_step: float = SECONDS_PER_PAIR_STEP,
    task_seconds: tuple[float, float] = (0.5, 2.0),
    tiles_per_worker: int = 8,
    block_share: float = 0.125,
) -> int:
    """The default tile edge: a multiple of 64, or the matrix's longer side if that is smaller.

    A task takes between the two `task_seconds`: as long as leaves `tiles_per_worker` tiles for each
    worker thread, so that a long job has long tasks, a medium one enough of them, and a short one
    few. The values of one block take at most `block_share` of a worker thread's memory.

    Raises TileMemoryError if not even the smallest tile fits.
    """
    seconds = total_pair_steps(work, samples) * seconds_per_pair_step
    n, m = len(samples.row_lengths), len(samples.columns)
    pairs = n * (n + 1) // 2 if samples.col_lengths is None else n * m
    edge = choose_edge(
        *(pairs, seconds, workers, itemsize), task_seconds, tiles_per_worker, block_share
    )
    plan = samples.plan(edge, itemsize)
    if workers.memory and worker_bytes(plan, work, samples, workers.threads) > workers.memory:
        fitting = largest_tile(plan, work, samples, workers)
        if not fitting:
            check_memory(plan, work, samples, workers)
        return fitting
    return plan.tile


def choose_edge(
    pairs: int,
    seconds: float,
    workers: Workers,
    itemsize: int,
    task_seconds: tuple[float, float] = (0.5, 2.0),
    tiles_per_worker: int = 8,
    block_share: float = 0.125,
) -> int:
    """As `choose_tile`, of a matrix of so many pairs that take so many seconds of one thread.

    What a tile needs besides its values is left out.
    """
    share = seconds / (tiles_per_worker * workers.count)
    task = min(max(share, task_seconds[0]), task_seconds[1])
    # Rounded down: enough tiles matter more than a long task.
    edge = isqrt(int(pairs * task / seconds)) // TILE_STEP * TILE_STEP
    if workers.memory:
        most = int(workers.memory * block_share) // (itemsize * workers.threads)
        edge = min(edge, isqrt(most) // TILE_STEP * TILE_STEP)
    return max(edge, TILE_STEP)


def ceil_div(a: int, b: int) -> int:
    """Divide and round up."""
    return -(-a // b)
