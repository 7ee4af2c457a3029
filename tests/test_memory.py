"""The memory that the plan states against the memory that workers really take."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import client_of

from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import BASE_BYTES, MIB, Work, worker_bytes
from rntk_dist.sequences import Sequences
from rntk_dist.sweep import grid
from rntk_dist.sweep_creation import sweep_work, wanted_sweep
from rntk_dist.sweep_store import SweepStore


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    # Not ru_maxrss: a process inherits that from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status["VmHWM"].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("n", "length", "tile"), [(4000, 100, 1536), (128, 20_000, 64)])
def test_a_worker_stays_below_what_the_plan_states(
    tmp_path: Path, n: int, length: int, tile: int
) -> None:
    X = Sequences.from_arrays(np.random.default_rng(0).normal(size=(n, length)))
    kernel = RNTK()
    store = ensure_store(kernel, X, None, store=tmp_path / "gram", tile=tile)
    stated = worker_bytes(store.plan, Work.of(kernel.to_dict()), store.samples())
    with client_of(2, memory_limit=stated) as client:
        before = max(client.run(peak_bytes).values())
        fill(store, client)
        peaks = client.run(peak_bytes).values()
    print(f"stated {stated // MIB}, idle {before // MIB}, peaks {[p // MIB for p in peaks]} MiB")
    assert before < BASE_BYTES
    assert max(peaks) < stated
    # The statement is of use only if it is not far off.
    assert max(peaks) > stated / 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_sweeps_stays_below_what_the_plan_states(tmp_path: Path) -> None:
    """Kernels side by side, multiples of each other among them; the edge is ragged."""
    X = Sequences.from_arrays(np.random.default_rng(0).normal(size=(2500, 20)))
    kernels = grid(RNTK(depth=2), {"sigma_w": [1.3, 1.4], "sigma_v": [1.0, 1.7, 3.0]})
    where = tmp_path / "sweep"
    wanted = wanted_sweep(kernels, X, None, where=str(where), tile=1536)
    store = SweepStore.create(where, wanted.plan_anew(), X)
    samples = store.samples()
    stated = worker_bytes(store.plan, sweep_work(kernels[0].to_dict()), samples)
    with client_of(2, memory_limit=stated) as client:
        fill(replace(store, groups=((0, 1, 2), (3, 4, 5))), client)
        peaks = client.run(peak_bytes).values()
    print(f"stated {stated // MIB}, peaks {[p // MIB for p in peaks]} MiB")
    assert stated / 4 < max(peaks) < stated
