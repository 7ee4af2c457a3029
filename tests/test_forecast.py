"""What a run would take: the figures of the plan, and a calibration by a clock of the test's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clusters import client_of

from rntk_dist.cluster import local_workers
from rntk_dist.creation import Wanted, ensure_store, samples_of
from rntk_dist.forecast import Calibration, Forecast, forecast
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Plan, Tile, Work, Workers, total_pair_steps, worker_bytes
from rntk_dist.sequences import Sequences
from rntk_dist.store import IdentityError
from rntk_dist.tile_task import compute_tile

KERNEL = RNTK(depth=2, sigma_w=1.3)
WORK = Work.of(KERNEL.to_dict())


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(5)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(3, 9, size=50)])


def wanted(X: Sequences, where: Path, Y: Sequences | None = None, tile: int | None = 20) -> Wanted:
    return Wanted(str(where), KERNEL, X, Y, tile=tile, backend="numpy")


class Ticks:
    """A clock that moves on by `step` seconds at every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_the_speed_is_that_of_the_last_block(X: Sequences, tmp_path: Path) -> None:
    """By this clock each block takes 0.1 s: three of edge 4 and two of edge 8 take all the time."""
    calibration = Calibration.of(wanted(X, tmp_path / "g"), seconds=1.15)
    speed = calibration.speed("numpy", Ticks(0.1))
    rows, cols = calibration.rows[:8], calibration.cols[:8]
    assert speed == pytest.approx(total_pair_steps(WORK, samples_of(rows, cols)) / 0.1)


def test_a_fast_machine_computes_the_whole_sample(X: Sequences, tmp_path: Path) -> None:
    calibration = Calibration.of(wanted(X, tmp_path / "g"), seconds=1.0)
    speed = calibration.speed("numpy", Ticks(0.001))
    samples = samples_of(calibration.rows, calibration.cols)
    assert len(calibration.rows) == len(calibration.cols) == 50
    assert speed == pytest.approx(total_pair_steps(WORK, samples) / 0.001)


def test_one_block_is_enough_where_it_takes_all_the_time(X: Sequences, tmp_path: Path) -> None:
    calibration = Calibration.of(wanted(X, tmp_path / "g"), seconds=1.0)
    speed = calibration.speed("numpy", Ticks(5.0))
    rows, cols = calibration.rows[:4], calibration.cols[:4]
    assert speed == pytest.approx(total_pair_steps(WORK, samples_of(rows, cols)) / 5.0)


def test_of_several_runs_the_shortest_counts(
    X: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, took = Ticks(0.0), iter([0.0, 9.0, 2.0, 4.0])  # the first is not counted

    def compute(self: Calibration, edge: int, backend: str) -> None:
        clock.now += next(took)

    monkeypatch.setattr(Calibration, "_compute", compute)
    calibration = Calibration.of(wanted(X, tmp_path / "g"), seconds=20.0)
    steps = total_pair_steps(WORK, samples_of(calibration.rows[:4], calibration.cols[:4]))
    assert calibration.speed("numpy", clock) == pytest.approx(steps / 2.0)


def test_a_sample_of_long_sequences_is_small() -> None:
    long = Sequences.from_arrays(np.zeros((30, 50_000, 2)))  # 24 MB, and 0.8 MB each
    few = Calibration.of(Wanted("g", KERNEL, long), seconds=1.0)
    assert len(few.rows) == 30
    longer = Sequences.from_arrays(np.zeros((10, 500_000, 2)))  # 8 MB each
    assert len(Calibration.of(Wanted("g", KERNEL, longer)).rows) == 4


def test_time_is_work_by_speed_and_never_less_than_the_largest_tile() -> None:
    plan, workers = Plan(100, 100, 50, symmetric=True), Workers(4, 2**30)
    even = Forecast(plan, 3, 8000, 100, 0, workers, speed=40.0)
    assert even.seconds == 200.0
    assert even.core_hours == pytest.approx(200.0 * 4 / 3600)
    uneven = Forecast(plan, 3, 8000, 4000, 0, workers, speed=40.0)
    assert uneven.seconds == 400.0  # 4000 pair-steps at 10 a second
    assert uneven.core_hours == even.core_hours
    assert Forecast(plan, 0, 0, 0, 0, workers, speed=40.0).seconds == 0.0


def test_a_forecast_writes_nothing(X: Sequences, tmp_path: Path) -> None:
    found = forecast(wanted(X, tmp_path / "g"), seconds=0.01)
    assert list(tmp_path.iterdir()) == []
    samples = samples_of(X, None)
    assert found.plan == samples.plan(20)
    assert (found.missing, found.pair_steps) == (6, total_pair_steps(WORK, samples))
    assert found.worker_bytes == worker_bytes(found.plan, WORK, samples)
    assert found.workers == local_workers()
    facts = found.to_dict()
    assert facts["tiles"] == {"missing": 6, "total": 6}
    assert facts["bytes_stored"] == 6 * (20 * 20 * 8 + 4)
    assert facts["core_hours"] * 3600 >= facts["seconds"] * 0.999


def test_a_rectangular_matrix(X: Sequences, tmp_path: Path) -> None:
    found = forecast(wanted(X, tmp_path / "g", X[:7]), workers=1, seconds=0.01)
    assert found.plan.shape == (50, 7)
    assert found.pair_steps == total_pair_steps(WORK, samples_of(X, X[:7]))
    assert found.workers.count == 1


def test_where_the_store_exists_only_what_is_left_counts(X: Sequences, tmp_path: Path) -> None:
    where = tmp_path / "g"
    store = ensure_store(KERNEL, X, None, store=where, tile=20)
    before = forecast(wanted(X, where, tile=None), seconds=0.01)
    done = compute_tile(store.location, Tile(0, 1), "numpy")
    after = forecast(wanted(X, where, tile=None), seconds=0.01)
    assert (before.missing, after.missing) == (6, 5)
    assert after.pair_steps == before.pair_steps - done.pair_steps
    with pytest.raises(IdentityError, match=r"plan\.tile: stored 20, given 30"):
        forecast(wanted(X, where, tile=30))


def test_a_cluster_is_measured_on_its_workers(X: Sequences, tmp_path: Path) -> None:
    with client_of(2, threads_per_worker=3, processes=False, protocol="tcp") as client:
        found = forecast(wanted(X, tmp_path / "g"), client, seconds=0.01)
    assert (found.workers.count, found.workers.threads) == (6, 3)
    assert found.worker_bytes == worker_bytes(found.plan, WORK, samples_of(X, None), threads=3)
    assert found.speed > 0
