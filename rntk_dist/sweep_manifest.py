"""What a sweep's store holds, and how it is cut: many kernels, each with its own tiles.

A task takes one tile of several kernels; how many is no part of what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched, chain
from typing import Any, ClassVar

from rntk_dist.manifest import SWEEP_FORMAT, Manifest
from rntk_dist.plan import Plan, Tile

GROUPS_A_TASK = 16
"""Kernels that a task computes at most; with those that are multiples of one, more are stored."""

LEAST_TASKS = 32
"""Tasks that a sweep has at least, for workers to share, as long as it has as many chunks."""

type Options = Mapping[str, Any]
"""A kernel's JSON-able dict."""


# -- what is planned -------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class SweepTile(Tile):
    """One tile of some kernels, positions in the list of all: a task; of one kernel a chunk."""

    kernels: tuple[int, ...]

    @property
    def name(self) -> str:
        """Begins as any tile's; the first kernel tells it from the others of a run."""
        return f"{self.row}-{self.col}-{self.kernels[0]}"

    def __str__(self) -> str:
        return f"({self.row}, {self.col}) of {_named(self.kernels)}"


@dataclass(frozen=True)
class SweepPlan(Plan):
    """A plan whose tiles are each of several kernels; every kernel has its place in one batch."""

    batches: tuple[tuple[int, ...], ...] = ()

    @property
    def n_tiles(self) -> int:
        """Number of tasks: tiles of a matrix times batches."""
        return super().n_tiles * len(self.batches)

    @property
    def bytes_stored(self) -> int:
        """Bytes of the chunks of all kernels."""
        return super().bytes_stored * sum(map(len, self.batches))

    def tiles(self) -> Iterator[Tile]:
        """All tasks, one batch after another, so that the first matrices are soon whole."""
        for batch in self.batches:
            for tile in super().tiles():
                yield SweepTile(tile.row, tile.col, batch)

    def __contains__(self, tile: Tile) -> bool:
        if not isinstance(tile, SweepTile) or not super().__contains__(tile):
            return False
        batches = {self._batch_of.get(kernel) for kernel in tile.kernels}
        return len(batches) == 1 and None not in batches

    @cached_property
    def _batch_of(self) -> dict[int, int]:
        return {kernel: i for i, batch in enumerate(self.batches) for kernel in batch}


def make_batches(groups: Sequence[tuple[int, ...]], n_tiles: int) -> tuple[tuple[int, ...], ...]:
    """Groups of kernels in runs, each of which is a task for each of a matrix's `n_tiles` tiles.

    The kernels of a group stay in one task, however many they are.
    """
    size = min(GROUPS_A_TASK, max(1, len(groups) * n_tiles // LEAST_TASKS))
    return tuple(tuple(chain.from_iterable(run)) for run in batched(groups, size))


def batched_plan(plan: Plan, groups: Sequence[tuple[int, ...]]) -> SweepPlan:
    """The plan of a sweep whose matrices are each cut by `plan`."""
    batches = make_batches(groups, plan.n_tiles)
    return SweepPlan(plan.n_rows, plan.n_cols, plan.tile, plan.symmetric, plan.itemsize, batches)


# -- what is stored --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepManifest(Manifest):
    """What the store of a sweep holds. `kernel` is the one whose tasks need most memory."""

    kernels: tuple[Options, ...] = ()

    format: ClassVar[int] = SWEEP_FORMAT
    dimensions: ClassVar[tuple[str, ...]] = ("kernel", "row", "col")

    @property
    def shape(self) -> tuple[int, ...]:
        """(kernels, rows, columns)."""
        return len(self.kernels), *super().shape

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """A tile of one kernel."""
        return 1, *super().chunk_shape

    def identity(self) -> dict[str, Any]:
        """The JSON-able part that is compared: all kernels, in their order."""
        rest = {name: value for name, value in super().identity().items() if name != "kernel"}
        kernels = {"count": len(self.kernels), "same": self.same, "each": dict(self.varying)}
        return {"kernels": kernels, **rest}

    @property
    def same(self) -> Options:
        """The options that are the same in all kernels."""
        return {k: v for k, v in self.kernels[0].items() if k not in self.varying}

    @cached_property
    def varying(self) -> Mapping[str, Sequence[Any]]:
        """The values, one for each kernel, of the options that are not the same in all of them."""
        first = self.kernels[0]
        columns = {name: [kernel[name] for kernel in self.kernels] for name in first}
        return {name: column for name, column in columns.items() if set(column) != {first[name]}}

    def chosen(self, i: int) -> Options:
        """The options that tell one kernel from the others."""
        return {name: values[i] for name, values in self.varying.items()}

    def of_kernel(self, i: int) -> Manifest:
        """What a store of this kernel's matrix alone would hold."""
        return Manifest(
            kernel=self.kernels[i],
            kind=self.kind,
            plan=self.plan,
            fingerprint=self.fingerprint,
            fingerprint_y=self.fingerprint_y,
            provenance=self.provenance,
        )

    def differences(self, other: Manifest) -> list[str]:
        """A line for each field that `other` has otherwise; of kernels, the first that differs."""
        if not isinstance(other, SweepManifest):
            return ["  stored is a sweep, given one matrix"]
        if len(self.kernels) != len(other.kernels):
            return [f"  kernels: stored {len(self.kernels)}, given {len(other.kernels)}"]
        for i in range(len(self.kernels)):
            lines = self.of_kernel(i).differences(other.of_kernel(i))
            if lines:
                return [f"  kernel {i} is the first that differs:", *lines]
        return []

    @classmethod
    def of(cls, common: Manifest, kernels: Sequence[Options]) -> SweepManifest:
        """The kernels' manifest; all else is as in that of one of them."""
        return cls(
            kernel=common.kernel,
            kind=common.kind,
            plan=common.plan,
            fingerprint=common.fingerprint,
            fingerprint_y=common.fingerprint_y,
            provenance=common.provenance,
            kernels=tuple(kernels),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SweepManifest:
        """Inverse of `to_dict`."""
        kernels = _rows(data["identity"]["kernels"])
        heaviest = max(kernels, key=demand)
        identity = {**data["identity"], "kernel": heaviest}
        return cls.of(Manifest.from_dict({**data, "identity": identity}), kernels)


def demand(kernel: Options) -> tuple[bool, bool, int]:
    """By this a kernel's task needs more memory than another's; see `plan.step_bytes`."""
    return bool(kernel["bidirectional"]), kernel["readout"] == "mean", int(kernel["depth"])


def _rows(columns: Mapping[str, Any]) -> list[Options]:
    """The options of each kernel, from those of `SweepManifest.identity`."""
    each = columns["each"]
    return [
        {**columns["same"], **{name: values[i] for name, values in each.items()}}
        for i in range(columns["count"])
    ]


def index_of(tile: Tile) -> int:
    """The kernel of a chunk's tile; raises TypeError for that of a task."""
    if isinstance(tile, SweepTile) and len(tile.kernels) == 1:
        return tile.kernels[0]
    raise TypeError(f"tile {tile} is not one of a single kernel: give a SweepTile of one")


def _named(kernels: Sequence[int]) -> str:
    if len(kernels) == 1:
        return f"kernel {kernels[0]}"
    return f"the {len(kernels)} kernels {kernels[0]} to {kernels[-1]}"
