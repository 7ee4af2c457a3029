"""Results of the UCR experiment: a row for each data set, method and procedure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rntk_dist.experiments.kept import kept_or

NO_PROCEDURE = "none"
"""Of methods that use no kernel: they stand beside both procedures."""


@dataclass(frozen=True)
class Result:
    """One method on one data set by one procedure.

    `kernels` of the grid's `grid` were tried. `validation` and `accuracy` are shares of 1, on the
    training part held out and on the test part. Seconds are those of the method on this data set,
    all procedures together: by the clock, and of all cores. For trained networks `kernel` and
    `kernels` are settings, C is 0, and `accuracy` is the mean of the networks trained in the end.
    """

    data_set: str
    method: str
    procedure: str
    kernels: int
    grid: int
    kernel: str
    C: float
    validation: float
    tied: int
    accuracy: float
    seconds: float
    core_seconds: float


def file_name(method: str) -> str:
    """The name of a method as that of a file, without an ending."""
    return method.replace(", ", "-").replace(" ", "_")


def timed_or_kept(
    path: Path, identity: dict[str, str], compute: Callable[[], list[Result]]
) -> list[Result]:
    """Results that the file keeps, or computed ones with their times, which it keeps from then on.

    Raises IdentityError where the file keeps results of another identity.
    """

    def timed() -> list[dict[str, Any]]:
        wall, cores = time.perf_counter(), time.process_time()
        results = compute()
        seconds = round(time.perf_counter() - wall, 3)
        core_seconds = round(time.process_time() - cores, 3)
        return [
            asdict(replace(result, seconds=seconds, core_seconds=core_seconds))
            for result in results
        ]

    return [Result(**row) for row in kept_or(path, identity, timed)]
