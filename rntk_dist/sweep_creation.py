"""The matrices of many kernels as they are wanted: what `creation` finds, plans and creates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zarr.abc.store import Store

from rntk_dist.creation import Wanted
from rntk_dist.kernel.many import STACK_STEPS
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.plan import BLOCK_COPIES, Plan, Work
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Manifest
from rntk_dist.sweep_manifest import SweepManifest, demand
from rntk_dist.sweep_store import SweepStore


@dataclass(frozen=True)
class WantedSweep(Wanted):
    """The matrices of many kernels, and where they are to be stored.

    `kernel` is the one whose tasks need most memory. Raises ValueError as `Wanted`, for any kernel.
    """

    kernels: tuple[RNTK, ...] = ()

    stores: ClassVar[type[GramStore]] = SweepStore

    def __post_init__(self) -> None:
        super().__post_init__()
        for kernel in self.kernels:
            kernel.check_sequences(self.X, self.Y)

    @property
    def work(self) -> Work:
        """Of the most demanding kernel."""
        return sweep_work(self.kernel.to_dict())

    def _manifest(self, plan: Plan) -> Manifest:
        options = [kernel.to_dict() for kernel in self.kernels]
        return SweepManifest.of(super()._manifest(plan), options)


def wanted_sweep(
    kernels: Sequence[RNTK],
    X: Sequences,
    Y: Sequences | None,
    *,
    where: str | Store,
    kind: Kind = "ntk",
    tile: int | None = None,
    dtype: DType = "float64",
    backend: Backend = "auto",
) -> WantedSweep:
    """The matrices of these kernels. Raises ValueError if there are none, and as `WantedSweep`."""
    if not kernels:
        raise ValueError("a sweep needs kernels, and there are none: give at least one")
    most = max(kernels, key=lambda kernel: demand(kernel.to_dict()))
    return WantedSweep(where, most, X, Y, kind, tile, dtype, backend, tuple(kernels))


def sweep_work(heaviest: Mapping[str, Any]) -> Work:
    """What a task of a sweep does with a pair for its most demanding kernel, and what it holds.

    One copy of a block more than a task of one matrix: the values that multiples are made of. And
    sequences prepared for several kernels at once.
    """
    return replace(Work.of(heaviest), copies=BLOCK_COPIES + 1, side_by_side=STACK_STEPS)
