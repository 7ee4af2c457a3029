"""A few columns of a kernel matrix, walked over again and again, a panel of rows at a time.

Where a panel comes from on the second walk and later is a choice: it is computed anew, it is still
in memory, or it is read from a folder. A fused kernel may be cheaper than a disk; how many
steps the sequences have decides, so it is measured on the first panel.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rntk_dist.folder_store import free_bytes
from rntk_dist.in_order import one_ahead
from rntk_dist.operators import Block, Indices, Operator
from rntk_dist.solve.row_store import RowStore
from rntk_dist.solve.systems import Float64, SolverMemoryError

type Panel = Literal["auto", "compute", "memory", "store"]

WAYS: tuple[Panel, ...] = get_args(Panel.__value__)

PANEL_BYTES = 64 * 2**20
STRIPE_BYTES = 2**20
"""Of a panel in float64 at a time: both of its products are made while it is near."""

ROW_STEP = 64
WALKS = 10
"""Writing pays if it has paid after so many walks; an iteration seldom takes fewer."""


@dataclass(frozen=True)
class Choice:
    """Where panels come from, "compute", "memory" or "store", and what that was decided by.

    `nbytes` of all of them; seconds for one panel, where they were measured, to `compute` it, to
    `write` it to the disk and to `read` it from there.
    """

    way: Panel
    nbytes: int
    compute: float | None = None
    write: float | None = None
    read: float | None = None


def panel_height(n: int, m: int, itemsize: int) -> int:
    """Rows of a panel of m columns: some 64 MiB of them."""
    height = max(1, PANEL_BYTES // (m * itemsize))
    return min(n, height // ROW_STEP * ROW_STEP or height)


def panel_bytes(n: int, m: int, itemsize: int) -> int:
    """Memory of a walk: two panels, what one is put together from, and stripes in float64."""
    return 3 * panel_height(n, m, itemsize) * m * itemsize + 3 * STRIPE_BYTES


@dataclass(eq=False)
class Panels:
    """The columns `centers` (m,) of a matrix (n, n), as panels of rows.

    `room` is the bytes that panels kept in memory may take, `folder` where stored ones go.

    Raises ValueError for "store" without a folder, SolverMemoryError for "memory" that is too
    small; what `RowStore.at` raises.
    """

    matrix: Operator
    centers: Indices
    wanted: Panel
    room: int
    folder: Path | None
    choice: Choice = field(init=False)

    def __post_init__(self) -> None:
        n, m = self.shape
        self.height = panel_height(n, m, self.matrix.dtype.itemsize)
        self._kept: dict[int, Block] = {}
        self._store: RowStore | None = None
        self.choice = self._chosen()

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return len(self.matrix), len(self.centers)

    # -- walking -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[slice, Block]]:
        """Each panel with its rows, the next one in work meanwhile."""
        count = -(-self.shape[0] // self.height)
        yield from zip(
            map(self._rows, range(count)), one_ahead(self._panel, range(count)), strict=True
        )

    def product(self, V: Float64) -> Float64:
        """P V (n, k), of V (m, k)."""
        out = np.empty((self.shape[0], V.shape[1]))
        for rows, panel in self:
            for part, stripe in _stripes(panel):
                out[rows][part] = stripe @ V
        return out

    def transposed_product(self, W: Float64) -> Float64:
        """P^T W (m, k), of W (n, k)."""
        out = np.zeros((self.shape[1], W.shape[1]))
        for rows, panel in self:
            for part, stripe in _stripes(panel):
                out += stripe.T @ W[rows][part]
        return out

    def normal_product(self, V: Float64) -> Float64:
        """P^T P V (m, k), of V (m, k), in one walk."""
        out = np.zeros((self.shape[1], V.shape[1]))
        for _, panel in self:
            add_normal(out, panel, V)
        return out

    # -- a panel -----------------------------------------------------------------------------------

    def _rows(self, number: int) -> slice:
        return slice(number * self.height, min((number + 1) * self.height, self.shape[0]))

    def _computed(self, number: int) -> Block:
        rows = self._rows(number)
        return self.matrix.block(np.arange(rows.start, rows.stop), self.centers)

    def _panel(self, number: int) -> Block:
        if self._store is not None:
            return self._stored(self._store, number)
        if self.choice.way != "memory":
            return self._computed(number)
        if number not in self._kept:
            self._kept[number] = self._computed(number)
        return self._kept[number]

    def _stored(self, store: RowStore, number: int) -> Block:
        if store.stored(number):
            return store.read(number)
        panel = self._computed(number)
        store.write(number, panel)
        return panel

    # -- the choice --------------------------------------------------------------------------------

    def _chosen(self) -> Choice:
        n, m = self.shape
        nbytes = n * m * self.matrix.dtype.itemsize
        if self.wanted not in WAYS:
            raise ValueError(f"panels is {self.wanted!r}: give one of {', '.join(WAYS)}")
        if self.wanted == "store" and self.folder is None:
            raise ValueError('panels "store" are kept in a folder: give one')
        if self.wanted == "memory" and nbytes > self.room:
            raise SolverMemoryError(
                f"{n} x {m} values are {nbytes / 2**30:.2f} GiB, and {self.room / 2**30:.2f} GiB "
                'are left for them: use panels "compute" or "store", or give more memory'
            )
        if self.wanted == "memory" or (self.wanted == "auto" and nbytes <= self.room):
            return Choice("memory", nbytes)
        if self.wanted == "compute" or not self._disk_will_do(nbytes):
            return Choice("compute", nbytes)
        store = self._row_store()
        found = Choice("store", nbytes) if self.wanted == "store" else self._measured(store, nbytes)
        if found.way == "store":
            self._store, self.height = store, store.height
        return found

    def _measured(self, store: RowStore, nbytes: int) -> Choice:
        """By the first panel, which is computed, stored, and read from the disk."""
        if store.stored(0):
            return Choice("store", nbytes)  # it was chosen before, by a process that was killed
        # A few values beforehand: what compiles does so now.
        self.matrix.block(np.arange(min(2, len(self.matrix))), self.centers[:2])
        started = time.perf_counter()
        panel = self.matrix.block(np.arange(len(self.matrix))[store.rows(0)], self.centers)
        computed = time.perf_counter()
        store.write(0, panel)
        written = time.perf_counter()
        store.forget(0)
        between = time.perf_counter()
        store.read(0)
        read = time.perf_counter() - between
        compute, write = computed - started, written - computed
        pays = write / WALKS + read < compute
        if not pays:
            shutil.rmtree(store.folder)
        return Choice("store" if pays else "compute", nbytes, compute, write, read)

    def _disk_will_do(self, nbytes: int) -> bool:
        if self.folder is None:
            return False
        return self.wanted == "store" or nbytes < free_bytes(self.folder)

    def _row_store(self) -> RowStore:
        if self.folder is None:
            raise ValueError('panels "store" are kept in a folder: give one')
        identity = hashlib.sha256(self.matrix.identity.encode() + self.centers.tobytes())
        dtype = self.matrix.dtype
        return RowStore.at(self.folder, self.shape, dtype, self.height, identity.hexdigest())


def add_normal(out: Float64, panel: Block, V: Float64) -> None:
    """Add P^T P V (m, k) of one panel P to `out`, in one walk over it."""
    for _, stripe in _stripes(panel):
        out += stripe.T @ (stripe @ V)


def _stripes(panel: Block) -> Iterator[tuple[slice, Float64]]:
    height = max(1, STRIPE_BYTES // (8 * panel.shape[1]))
    for start in range(0, len(panel), height):
        part = slice(start, start + height)
        yield part, panel[part].astype(np.float64, copy=False)
