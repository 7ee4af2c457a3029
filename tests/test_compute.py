"""Filling a store with Dask: a real cluster of two processes, and the faults it must survive."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from clusters import client_of, cluster_of
from distributed import Client

from rntk_dist import compute
from rntk_dist.cluster import (
    TASKS_PER_SLOT,
    NoWorkersError,
    available_workers,
    find_workers,
    local_client,
    local_workers,
)
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.failures import StoreUnavailableError, TileError
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import MIB, Tile, TileMemoryError, Work, tile_costs
from rntk_dist.progress import Progress, progress_report
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, IdentityError, chunk_key
from rntk_dist.tile_task import compute_tile

KERNEL = RNTK(sigma_w=1.3, sigma_b=0.1)
TILE = 5  # 33 sequences: 7 x 7 tiles, the last row and column ragged


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(2) as client:
        yield client


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(7)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 20, size=33)])


@pytest.fixture
def store(tmp_path: Path, X: Sequences) -> GramStore:
    return ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)


def assembled(store: GramStore) -> np.ndarray:
    """The whole matrix, mirrored here by other means than the Gram view."""
    whole = np.full(store.plan.shape, np.nan)
    for tile in store.plan.tiles():
        rows, cols = slice(*store.plan.rows(tile)), slice(*store.plan.cols(tile))
        whole[rows, cols] = store.read_tile(tile)
        if store.plan.symmetric:
            whole[cols, rows] = store.read_tile(tile).T
    return whole


# -- one tile -------------------------------------------------------------------------------------


def test_a_task_stores_its_tile_and_reports_it(store: GramStore, X: Sequences) -> None:
    tile = Tile(1, 6)
    record = compute_tile(store.location, tile)
    assert np.array_equal(store.read_tile(tile), KERNEL(X[5:10], X[30:33]))
    costs = tile_costs(store.plan, Work.of(KERNEL.to_dict()), store.samples(), [tile])
    assert (record.tile, record.pair_steps, record.nbytes) == (tile, costs[tile], 5 * 3 * 8)
    assert (record.pid, record.backend) == (os.getpid(), "auto")
    assert record.seconds > 0


def test_a_diagonal_task_compares_a_slab_with_itself(store: GramStore, X: Sequences) -> None:
    record = compute_tile(store.location, Tile(2, 2))
    assert np.array_equal(store.read_tile(Tile(2, 2)), KERNEL(X[10:15]))
    costs = tile_costs(store.plan, Work.of(KERNEL.to_dict()), store.samples(), [Tile(2, 2)])
    assert record.pair_steps == costs[Tile(2, 2)]


# -- the store of a run ---------------------------------------------------------------------------


def test_a_store_is_made_once_and_recognised_afterwards(store: GramStore, X: Sequences) -> None:
    again = ensure_store(KERNEL, X, None, store=str(store.location))
    assert again.plan.tile == TILE
    with pytest.raises(IdentityError, match=r"kernel\.sigma_w: stored 1\.3, given 1\.4"):
        ensure_store(RNTK(sigma_w=1.4, sigma_b=0.1), X, None, store=str(store.location))
    with pytest.raises(IdentityError, match=r"plan\.tile: stored 5, given 6"):
        ensure_store(KERNEL, X, None, store=str(store.location), tile=6)


def test_a_tile_larger_than_the_matrix_is_the_matrix(tmp_path: Path, X: Sequences) -> None:
    store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=8192)
    assert store.plan.tile == len(X)
    assert ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=4096).plan.tile == len(X)


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path, X: Sequences) -> None:
    def refused(message: str, *args: Any, error: type[Exception] = ValueError, **kw: Any) -> None:
        with pytest.raises(error, match=message):
            ensure_store(*args, store=tmp_path / "gram", **kw)
        assert not (tmp_path / "gram").exists()

    refused("dtype", KERNEL, X, None, dtype="float16")
    refused("kind", KERNEL, X, None, kind="ntkk")
    refused("backend", KERNEL, X, None, backend="abacus")
    refused("tile must be at least 1", KERNEL, X, None, tile=0)
    refused("features", KERNEL, X, Sequences.from_arrays(np.ones((2, 3))))


def test_a_store_in_memory_is_refused(X: Sequences) -> None:
    with pytest.raises(ValueError, match="give a path or a URL"):
        ensure_store(KERNEL, X, None, store="memory://gram")


def test_a_tile_beyond_the_workers_memory_is_refused(tmp_path: Path) -> None:
    X = Sequences.from_arrays(np.ones((4000, 1)))
    with (
        cluster_of(1, memory_limit=400 * MIB) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert available_workers(client).memory == 400 * MIB
        with pytest.raises(TileMemoryError, match=r"tile 4000 needs .* limited to 400 MiB: use "):
            ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=4000, client=client)
        assert not (tmp_path / "gram").exists()
        store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=4000)
        with pytest.raises(TileMemoryError) as refused:
            fill(store, client)
        assert "another tile needs another store" in refused.value.__notes__[0]


# -- running --------------------------------------------------------------------------------------


def test_the_tiles_make_up_the_kernel_exactly(
    client: Client, store: GramStore, X: Sequences
) -> None:
    records = fill(store, client)
    assert len(records) == store.plan.n_tiles == 28
    assert {record.tile for record in records} == set(store.plan.tiles())
    assert len({record.pid for record in records}) == 2
    assert os.getpid() not in {record.pid for record in records}
    assert np.array_equal(assembled(store), KERNEL(X))


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_a_rectangular_matrix_likewise(
    client: Client, tmp_path: Path, X: Sequences, kind: Any
) -> None:
    Y = X[4:16]
    store = ensure_store(KERNEL, X, Y, store=tmp_path / "gram", tile=TILE, kind=kind)
    assert len(fill(store, client)) == 7 * 3
    assert np.array_equal(assembled(store), KERNEL(X, Y, kind=kind))


@pytest.mark.parametrize("tile", [1, 8, 16, 33])
def test_the_tile_does_not_change_the_matrix(
    client: Client, tmp_path: Path, X: Sequences, tile: int
) -> None:
    few = X[:12] if tile == 1 else X
    store = ensure_store(KERNEL, few, None, store=tmp_path / "gram", tile=tile)
    fill(store, client)
    assert np.array_equal(assembled(store), KERNEL(few))


def test_float32_is_computed_in_float32(client: Client, tmp_path: Path, X: Sequences) -> None:
    store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=16, dtype="float32")
    fill(store, client)
    assert store.read_tile(Tile(0, 1)).dtype == np.float32
    assert np.array_equal(assembled(store), KERNEL(X, dtype="float32"))


def test_only_what_is_missing_is_computed(client: Client, store: GramStore, X: Sequences) -> None:
    fill(store, client)
    assert fill(store, client) == []
    removed = [Tile(0, 3), Tile(2, 2), Tile(5, 6)]
    for tile in removed:
        (Path(str(store.location)) / chunk_key(tile)).unlink()
    assert sorted(record.tile for record in fill(store, client)) == removed
    assert np.array_equal(assembled(store), KERNEL(X))


def test_the_window_is_bounded(
    client: Client, store: GramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures: list[Any] = []
    in_flight: list[int] = []
    submit = client.submit

    def counted(*args: Any, **kwargs: Any) -> Any:
        futures.append(submit(*args, **kwargs))
        in_flight.append(sum(future.status == "pending" for future in futures))
        return futures[-1]

    monkeypatch.setattr(client, "submit", counted)
    fill(store, client)
    assert len(in_flight) == 28
    assert 2 <= max(in_flight) <= 2 * TASKS_PER_SLOT


def test_progress_counts_up_to_the_end(client: Client, store: GramStore) -> None:
    compute_tile(store.location, Tile(0, 0))
    seen: list[Progress] = []
    fill(store, client, on_progress=seen.append)
    assert [now.tiles for now in seen] == list(range(2, 29))
    assert seen[-1].pair_steps == seen[-1].pair_steps_total
    assert {now.tiles_total for now in seen} == {28}
    assert seen[-1].in_flight == seen[-1].failed == 0


def test_keys_name_the_tile(
    client: Client, store: GramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    submit = client.submit

    def noted(*args: Any, **kwargs: Any) -> Any:
        keys.append(kwargs["key"])
        return submit(*args, **kwargs)

    monkeypatch.setattr(client, "submit", noted)
    fill(store, client)
    jobs, rows, cols = zip(
        *(key.removeprefix("rntk-tile-").split("-") for key in keys), strict=True
    )
    assert len(set(jobs)) == 1
    assert [Tile(int(r), int(c)) for r, c in zip(rows, cols, strict=True)] == list(
        store.plan.tiles()
    )


# -- faults ---------------------------------------------------------------------------------------


def overflowing(tmp_path: Path) -> GramStore:
    """Sequence 12, in block 2 of 4, is so long that it overflows float32 with everything."""
    rng = np.random.default_rng(1)
    X = Sequences.from_arrays([rng.normal(size=700 if i == 12 else 3) for i in range(20)])
    kernel = RNTK(sigma_w=2.0, readout="last")
    return ensure_store(kernel, X, None, store=tmp_path / "gram", tile=TILE, dtype="float32")


def test_a_failing_tile_does_not_stop_the_others(client: Client, tmp_path: Path) -> None:
    store = overflowing(tmp_path)
    with pytest.raises(TileError) as failure:
        fill(store, client, retries=1)
    failed = {tile for tile in store.plan.tiles() if 2 in (tile.row, tile.col)}
    assert set(failure.value.failed) <= failed
    assert Tile(2, 2) in failure.value.failed
    kept = 10 - len(failure.value.failed)
    assert len(store.stored_tiles()) == kept
    message = str(failure.value)
    assert message.startswith(f"{10 - kept} of 10 tiles failed, (")
    assert "the first with OverflowError: in tile (" in message
    assert "whose rows start at sequence" in message
    assert message.endswith(
        f"; {kept} of 10 tiles are kept in {store.location}, and the same call resumes"
    )
    assert all(isinstance(cause, OverflowError) for cause in failure.value.failed.values())


def test_a_killed_worker_costs_only_its_tasks(
    client: Client, store: GramStore, X: Sequences
) -> None:
    killed: list[int] = []

    def kill_one(now: Progress) -> None:
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    records = fill(store, client, on_progress=kill_one)
    assert killed
    assert sorted(record.tile for record in records) == list(store.plan.tiles())
    assert np.array_equal(assembled(store), KERNEL(X))
    client.wait_for_workers(2, timeout=60)


def test_an_interrupt_keeps_what_is_stored(client: Client, store: GramStore) -> None:
    def interrupt(now: Progress) -> None:
        if now.tiles == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 3 of 28 tiles are kept in .* res"):
        fill(store, client, on_progress=interrupt)
    kept = len(store.stored_tiles())
    assert 3 <= kept <= 3 + 2 * TASKS_PER_SLOT
    rest = fill(store, client)
    assert len(rest) <= 28 - 3
    assert not store.missing_tiles()


def test_the_clients_own_question_does_not_hide_the_workers(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the scheduler by itself, for no worker, and keeps both answers in one place."""
    real, answers = client.scheduler_info, iter([0, 0])
    monkeypatch.setattr(client, "scheduler_info", lambda n_workers: real(next(answers, n_workers)))
    assert find_workers(client).keys() == client.nthreads().keys()
    assert next(answers, None) is None


