"""`sweep` computes the Gram matrices of many kernels over the same sequences; `Sweep` reads them.

All of them are in one store, and what is missing is known for each tile of each kernel: the same
call resumes. Kernels that are multiples of each other are computed once in a task.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed import Client

from rntk_dist.creation import owned
from rntk_dist.gram import Gram, IncompleteGramError, extents, fill_missing, read_block
from rntk_dist.kernel.families import families
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.plan import Plan
from rntk_dist.sequences import Sequences
from rntk_dist.store import Block, GramStore, Location, locate, show
from rntk_dist.sweep_creation import wanted_sweep
from rntk_dist.sweep_store import SweepStore, open_slice
from rntk_dist.sweep_view import sweep_html

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


def sweep(
    kernels: Iterable[RNTK],
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
) -> Sweep:
    """Compute the Gram matrices of many kernels over X, or X against Y: run it, or resume it.

    What a task reads is read once for several kernels. Kernels that only rescale others (sigma_v;
    for relu and linear sigma_u, sigma_b and sigma_h together) are multiplied, not computed. Only
    tiles that the store lacks are computed; on a complete store this is `open_sweep`.

    Parameters
    ----------
    kernels
        The kernels; their order is that of the result.
    X, Y
        As for `rd.gram`; each kernel has a symmetric (n, n) or a rectangular (n, m) matrix.
    store
        A local path or a URL that all workers can reach. It holds all the matrices, as one array
        (kernel, row, column).
    kind, client, tile, dtype, backend, progress, wait
        As for `rd.gram`; the tile is that of all kernels.

    Raises
    ------
    ValueError
        There are no kernels, or one does not take the sequences.
    IdentityError
        The store holds a sweep of other kernels, or of other sequences.
    Exception
        As `rd.gram`, where tiles, workers, the store or its owner are the reason. What is stored is
        kept, and the same call resumes.
    """
    chosen = tuple(kernels)
    rows = Sequences.from_arrays(X)
    cols = None if Y is None else Sequences.from_arrays(Y)
    wanted = wanted_sweep(
        chosen, rows, cols, where=locate(store), kind=kind, tile=tile, dtype=dtype, backend=backend
    )
    opened = wanted.find()
    if opened is None or opened.missing_tiles():
        with owned(wanted, client, wait) as (found, held):
            fill_missing(_in_families(found, chosen), client, backend, progress, held.check)
    elif opened.report() is None:
        with suppress(OSError):  # a whole store that cannot be written to is whole all the same
            opened.finish()
    return open_sweep(store)


def open_sweep(store: Location) -> Sweep:
    """The sweep in a store, complete or not, for reading.

    Raises FileNotFoundError if nothing is there, StoreFormatError if it is something else.
    """
    return Sweep(SweepStore.open(store))


class Sweep:
    """The stored Gram matrices of many kernels: `sweep[i]` is the `Gram` of `sweep.kernels[i]`.

    It is a sequence of Gram views: it has a length, and a loop goes through it.
    """

    def __init__(self, store: SweepStore) -> None:
        self.store = store

    @property
    def plan(self) -> Plan:
        """How each of the matrices is cut into tiles."""
        return self.store.manifest.plan

    @property
    def shape(self) -> tuple[int, int, int]:
        """(kernels, rows, columns)."""
        return len(self), *self.plan.shape

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """Of the stored values: float32 or float64."""
        return self.store.manifest.dtype

    @property
    def kind(self) -> str:
        """Either "ntk" or "nngp"."""
        return self.store.manifest.kind

    @cached_property
    def kernels(self) -> tuple[RNTK, ...]:
        """The kernels, in the order in which they were given."""
        return tuple(RNTK.from_dict(options) for options in self.store.manifest.kernels)

    @cached_property
    def sequences(self) -> Sequences:
        """The samples of the rows, and of the columns if symmetric."""
        return self.store.sequences()

    @cached_property
    def sequences_y(self) -> Sequences | None:
        """The samples of the columns if rectangular, else None."""
        return self.store.sequences_y()

    @property
    def complete(self) -> bool:
        """True if every tile of every kernel has been computed."""
        return not self.store.missing_tiles()

    def progress(self) -> list[int]:
        """For each kernel the number of its tiles that are stored; lists the store anew."""
        return self.store.stored_a_kernel()

    def __len__(self) -> int:
        return len(self.store.manifest.kernels)

    def __getitem__(self, i: int) -> Gram:
        """The matrix of one kernel; negative positions count from the end.

        Raises IndexError if there is no such kernel.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"there is no kernel {i} in a sweep of {len(self)}")
        return Gram(self.store.slice(i % len(self)))

    def __iter__(self) -> Iterator[Gram]:
        return (self[i] for i in range(len(self)))

    def index(self, kernel: RNTK) -> int:
        """The position of a kernel in the list; raises ValueError if it is not in it."""
        try:
            return self.kernels.index(kernel)
        except ValueError as error:
            raise ValueError(f"{kernel} is not one of the {len(self)} of this sweep") from error

    def __repr__(self) -> str:
        count, rows, cols = self.shape
        stored, total = sum(self.progress()), count * self.plan.n_tiles
        what = f"{count} kernels, {rows} x {cols} {self.dtype.name} {self.kind}"
        return f"Sweep({what}, {stored}/{total} tiles, store={show(self.store.location)!r})"

    def _repr_html_(self) -> str:
        return sweep_html(self.store)

    def to_dask(self) -> da.Array:
        """All matrices as one lazy Dask array (kernels, rows, columns), a block a tile.

        Raises IncompleteGramError where a tile has not been computed.
        """
        import dask.array as da  # here, as in Gram.to_dask

        self._require_all()
        blocks: da.Array = da.map_blocks(
            _read_block,
            self.store.location,
            self.plan,
            chunks=((1,) * len(self), extents(self.plan, 0), extents(self.plan, 1)),
            dtype=self.dtype,
            meta=np.empty((0, 0, 0), self.dtype),
            name=f"sweep-{uuid.uuid4().hex}",
        )
        return blocks

    def to_xarray(self) -> xr.DataArray:
        """All matrices as a lazy xarray DataArray with dimensions "kernel", "row" and "col".

        The options that are not the same in all kernels are coordinates of "kernel", so that
        `sweep.to_xarray().isel(kernel=...)` tells what it is of; the others are attributes.

        Raises ImportError without xarray, and as `to_dask`.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install xarray") from error
        manifest = self.store.manifest
        return xr.DataArray(
            self.to_dask(),
            dims=manifest.dimensions,
            coords={name: ("kernel", list(values)) for name, values in manifest.varying.items()},
            name=self.kind,
            attrs={**manifest.same, "kind": self.kind, "fingerprint": manifest.fingerprint},
        )

    def _require_all(self) -> None:
        lacking = [i for i, n in enumerate(self.progress()) if n < self.plan.n_tiles]
        if lacking:
            raise IncompleteGramError(
                f"{len(lacking)} of {len(self)} matrices are not whole, the first is that of "
                f"kernel {lacking[0]}: run rd.sweep again with the same arguments and "
                f"store={show(self.store.location)!r} to resume"
            )


def grid(kernel: RNTK, values: Mapping[str, Sequence[Any]]) -> list[RNTK]:
    """The kernel with every combination of these options; the last option changes fastest.

    Raises ValueError for an option that there is not, without a value, or with a wrong one.
    """
    known = [field.name for field in fields(RNTK)]
    for name, given in values.items():
        if name not in known:
            raise ValueError(f"{name} is no option of a kernel: they are {', '.join(known)}")
        if not given:
            raise ValueError(f"{name} has no value to sweep over: give at least one")
    return [
        replace(kernel, **dict(zip(values, chosen, strict=True)))
        for chosen in product(*values.values())
    ]


def _read_block(location: Any, plan: Plan, block_id: tuple[int, int, int]) -> Block:
    """One block of `Sweep.to_dask`: of one kernel."""
    kernel, row, col = block_id
    return read_block(open_slice(location, kernel), plan, row, col)[None]


# -- how -------------------------------------------------------------------------------------------


def _in_families(store: GramStore, kernels: tuple[RNTK, ...]) -> GramStore:
    """The store with multiples of a kernel in its group, so that they come into its task."""
    groups = tuple(family.members for family in families(kernels))
    return replace(store, groups=groups) if isinstance(store, SweepStore) else store
