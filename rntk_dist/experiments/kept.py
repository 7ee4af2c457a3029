"""Results of the UCR experiment, and the files that keep them: one a data set and method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rntk_dist.manifest import IdentityError

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


def kept_or(
    path: Path, identity: dict[str, str], compute: Callable[[], list[Result]]
) -> list[Result]:
    """Results that the file keeps, or computed ones with their times, which it keeps from then on.

    Raises IdentityError where the file keeps results of another identity.
    """
    if path.exists():
        return _read(path, identity)
    wall, cores = time.perf_counter(), time.process_time()
    results = compute()
    seconds, core_seconds = time.perf_counter() - wall, time.process_time() - cores
    results = [
        replace(result, seconds=round(seconds, 3), core_seconds=round(core_seconds, 3))
        for result in results
    ]
    _write(path, identity, results)
    return results


def _read(path: Path, identity: dict[str, str]) -> list[Result]:
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in identity.items() if kept["identity"].get(key) != value]
    if differing:
        raise IdentityError(
            f"{path}: keeps results of other {' and '.join(differing)}: "
            "give another folder, or remove this one"
        )
    return [Result(**row) for row in kept["results"]]


def _write(path: Path, identity: dict[str, str], results: list[Result]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    content = {"identity": identity, "results": [asdict(result) for result in results]}
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(path)