def test_no_workers_is_an_error_after_the_wait(store: GramStore) -> None:
    with cluster_of(0) as cluster, Client(cluster, set_as_default=False) as client:
        address = client.scheduler_info()["address"]
        with pytest.raises(NoWorkersError, match=r"no worker .* for 0\.2 s: start one") as nobody:
            fill(store, client, wait=0.2)
        assert f"`dask worker {address}`" in str(nobody.value)


def test_workers_that_all_leave_are_an_error_too(store: GramStore) -> None:
    with cluster_of(1) as cluster, Client(cluster, set_as_default=False) as client:

        def leave(now: Progress) -> None:
            cluster.scale(0)  # does not wait for it
            while client.nthreads():
                time.sleep(0.02)

        with pytest.raises(NoWorkersError, match=r"tiles are kept in .* and the same call resumes"):
            fill(store, client, on_progress=leave, wait=0.5)
    assert 1 <= len(store.stored_tiles()) < 28


# -- the local cluster, and what is shown ---------------------------------------------------------


def test_the_local_cluster_fits_the_machine() -> None:
    workers = local_workers()
    assert workers.count >= 1
    assert workers.threads == 1
    with local_client(1) as client:
        assert sum(client.nthreads().values()) == 1
        assert available_workers(client).memory == workers.memory
        assert client.scheduler_info()["address"].startswith("tcp://127.0.0.1:")
        looks = "distributed.worker.profile.interval"
        before = dask.config.get(looks)
        assert list(client.run(dask.config.get, looks).values()) == ["100ms"] != [before]


