"""Some entries of stored tiles, computed again from the stored sequences and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isqrt, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Plan, Tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import Block, GramStore
from rntk_dist.sweep_manifest import SweepTile

TOLERANCE = {"float64": 1e-9, "float32": 2e-4}
"""Largest difference of a recomputed entry, relative to sqrt(k(x, x) k(y, y)): backends differ in
rounding, and wrong values differ by far more."""


@dataclass(frozen=True)
class Sides:
    """The sequences on a tile's two sides: from memory if they are given, else from the store."""

    store: GramStore
    X: Sequences | None = None
    Y: Sequences | None = None

    def rows(self, tile: Tile) -> Sequences:
        """Those of its rows."""
        if self.X is None:
            return self.store.row_slab(tile)
        return self.X[slice(*self.store.plan.rows(tile))]

    def cols(self, tile: Tile) -> Sequences:
        """Those of its columns."""
        whole = self.X if self.store.plan.symmetric else self.Y
        if whole is None:
            return self.store.col_slab(tile)
        return whole[slice(*self.store.plan.cols(tile))]


class Comparison(NamedTuple):
    """What came of one tile's entries: the worst one in words, if it is `wrong`; else None."""

    wrong: str | None
    entries: int
    error: float


def spread(tiles: Sequence[Tile], recompute: int, seed: int) -> dict[Tile, int]:
    """How many entries of each tile: the same number, and one more in some picked at random."""
    each, rest = divmod(recompute, max(1, len(tiles)))
    more = frozenset(np.random.default_rng(seed).permutation(len(tiles))[:rest].tolist())
    return {tile: each + (position in more) for position, tile in enumerate(tiles)}


def compare(sides: Sides, tile: Tile, block: Block, n: int, seed: int) -> Comparison:
    """Compute n entries of a tile again, or a few more: they form a grid, for one kernel call."""
    plan, manifest = sides.store.plan, sides.store.manifest
    rows, cols = _pick(plan, tile, n, seed)
    first = sides.rows(tile)[rows]
    second = None if plan.is_diagonal(tile) else sides.cols(tile)[cols]
    kernel = RNTK.from_dict(dict(sides.store.kernel_of(tile)))
    try:
        values = kernel(first, second, kind=manifest.kind, dtype=manifest.dtype, backend="numba")
    except OverflowError as error:
        return Comparison(f"it cannot be computed: {error}", 0, 0.0)
    stored = block[np.ix_(rows, cols)]
    entries = stored.size if second is not None else len(rows) * (len(rows) + 1) // 2
    if np.array_equal(stored, values):  # as a rule; it spares the diagonals
        return Comparison(None, entries, 0.0)
    own = kernel.diag(first, kind=manifest.kind)
    other = own if second is None else kernel.diag(second, kind=manifest.kind)
    errors = _relative(stored, values, np.sqrt(np.outer(own, other)))
    a, b = np.unravel_index(int(errors.argmax()), errors.shape)
    wrong, largest = None, float(errors[a, b])
    if largest > TOLERANCE[manifest.dtype.name]:
        i, j = plan.rows(tile)[0] + rows[a], plan.cols(tile)[0] + cols[b]
        wrong = f"entry ({i}, {j}) is {stored[a, b]}, the kernel gives {values[a, b]}"
    return Comparison(wrong, entries, largest)


def _pick(plan: Plan, tile: Tile, n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns inside the tile, in order, that cross in n of its entries or a few more."""
    kernels = tile.kernels if isinstance(tile, SweepTile) else ()  # each has entries of its own
    rng = np.random.default_rng([seed, tile.row, tile.col, *kernels])
    n_rows, n_cols = plan.block_shape(tile)
    if plan.is_diagonal(tile):
        # Two at least: an entry of one sample with itself is computed otherwise than the others.
        both = _some(rng, n_rows, max(2, ceil((sqrt(8 * n + 1) - 1) / 2)))
        return both, both
    rows = _some(rng, n_rows, max(isqrt(n), ceil(n / n_cols)))
    return rows, _some(rng, n_cols, ceil(n / len(rows)))


def _some(rng: np.random.Generator, size: int, n: int) -> NDArray[np.int64]:
    return np.sort(rng.choice(size, min(n, size), replace=False)).astype(np.int64)


def _relative(stored: Block, values: Block, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences relative to the scale, or to the values where those are larger; 0 if equal."""
    difference = np.abs(stored.astype(np.float64) - values)
    size = np.maximum(scale, np.abs(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / size)
