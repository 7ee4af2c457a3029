"""Nearest neighbours as they are wanted: what `creation` finds, plans and creates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rntk_dist.creation import Wanted, samples_of
from rntk_dist.neighbor_manifest import NeighborManifest, NeighborPlan, choose_queries
from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.plan import Plan, Samples, Workers
from rntk_dist.store import GramStore, Manifest


@dataclass(frozen=True)
class WantedNeighbors(Wanted):
    """The k nearest of Y for each of X, and where they are to be stored.

    `tile` counts queries. Raises ValueError as `Wanted`, and for k outside 1 .. len(Y).
    """

    k: int = 1

    stores: ClassVar[type[GramStore]] = NeighborStore

    def __post_init__(self) -> None:
        super().__post_init__()
        self._plan(1)

    def _choose_tile(self, samples: Samples, workers: Workers) -> int:
        return choose_queries(self.work, samples, workers)

    def _plan(self, tile: int) -> Plan:
        rows, cols = samples_of(self.X, self.Y).plan(tile, self._itemsize).shape
        return NeighborPlan(rows, cols, min(tile, rows), False, self._itemsize, self.k)

    def _manifest(self, plan: Plan) -> Manifest:
        common = super()._manifest(plan)
        assert isinstance(plan, NeighborPlan)
        return NeighborManifest(
            kernel=common.kernel,
            kind=common.kind,
            plan=plan,
            fingerprint=common.fingerprint,
            fingerprint_y=common.fingerprint_y,
            provenance=common.provenance,
        )
