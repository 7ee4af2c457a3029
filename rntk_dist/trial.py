"""What a cluster needs for a start, a tile, a pair-step and a byte: measured in short, real runs.

Three matrices of some of the sequences are computed by `rd.gram` itself, beside the store that is
planned, on the workers that are planned: one of few pairs, one of many, and one of as many in small
tiles. What they took gives three unknowns. A product with the second says how fast tiles are read.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, isqrt
from pathlib import Path

import numpy as np
from distributed import Client
from scipy.linalg import lapack
from scipy.optimize import nnls
from zarr.abc.store import Store

from rntk_dist.cluster import available_workers, find_workers, form_crews
from rntk_dist.creation import Wanted, samples_of
from rntk_dist.folder_store import existing, folder_of, free_bytes
from rntk_dist.forecast import Calibration, measured_speed
from rntk_dist.gram import Gram, gram
from rntk_dist.plan import TILE_STEP, Work, Workers, total_pair_steps
from rntk_dist.routes import Rates
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore

SECONDS = 10.0
"""Of each of the two larger runs, about."""

COLUMNS = 10
_ORDER = 1500
_LEAST_BLOCKS = 6
"""A side: 21 tiles, so that two workers end at about the same time."""


@dataclass(frozen=True)
class Run:
    """A matrix that was computed: its tiles, its pair-steps, and the seconds by the clock."""

    tiles: int
    pair_steps: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """The sizes of the runs: `n` sequences in `blocks` a side, in the last run in `finer` times."""

    n: int
    blocks: int
    finer: int = 3

    @classmethod
    def of(cls, pair_steps: float, speed: float, workers: Workers, seconds: float) -> Trial:
        """So that a larger run takes so many seconds of all workers at `speed` pair-steps a second.

        A pair takes `pair_steps`. Each worker gets eight tiles, or more.
        """
        blocks = max(_LEAST_BLOCKS, ceil((16 * workers.count) ** 0.5))
        pairs = seconds * speed / pair_steps
        return cls(max(isqrt(int(2 * pairs)), TILE_STEP * blocks), blocks)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Sequences and tile edge of the short run, of the long one and of that in small tiles."""
        yield self.n // 4, self.n // 8
        yield self.n, ceil(self.n / self.blocks)
        yield self.n, ceil(self.n / (self.blocks * self.finer))


def measured_rates(
    wanted: Wanted, client: Client | None = None, *, seconds: float = SECONDS
) -> Rates:
    """How fast the client's cluster, or without one this machine, fills and reads such a matrix.

    Takes three times `seconds`, about. What it stores beside the place of the matrix is removed.

    Raises what `rd.gram` raises.
    """
    workers = available_workers(client, backend=wanted.backend)
    speed = measured_speed(Calibration.of(wanted), wanted.backend, workers, client)
    trial = Trial.of(pair_steps_of(wanted.X, wanted.work), speed, workers, seconds)
    with scratch(wanted.where) as place:
        _computed(wanted, *next(trial.sizes()), place, client)  # not counted: it may compile
    runs, reading = [], 0.0
    for number, (n, tile) in enumerate(trial.sizes()):
        with scratch(wanted.where) as place:
            found, run = _computed(wanted, n, tile, place, client)
            runs.append(run)
            if number == 1:
                reading = reading_speed(found)
    start, of_a_tile, of_a_pair_step = solved(runs)
    crews = [] if client is None else form_crews(find_workers(client), wanted.backend)
    return Rates(
        start=start,
        tile=of_a_tile,
        pair_steps=1 / of_a_pair_step,
        reading=reading,
        flops=flops(),
        workers=workers,
        on_gpu=any(crew.on_gpu for crew in crews),
    )


def pair_steps_of(X: Sequences, work: Work) -> float:
    """Of a pair of the sequences, on average."""
    n = len(X)
    return total_pair_steps(work, samples_of(X, None)) / (n * (n + 1) / 2)


def drawn(X: Sequences, n: int) -> Sequences:
    """So many of the sequences, at random, always the same; more than there are repeat some."""
    rng = np.random.default_rng(0)
    return X[rng.choice(len(X), size=n, replace=n > len(X))]


def _computed(
    wanted: Wanted, n: int, tile: int, place: str, client: Client | None
) -> tuple[Gram, Run]:
    X = drawn(wanted.X, n)
    started = time.perf_counter()
    found = gram(
        wanted.kernel,
        X,
        store=place,
        kind=wanted.kind,
        client=client,
        tile=tile,
        dtype=wanted.dtype,
        backend=wanted.backend,
        progress=False,
    )
    seconds = time.perf_counter() - started
    work = total_pair_steps(wanted.work, samples_of(X, None))
    return found, Run(found.plan.n_tiles, work, seconds)


def solved(runs: list[Run]) -> tuple[float, float, float]:
    """Seconds for the start, for a tile and for a pair-step, none of them negative."""
    columns = np.array([[1.0, run.tiles, run.pair_steps] for run in runs])
    sizes = columns.max(axis=0)
    found, _ = nnls(columns / sizes, np.array([run.seconds for run in runs]))
    start, tile, pair_step = (found / sizes).tolist()
    # Where the runs tell nothing of it, a pair-step took no longer than the longest of them says.
    return start, tile, pair_step or min(run.seconds / run.pair_steps for run in runs)


def reading_speed(found: Gram) -> float:
    """Bytes of stored tiles a second in a product with some columns, here; the better of two."""
    V = np.ones((found.shape[1], COLUMNS))
    times = []
    for _ in range(2):
        started = time.perf_counter()
        found @ V
        times.append(time.perf_counter() - started)
    return found.plan.bytes_stored / min(times)


def flops() -> float:
    """Operations a second of Cholesky's factorisation in this process."""
    square = np.eye(_ORDER) + 1 / _ORDER
    started = time.perf_counter()
    lapack.dpotrf(square, overwrite_a=1)
    return float(_ORDER**3 / 3 / (time.perf_counter() - started))


def room(where: str | Store) -> int | None:
    """Bytes that are free where a store is to be; None where that cannot be told."""
    folder = folder_of(where) if isinstance(where, str) else None
    return None if folder is None else free_bytes(folder)


@contextmanager
def scratch(where: str | Store) -> Iterator[str]:
    """A place for a store beside another one's, which is removed with all that it then holds."""
    folder = folder_of(where) if isinstance(where, str) else None
    if isinstance(where, str) and folder is None:
        url = f"{where.rstrip('/')}-trial-{uuid.uuid4().hex}"
        try:
            yield url
        finally:
            GramStore.remove(url)
        return
    with tempfile.TemporaryDirectory(
        prefix="rntk-trial-", dir=None if folder is None else existing(folder.parent)
    ) as place:
        yield str(Path(place) / "gram")
