"""Is every stored tile what was computed? `verify` tells, and `repair` computes anew what is not.

A chunk is judged by four witnesses, each of which sees what the others cannot: its own checksum
(truncated, damaged), its values (not finite), the checksum in the tile's record (misplaced,
altered), and the kernel itself, run again on some entries (wrong).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from distributed import Client
from zarr.abc.store import Store

from rntk_dist.cluster import local_client
from rntk_dist.compute import fill
from rntk_dist.kernel.rntk import BACKENDS, Backend
from rntk_dist.lease import lease
from rntk_dist.plan import Tile
from rntk_dist.records import Record
from rntk_dist.spot_check import Sides, compare, spread
from rntk_dist.store import (
    CorruptTileError,
    GramStore,
    Location,
    MissingTileError,
    StoreFormatError,
    in_memory,
    locate,
    show,
)
from rntk_dist.sweep_manifest import SweepTile, index_of
from rntk_dist.sweep_store import SweepStore, open_any

_THREADS = 8
_BATCHES_PER_THREAD = 4

type Fault = Literal[
    "missing", "truncated", "damaged", "misplaced", "altered", "not finite", "wrong", "sequences"
]


class Problem(NamedTuple):
    """What is wrong with a tile; `tile` is None where it is the stored sequences.

    In a sweep it is a tile of one kernel, and `options` are those that tell this from the others.
    """

    tile: Tile | None
    kind: Fault
    detail: str
    options: Mapping[str, Any] | None = None

    @property
    def kernel(self) -> int | None:
        """The position of the tile's kernel in a sweep; None where there is but one."""
        return index_of(self.tile) if isinstance(self.tile, SweepTile) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        tile = self.tile and [self.tile.row, self.tile.col]
        found = {"tile": tile, "kind": self.kind, "detail": self.detail}
        if self.kernel is None:
            return found
        return {"kernel": self.kernel, "options": dict(self.options or {}), **found}


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Of the `tiles`, so many are `sound`. `entries` were recomputed; those of sound tiles differ by
    at most `largest_error`, relative to sqrt(k(x, x) k(y, y)). `foreign` are files in the store
    that are no part of it; they harm nothing, and are no problem. `kernels` are those of a sweep,
    each with its own tiles; None for one matrix.
    """

    store: str
    tiles: int
    sound: int
    problems: tuple[Problem, ...]
    foreign: tuple[str, ...]
    entries: int
    largest_error: float
    kernels: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every tile is there and sound, and so are the sequences."""
        return not self.problems

    @property
    def unsound(self) -> list[Tile]:
        """The tiles with a problem, in order."""
        return [problem.tile for problem in self.problems if problem.tile is not None]

    @property
    def unsound_kernels(self) -> list[int]:
        """The kernels of a sweep that have a problem."""
        kernels = {problem.kernel for problem in self.problems}
        return sorted(kernel for kernel in kernels if kernel is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; of a sweep it has the number of kernels, too, and those that are not sound."""
        facts = {"kernels": self.kernels, "unsound_kernels": self.unsound_kernels}
        return {
            "store": self.store,
            "ok": self.ok,
            **(facts if self.kernels is not None else {}),
            "tiles": self.tiles,
            "sound": self.sound,
            "problems": [problem.to_dict() for problem in self.problems],
            "foreign": list(self.foreign),
            "entries": self.entries,
            "largest_error": self.largest_error,
        }


def verify(
    store: Location, recompute: int = 1000, *, client: Client | None = None, seed: int = 0
) -> Verification:
    """Read every tile of a store, and compute some of its entries again; writes nothing.

    Of a sweep, every tile of every kernel.

    Parameters
    ----------
    store
        A local path, an fsspec URL or a Zarr store.
    recompute
        How many entries are computed again from the stored sequences. They are spread evenly over
        all tiles (a tile smaller than its share is computed whole); with fewer entries than tiles,
        over as many tiles picked at random.
    client
        A Dask client whose workers read the tiles; without one, threads of this process do.
    seed
        Of the choice of entries.

    Raises
    ------
    FileNotFoundError
        Nothing is there, or it vanished meanwhile.
    StoreFormatError
        It is something else, or its manifest was altered.
    ValueError
        `recompute` is negative.
    """
    opened = open_any(store)
    return _verified(opened, opened.chunk_tiles(), recompute, client, seed)


def repair(
    store: Location, client: Client | None = None, *, recompute: int = 1000, seed: int = 0
) -> Verification:
    """Verify a store, delete the chunks that are not sound, compute exactly those, verify them.

    Returns the verification afterwards: of all tiles, the repaired ones read again. What killed
    writers left is removed, too. Without `client` a cluster of this machine's cores is started if
    there is anything to compute.

    Raises as `verify`, and as `fill` if a tile cannot be computed (the others are repaired then);
    StoreFormatError if the stored sequences are damaged, ValueError for a store in memory,
    PermissionError for one that cannot be written to.
    """
    before = verify(store, recompute, client=client, seed=seed)
    _refuse_unrepairable(locate(store), before)
    opened = open_any(store, writable=True)
    tiles = before.unsound
    with _writing_to(opened), lease(opened.location) as held:
        opened.clean()
        if tiles:
            # The workers come first: nothing is deleted that nobody can compute.
            with _workers(client, len(tiles)) as workers:
                opened.discard(tiles)
                fill(opened, workers, backend=_backend(opened), check=held.check)
        opened.finish()
    if not tiles:
        return before
    return _merged(before, _verified(opened, tiles, recompute, client, seed))


# -- the tiles -------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    """What one tile looks like by itself; `checksum` is what its chunk ends in."""

    tile: Tile
    problem: Problem | None
    checksum: str | None
    entries: int = 0
    error: float = 0.0


class _Check(NamedTuple):
    """One tile to look at, and how many of its entries to compute again."""

    tile: Tile
    entries: int


def _verified(
    store: GramStore, tiles: list[Tile], recompute: int, client: Client | None, seed: int
) -> Verification:
    if recompute < 0:
        raise ValueError(f"recompute is a number of entries, at least 0, got {recompute}")
    sides, broken = _read_sequences(store)
    # Without its sequences there is nothing to compute an entry from.
    entries = {} if broken else spread(tiles, recompute, seed)
    checks = [_Check(tile, entries.get(tile, 0)) for tile in tiles]
    if client is None or in_memory(store.location):
        findings = _by_threads(sides, checks, seed)
    else:
        findings = _by_client(store, checks, seed, client)
    problems = [_named(problem, store) for problem in _problems(findings, store.records())]
    unsound = {problem.tile for problem in problems}
    if any(problem.kind == "missing" for problem in problems):
        type(store).open(store.location)  # which says so if the whole store has gone
    return Verification(
        store=show(store.location),
        tiles=len(tiles),
        sound=len(tiles) - len(problems),
        problems=(*broken, *problems),
        foreign=tuple(store.foreign_keys()),
        entries=sum(finding.entries for finding in findings),
        largest_error=max((f.error for f in findings if f.tile not in unsound), default=0.0),
        kernels=_n_kernels(store),
    )


def _n_kernels(store: GramStore) -> int | None:
    return len(store.manifest.kernels) if isinstance(store, SweepStore) else None


def _by_threads(sides: Sides, checks: list[_Check], seed: int) -> list[_Finding]:
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        return list(pool.map(lambda check: _finding(sides, check, seed), checks))
    finally:
        pool.shutdown(cancel_futures=True)


def _by_client(store: GramStore, checks: list[_Check], seed: int, client: Client) -> list[_Finding]:
    n = max(1, sum(client.nthreads().values())) * _BATCHES_PER_THREAD
    batches = [checks[start::n] for start in range(min(n, len(checks)))]
    futures = client.map(
        _batch, batches, location=store.location, seed=seed, pure=False, key="rntk-verify"
    )
    try:
        found = {finding.tile: finding for batch in client.gather(futures) for finding in batch}
        return [found[check.tile] for check in checks]
    finally:
        client.cancel(futures)


def _batch(checks: Sequence[_Check], location: Location, seed: int) -> list[_Finding]:
    """The task of `_by_client`."""
    sides = Sides(open_any(location))
    return [_finding(sides, check, seed) for check in checks]


def _finding(sides: Sides, check: _Check, seed: int) -> _Finding:
    (tile, n), store = check, sides.store
    try:
        block = store.read_tile(tile)
        checksum = store.checksum(tile)
    except MissingTileError:
        return _Finding(tile, Problem(tile, "missing", "it is not stored"), None)
    except CorruptTileError:
        return _Finding(tile, _corrupt(store, tile), None)
    except OSError as error:
        return _Finding(tile, Problem(tile, "damaged", f"it cannot be read: {error}"), None)
    n_bad = block.size - np.count_nonzero(np.isfinite(block))
    if n_bad:
        detail = f"{n_bad} of its {block.size} values are not finite"
        return _Finding(tile, Problem(tile, "not finite", detail), checksum)
    if not n:
        return _Finding(tile, None, checksum)
    found = compare(sides, tile, block, n, seed)
    problem = Problem(tile, "wrong", found.wrong) if found.wrong else None
    return _Finding(tile, problem, checksum, found.entries, found.error)


def _corrupt(store: GramStore, tile: Tile) -> Problem:
    """Why a chunk does not decode."""
    rows, cols = store.plan.chunk_shape
    size, whole = store.chunk_bytes(tile), rows * cols * store.plan.itemsize + 4
    if size < whole:
        return Problem(tile, "truncated", f"its chunk has {size} of {whole} bytes")
    longer = f", and has {size} bytes in place of {whole}" if size > whole else ""
    return Problem(tile, "damaged", f"its chunk does not match its checksum{longer}")


def _problems(findings: Iterable[_Finding], records: dict[Tile, Record]) -> list[Problem]:
    """The verdicts, once each checksum is compared with the tile's record and the others'."""
    holders: dict[str, Tile] = {}
    for tile, record in sorted(records.items()):
        holders.setdefault(record.crc32c, tile)
    verdicts = (_verdict(finding, records.get(finding.tile), holders) for finding in findings)
    return [verdict for verdict in verdicts if verdict is not None]


def _named(problem: Problem, store: GramStore) -> Problem:
    """With the options of its kernel, where that is one of many."""
    if problem.kernel is None or not isinstance(store, SweepStore):
        return problem
    return problem._replace(options=store.manifest.chosen(problem.kernel))


def _verdict(finding: _Finding, record: Record | None, holders: dict[str, Tile]) -> Problem | None:
    tile, checksum = finding.tile, finding.checksum
    if record is None or checksum is None or checksum == record.crc32c:
        return finding.problem
    holder = holders.get(checksum)
    if holder is not None:
        return Problem(tile, "misplaced", f"it holds tile {holder}")
    detail = f"its chunk is whole, but not the one recorded: {checksum}, not {record.crc32c}"
    return finding.problem or Problem(tile, "altered", detail)


# -- the sequences ---------------------------------------------------------------------------------


def _read_sequences(store: GramStore) -> tuple[Sides, list[Problem]]:
    """The stored sequences, read whole, and what is wrong with them."""
    manifest, problems = store.manifest, []
    sides = Sides(store)
    try:
        sides = Sides(store, store.sequences(), store.sequences_y())
    except (ValueError, KeyError, OSError) as error:
        problems.append(Problem(None, "sequences", f"they cannot be read: {error}"))
        return sides, problems
    for name, read, expected in (
        ("sequences", sides.X, manifest.fingerprint),
        ("sequences_y", sides.Y, manifest.fingerprint_y),
    ):
        if read is not None and read.fingerprint != expected:
            detail = f"{name}: they are not the ones that the manifest names"
            problems.append(Problem(None, "sequences", detail))
    return sides, problems


# -- repair ----------------------------------------------------------------------------------------


def _refuse_unrepairable(where: str | Store, found: Verification) -> None:
    if in_memory(where):
        raise ValueError(f"{show(where)} is in this process's memory, unseen by workers")
    if isinstance(where, Store) and where.read_only:
        raise PermissionError(f"{show(where)} is read-only: it can be verified, but not repaired")
    for problem in found.problems:
        if problem.tile is None:
            raise StoreFormatError(
                f"{show(where)}: nothing can be computed from its sequences: {problem.detail}; "
                "put them back from a copy of the store, or compute into another store"
            )


@contextmanager
def _writing_to(store: GramStore) -> Iterator[None]:
    """Say in one sentence that the store cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise PermissionError(
            f"{show(store.location)} cannot be written to: it can be verified, but not repaired "
            f"({error})"
        ) from error


def _workers(client: Client | None, n_tiles: int) -> AbstractContextManager[Client]:
    return local_client(n_tiles) if client is None else nullcontext(client)


def _backend(store: GramStore) -> Backend:
    """The backend that the store was computed with, so that the same bytes come back."""
    given = store.manifest.provenance.get("backend")
    return cast(Backend, given) if given in BACKENDS else "auto"


def _merged(before: Verification, after: Verification) -> Verification:
    """Of all tiles: `before` for those that were sound, `after` for the repaired ones."""
    return Verification(
        store=after.store,
        tiles=before.tiles,
        sound=before.sound + after.sound,
        problems=after.problems,
        foreign=after.foreign,
        entries=before.entries + after.entries,
        largest_error=max(before.largest_error, after.largest_error),
        kernels=before.kernels,
    )
