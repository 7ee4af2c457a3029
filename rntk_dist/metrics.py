"""What a worker process has done, counted for Prometheus.

A Dask worker answers at ``/metrics`` of its HTTP server where prometheus-client is installed (the
extra metrics); these counters appear there beside Dask's own. Without it nothing is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter


_FIRST = Lock()
"""Two threads of a worker may both be the first, and `cache` would let both register."""


@dataclass(frozen=True)
class _Counters:
    """Of this process, since it started; each by backend."""

    tiles: Counter
    pair_steps: Counter
    seconds: Counter
    nbytes: Counter
    retries: Counter
    failures: Counter


def count_tile(backend: str, pair_steps: int, seconds: float, nbytes: int, attempt: int) -> None:
    """Count a stored tile: its wall time, the bytes of its values, a retry if it is one."""
    counters = _counters()
    if counters is None:
        return
    counters.tiles.labels(backend).inc()
    counters.pair_steps.labels(backend).inc(pair_steps)
    counters.seconds.labels(backend).inc(seconds)
    counters.nbytes.labels(backend).inc(nbytes)
    counters.retries.labels(backend).inc(int(attempt > 1))


def count_failure(backend: str) -> None:
    """Count a try at a tile that failed."""
    counters = _counters()
    if counters is not None:
        counters.failures.labels(backend).inc()


def _counters() -> _Counters | None:
    """Those of this process; None without prometheus-client."""
    with _FIRST:
        return _registered()


@cache
def _registered() -> _Counters | None:
    """Once a process, at the first tile: a second time would be an error."""
    try:
        from prometheus_client import Counter
    except ImportError:
        return None

    def counter(name: str, what: str) -> Counter:
        return Counter(f"rntk_{name}", what, ["backend"])

    return _Counters(
        tiles=counter("tiles", "Tiles computed and stored"),
        pair_steps=counter("pair_steps", "Recurrent steps of pairs of sequences, of stored tiles"),
        seconds=counter("tile_seconds", "Wall time of stored tiles, from opening to writing"),
        nbytes=counter("bytes_written", "Bytes of the values of stored tiles"),
        retries=counter("tile_retries", "Stored tiles that had been tried before"),
        failures=counter("tile_failures", "Tries at a tile that failed"),
    )
