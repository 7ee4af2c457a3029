"""Best-of-k times of calls that take turns on one core, and the machine they were taken on."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import threadpool_limits

type Call = Callable[[], object]
type Clock = Callable[[], float]

PACKAGES = ("rntk_dist", "numpy", "numba", "distributed", "zarr", "jax", "aeon", "tslearn")


def seconds(call: Call, clock: Clock = time.perf_counter) -> float:
    """What one call takes."""
    started = clock()
    call()
    return clock() - started


def best_in_turns(
    calls: Mapping[str, Call],
    *,
    repeats: int = 5,
    budget: float = float("inf"),
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """The shortest time of each call, in seconds.

    The calls take turns, so that a busy spell of the machine strikes all of them. A call is made
    twice at least, and then `repeats` times or until it has taken `budget` seconds in all. Nothing
    is warmed up: what compiles must have been called before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn < 2 or sum(times[name]) < budget:
                times[name].append(seconds(call, clock))
    return {name: min(taken) for name, taken in times.items()}


@contextmanager
def one_core() -> Iterator[None]:
    """Everything inside, in this thread and those it starts, runs on the idlest core."""
    with threadpool_limits(1):
        if not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {_idlest(before)})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def _idlest(cores: set[int]) -> int:
    load = psutil.cpu_percent(interval=0.3, percpu=True)
    return min(cores, key=lambda core: load[core] if core < len(load) else 100.0)


def peak_memory() -> float:
    """The most memory that this process has had, in bytes, where Linux tells; else NaN."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else float("nan")


# -- the machine -----------------------------------------------------------------------------------


def facts() -> dict[str, str]:
    """Machine, versions and date, as they belong under a table."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": date.today().isoformat(),
        "machine": f"{_processor()} ({get_host_cpu_name()}), {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, {platform.system()} {platform.machine()}",
        "load before the run": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "Python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := installed(name))},
    }


def installed(package: str) -> str:
    """Its version, or "" where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