def test_lines_are_printed_where_there_is_no_terminal(
    client: Client, store: GramStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_report() as report:
        fill(store, client, on_progress=report)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rntk_dist: 28/28 tiles, ")
    with progress_report(show=False) as report:
        assert report is None


def test_a_bar_is_drawn_on_a_terminal(
    client: Client,
    store: GramStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_report() as report:
        fill(store, client, on_progress=report)
    assert "28/28 tiles" in capsys.readouterr().err


def test_a_script_without_the_guard_is_told_about_it(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import numpy as np\nimport rntk_dist as rd\n"
        f"rd.gram(rd.RNTK(), np.ones((9, 3)), store={str(tmp_path / 'gram')!r})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(compute.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )
    assert run.returncode != 0
    assert 'if __name__ == "__main__":' in run.stderr


def test_sequences_that_the_kernel_cannot_compare_create_no_store(tmp_path: Path) -> None:
    where = tmp_path / "x.zarr"
    unequal = Sequences.from_arrays([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError, match="needs equal lengths, found 2 and 3"):
        ensure_store(RNTK(readout="diagonal_authors"), unequal, None, store=where)
    one, two = (Sequences.from_arrays(np.ones((2, 3, m))) for m in (1, 2))
    with pytest.raises(ValueError, match="X has 1 features a step and Y has 2"):
        ensure_store(RNTK(), one, two, store=where)
    assert not where.exists()


def test_another_matrix_at_the_stores_place_is_not_written_into(
    client: Client, X: Sequences, tmp_path: Path
) -> None:
    store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=8)
    shutil.rmtree(tmp_path / "gram")
    other = ensure_store(RNTK(sigma_w=0.7), X, None, store=tmp_path / "gram", tile=8)
    with pytest.raises(StoreUnavailableError, match=r"holds another matrix .*choose another store"):
        fill(store, client, backend="numpy")
    assert not other.stored_tiles()
