"""A sweep that is verified, repaired, told about, planned and exported: kernel by kernel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from clusters import client_of
from distributed import Client
from typer.testing import CliRunner, Result

import rntk_dist as rd
from rntk_dist.cli import app
from rntk_dist.cluster import local_workers
from rntk_dist.compute import fill
from rntk_dist.plan import Plan, TileMemoryError, Work, Workers, total_pair_steps, worker_bytes
from rntk_dist.progress import Progress
from rntk_dist.store import CorruptTileError, StoreFormatError, chunk_key, record_key
from rntk_dist.sweep import grid
from rntk_dist.sweep_creation import wanted_sweep
from rntk_dist.sweep_forecast import SweepForecast, forecast_sweep
from rntk_dist.sweep_manifest import SweepTile
from rntk_dist.sweep_store import SweepStore, open_any
from rntk_dist.sweep_view import listed
from rntk_dist.tile_task import compute_batch

TILE = 8  # 20 sequences: 3 x 3 tiles, six of the upper triangle
# The second and the third are multiples of the first and the fourth, by factors that round.
KERNELS = [
    rd.RNTK(sigma_w=1.3),
    rd.RNTK(sigma_w=1.3, sigma_v=1.7),
    rd.RNTK(sigma_w=1.4, sigma_u=3.0, sigma_b=0.3),
    rd.RNTK(sigma_w=1.4, sigma_b=0.1),
    rd.RNTK(sigma_w=1.4, sigma_b=0.1, readout="per_step"),
]
N_CHUNKS = 6 * len(KERNELS)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Workers that are threads of this process: what is tested is not theirs."""
    with client_of(1, threads_per_worker=2, processes=False, protocol="tcp") as client:
        yield client


@pytest.fixture(scope="module")
def X() -> rd.Sequences:
    rng = np.random.default_rng(7)
    sequences = [rng.normal(size=(t, 2)) for t in rng.integers(2, 9, 20)]
    return rd.Sequences.from_arrays(sequences, labels=[*"ab"] * 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, X: rd.Sequences) -> Path:
    path = tmp_path_factory.mktemp("whole") / "sweep"
    wanted = wanted_sweep(KERNELS, X, None, where=str(path), tile=TILE)
    store = SweepStore.create(str(path), wanted.plan_anew(), X)
    for task in store.missing_tiles():
        assert isinstance(task, SweepTile)
        compute_batch(store.location, task, "numba")
    store.finish()
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "sweep"))


def contents(path: Path, pattern: str = "gram/c/*/*/*") -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.glob(pattern))}


def chunk_of(tile: SweepTile) -> str:
    return chunk_key(tile, f"{tile.kernels[0]}/")


def record_of(tile: SweepTile) -> str:
    return record_key(tile, f"{tile.kernels[0]}/")


# -- faults ---------------------------------------------------------------------------------------


def cut(path: Path, *tiles: SweepTile) -> None:
    chunk = path / chunk_of(tiles[0])
    chunk.write_bytes(chunk.read_bytes()[:-100])


def flip(path: Path, *tiles: SweepTile) -> None:
    chunk = path / chunk_of(tiles[0])
    data = bytearray(chunk.read_bytes())
    data[77] ^= 4
    chunk.write_bytes(data)


def delete(path: Path, *tiles: SweepTile) -> None:
    (path / chunk_of(tiles[0])).unlink()


def swap(path: Path, *tiles: SweepTile) -> None:
    first, second = (path / chunk_of(tile) for tile in tiles)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def swap_all(path: Path, *tiles: SweepTile) -> None:
    swap(path, *tiles)
    first, second = (path / record_of(tile) for tile in tiles)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def write(path: Path, tile: SweepTile, change: Callable[[np.ndarray], object]) -> None:
    """Values put in by plain Zarr, with a checksum that is right."""
    config: Any = {"write_empty_chunks": True}
    array = zarr.open_array(path, path="gram", mode="r+", config=config)
    rows, cols = (slice(i * TILE, (i + 1) * TILE) for i in (tile.row, tile.col))
    block = np.array(array[tile.kernels[0], rows, cols])
    change(block)
    array[tile.kernels[0], rows, cols] = block


def all_nan(path: Path, *tiles: SweepTile) -> None:
    write(path, tiles[0], lambda block: block.fill(np.nan))


def scale(factor: float) -> Callable[..., None]:
    def scaled(path: Path, *tiles: SweepTile) -> None:
        write(path, tiles[0], lambda block: np.multiply(block, factor, out=block))

    return scaled


A, EDGE = SweepTile(0, 1, (0,)), SweepTile(1, 2, (4,))
MULTIPLE, DIAGONAL = SweepTile(0, 1, (1,)), SweepTile(2, 2, (2,))


@pytest.mark.parametrize(
    ("fault", "tiles", "kind"),
    [
        pytest.param(cut, (EDGE,), "truncated", id="cut"),
        pytest.param(flip, (A,), "damaged", id="flip"),
        pytest.param(delete, (MULTIPLE,), "missing", id="delete a multiple"),
        pytest.param(delete, (DIAGONAL,), "missing", id="delete another"),
        pytest.param(all_nan, (EDGE,), "not finite", id="nan"),
        pytest.param(scale(1 + 1e-15), (A,), "altered", id="alter"),
        pytest.param(scale(1.001), (DIAGONAL,), "wrong", id="scale"),
        pytest.param(swap, (A, MULTIPLE), "misplaced", id="swap kernels"),
        pytest.param(swap, (A, SweepTile(0, 2, (4,))), "misplaced", id="swap with an edge"),
        pytest.param(swap_all, (A, SweepTile(0, 1, (3,))), "wrong", id="swap with records"),
    ],
)
def test_a_fault_is_named_with_its_kernel_and_repaired(
    whole: Path, path: Path, client: Client, fault: Any, tiles: tuple[SweepTile, ...], kind: str
) -> None:
    fault(path, *tiles)
    found = rd.verify(path)
    assert {problem.tile: problem.kind for problem in found.problems} == dict.fromkeys(tiles, kind)
    assert (found.kernels, found.tiles, found.sound) == (5, N_CHUNKS, N_CHUNKS - len(tiles))
    assert found.unsound_kernels == sorted({tile.kernels[0] for tile in tiles})
    for problem in found.problems:
        assert problem.kernel is not None
        assert problem.options == {
            name: KERNELS[problem.kernel].to_dict()[name]
            for name in ("sigma_w", "sigma_u", "sigma_b", "sigma_v", "readout")
        }
    records = "gram/records/*/*"
    before = contents(path, records)
    after = rd.repair(path, client)
    assert after.ok
    assert (after.kernels, after.tiles, after.sound) == (5, N_CHUNKS, N_CHUNKS)
    assert contents(path) == contents(whole)
    now = contents(path, records)
    again = {name for name in now if now[name] != before.get(name)}
    assert again == {record_of(tile) for tile in tiles}


def test_what_was_computed_is_sound(whole: Path) -> None:
    found = rd.verify(whole)
    assert (found.ok, found.foreign, found.unsound_kernels) == (True, (), [])
    assert found.entries >= 0.75 * 1000
    assert found.largest_error < 1e-12
    json.dumps(found.to_dict())


def test_few_entries_are_of_random_kernels(path: Path) -> None:
    """Without records only the kernel tells that all values of a tile are wrong."""
    for tile in (A, EDGE):
        scale(1.001)(path, tile)
        (path / record_of(tile)).unlink()
    seen = [rd.verify(path, 6, seed=seed) for seed in range(12)]
    assert {kernel for found in seen for kernel in found.unsound_kernels} == {0, 4}
    assert all(found.ok for found in seen) is False
    assert seen == [rd.verify(path, 6, seed=seed) for seed in range(12)]


def test_workers_find_what_threads_find(path: Path, client: Client) -> None:
    swap(path, A, EDGE)
    flip(path, DIAGONAL)
    assert rd.verify(path, client=client) == rd.verify(path)


def test_files_that_are_no_part_of_it_are_named(path: Path) -> None:
    strange = [
        "gram/c/5/0/0",
        "gram/c/01/0/1",
        "gram/c/0/1",
        "gram/c/0/1/0",
        "gram/records/0.0.json",
    ]
    for key in strange:
        (path / key).with_suffix(".x").parent.mkdir(parents=True, exist_ok=True)
        if not (path / key).is_dir():
            (path / key).write_bytes(b"")
    found = rd.verify(path)
    assert found.ok
    assert set(found.foreign) == set(strange) - {"gram/c/0/1"}  # this is a folder


def test_other_sequences_are_told_and_not_repaired(path: Path, client: Client) -> None:
    values = zarr.open_array(path, path="sequences/values", mode="r+")
    values[3] = 7.0
    found = rd.verify(path)
    assert (found.problems[0].kind, found.problems[0].kernel) == ("sequences", None)
    with pytest.raises(StoreFormatError, match="nothing can be computed"):
        rd.repair(path, client)


def test_a_multiple_left_alone_is_computed_with_the_same_bits(
    whole: Path, path: Path, client: Client
) -> None:
    """Of a family the same kernel is computed, whichever are missing."""
    lost = [MULTIPLE, SweepTile(0, 0, (2,)), SweepTile(1, 1, (3,))]
    for tile in lost:
        (path / chunk_of(tile)).unlink()
    seen: list[Progress] = []
    fill(SweepStore.open(path, writable=True), client, backend="numba", on_progress=seen.append)
    assert contents(path) == contents(whole)
    assert seen[-1].pair_steps == seen[-1].pair_steps_total


def test_a_reader_of_damage_is_told_what_repairs_it(path: Path) -> None:
    flip(path, A)
    with pytest.raises(CorruptTileError, match=r"`rntk-dist repair .*` computes its chunk"):
        np.asarray(rd.open_sweep(path)[0])
    assert SweepStore.open(path).read_tile(EDGE).shape == (TILE, 4)
    with pytest.raises(TypeError, match=r"\(0, 1\) of the 2 kernels 0 to 1 is not one of a single"):
        SweepStore.open(path).read_tile(SweepTile(0, 1, (0, 1)))


# -- the command line -----------------------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in arguments])


def facts(*arguments: object, code: int = 0) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_verify_and_repair_from_the_command_line(path: Path, client: Client) -> None:
    assert facts("verify", path)["ok"]
    delete(path, EDGE)
    broken = facts("verify", path, code=1)
    assert (broken["kernels"], broken["unsound_kernels"]) == (5, [4])
    [problem] = broken["problems"]
    assert (problem["kernel"], problem["tile"], problem["kind"]) == (4, [1, 2], "missing")
    assert problem["options"]["readout"] == "per_step"
    lines = call("verify", path).stdout.splitlines()
    assert lines[0].startswith("(1, 2) of kernel 4\tmissing\tit is not stored\tsigma_w 1.4, ")
    assert lines[-1].startswith("29 of 30 tiles of 5 kernels are sound; ")
    assert client.scheduler is not None
    repaired = facts("repair", path, "--scheduler", client.scheduler.address)
    assert (repaired["ok"], repaired["sound"]) == (True, N_CHUNKS)


def test_info_tells_which_options_vary_and_how_far_each_kernel_is(path: Path) -> None:
    for tile in (A, SweepTile(0, 0, (0,)), *(SweepTile(0, c, (4,)) for c in range(3))):
        (path / chunk_of(tile)).unlink()
    found = facts("info", path)
    assert found["kernels"] == {"total": 5, "whole": 3, "begun": 2, "empty": 0}
    assert found["tiles"] == {"stored": 25, "total": 30}
    assert found["tiles_a_kernel"] == [4, 6, 6, 6, 3]
    assert found["varying"]["sigma_w"] == [1.3, 1.4]
    assert found["each"]["readout"] == ["last"] * 4 + ["per_step"]
    assert found["same"]["depth"] == 1
    lines = call("info", path).stdout.splitlines()
    assert "kernels\ttotal 5, whole 3, begun 2, empty 0" in lines
    assert "sigma_w\t1.3, 1.4" in lines
    refused = call("info", path, "--job-file")
    assert (refused.exit_code, "holds a sweep" in refused.stderr) == (2, True)


def test_resume_goes_on_with_a_sweep(whole: Path, path: Path, client: Client) -> None:
    assert client.scheduler is not None
    delete(path, A)
    delete(path, DIAGONAL)
    at = ("--scheduler", client.scheduler.address, "--quiet")
    done = facts("resume", path, *at)
    assert (done["tiles"], done["tiles_computed"]) == ({"stored": 30, "total": 30}, 2)
    assert contents(path) == contents(whole)
    assert facts("resume", path, *at)["tiles_computed"] == 0
    refused = call("resume", path, *at, "--detach")
    assert (refused.exit_code, "leave out --detach" in refused.stderr) == (2, True)


def test_export_takes_the_matrix_of_one_kernel(whole: Path, tmp_path: Path) -> None:
    found = facts("export", whole, tmp_path / "k.npy", "--kernel", 4, "--labels")
    assert found["shape"] == [20, 20]
    np.testing.assert_array_equal(np.load(tmp_path / "k.npy"), np.asarray(rd.open_sweep(whole)[4]))
    for more, why in (((), "none is given"), (("--kernel", 5), "there is no kernel 5")):
        refused = call("export", whole, tmp_path / "other.npy", *more)
        assert refused.exit_code == 2
        assert f"{why}: choose one with --kernel, from 0 to 4" in refused.stderr


def test_a_matrix_has_no_kernels_to_choose_from(tmp_path: Path, client: Client, X: Any) -> None:
    rd.gram(KERNELS[0], X, store=tmp_path / "gram", client=client, progress=False)
    refused = call("export", tmp_path / "gram", tmp_path / "other.npy", "--kernel", 0)
    assert (refused.exit_code, "leave out --kernel" in refused.stderr) == (2, True)
    assert not isinstance(open_any(tmp_path / "gram"), SweepStore)


# -- what it would take ---------------------------------------------------------------------------


def test_a_plan_counts_what_is_computed_and_writes_nothing(tmp_path: Path, X: rd.Sequences) -> None:
    X.write(tmp_path / "x.npz")
    head = ("sweep", tmp_path / "x.npz", "--store", tmp_path / "s", "--tile", 8, "--plan")
    over = ("--over", "sigma_b=0,0.1,0.2", "--over", "sigma_v=1,2", "--backend", "numpy")
    found = facts(*head, *over)
    assert found["kernels"] == {"total": 6, "computed": 3}
    assert found["shape"] == [6, 20, 20]
    assert found["tiles"] == {"missing": 36, "total": 36}
    assert found["bytes_stored"] == 36 * (8 * 8 * 8 + 4)
    samples = SweepStore.create(tmp_path / "t", _manifest(X, tmp_path / "t"), X).samples()
    assert found["pair_steps"] == 3 * total_pair_steps(Work(), samples)
    assert found["seconds"] > 0
    assert not (tmp_path / "s").exists()
    lines = call(*head, *over).stdout.splitlines()
    assert "kernels\t6, 3 of which are multiples of others" in lines


def _manifest(X: rd.Sequences, where: Path) -> Any:
    return wanted_sweep(KERNELS, X, None, where=str(where), tile=TILE).plan_anew()


def test_where_the_store_exists_the_plan_is_of_what_is_left(path: Path, X: rd.Sequences) -> None:
    wanted = wanted_sweep(KERNELS, X, None, where=str(path), backend="numpy")
    done = forecast_sweep(wanted, seconds=0.01)
    assert (done.missing, done.tasks, done.pair_steps, done.seconds) == (0, 0, 0, 0.0)
    delete(path, A)
    delete(path, MULTIPLE)
    left = forecast_sweep(wanted, seconds=0.01, workers=1)
    assert (left.missing, left.kernels, left.computed) == (2, 5, 3)
    assert left.workers == replace(local_workers(), count=1)
    one = wanted_sweep(KERNELS[:1], X, None, where=str(path), backend="numpy")
    with pytest.raises(rd.IdentityError, match="kernels: stored 5, given 1"):
        forecast_sweep(one)


def test_time_is_that_of_the_longest_task_at_least() -> None:
    plan = Plan(4, 4, 4, symmetric=True)
    even = SweepForecast(9, 9, plan, 9, 9, 0, 90.0, 10.0, 0, Workers(3))
    assert even.seconds == 30.0
    assert replace(even, longest=50.0).seconds == 50.0
    assert even.to_dict()["core_hours"] == 90.0 / 3600


def test_a_task_of_many_kernels_needs_more_memory(X: rd.Sequences, tmp_path: Path) -> None:
    wanted = wanted_sweep(KERNELS, X, None, where=str(tmp_path / "s"), tile=TILE)
    plan = wanted.plan_anew().plan
    samples = SweepStore.create(tmp_path / "s", wanted.plan_anew(), X).samples()
    alone = worker_bytes(plan, Work.of(KERNELS[0].to_dict()), samples)
    assert worker_bytes(plan, wanted.work, samples) > alone
    with (
        # What this process has in use would pause a worker in it.
        dask.config.set({"distributed.worker.memory.pause": False}),
        client_of(1, processes=False, protocol="tcp", memory_limit="300MiB") as small,
        pytest.raises(TileMemoryError, match="limited to 300 MiB"),
    ):
        rd.sweep(KERNELS, X, store=tmp_path / "other", tile=TILE, client=small, progress=False)
    assert not (tmp_path / "other").exists()


# -- views ----------------------------------------------------------------------------------------


def test_a_sweep_as_one_array(whole: Path, path: Path) -> None:
    sweep = rd.open_sweep(whole)
    array = sweep.to_xarray()
    assert array.dims == ("kernel", "row", "col")
    assert array.coords["sigma_w"].values.tolist() == [kernel.sigma_w for kernel in KERNELS]
    assert array.coords["readout"].values[4] == "per_step"
    assert array.attrs["depth"] == 1
    chosen = array.where(array.readout == "per_step", drop=True)
    assert isinstance(chosen, xr.DataArray)
    np.testing.assert_array_equal(chosen.values[0], np.asarray(sweep[4]))
    values = sweep.to_dask().compute(scheduler="synchronous")
    for i, gram in enumerate(sweep):
        np.testing.assert_array_equal(values[i], np.asarray(gram))
    assert sweep.to_dask().chunks == ((1,) * 5, (8, 8, 4), (8, 8, 4))
    delete(path, EDGE)
    with pytest.raises(rd.IncompleteGramError, match=r"is \(1, 2\): run rd\.sweep again"):
        np.asarray(rd.open_sweep(path)[4])
    with pytest.raises(rd.IncompleteGramError, match=r"1 of 5 matrices .* kernel 4: run rd\.sweep"):
        rd.open_sweep(path).to_xarray()


def test_values_are_listed_in_few_words() -> None:
    assert listed([0.1, 2]) == "0.1, 2"
    assert listed([1 / 3, "last"]) == "0.333333, last"
    assert listed(list(range(20))) == "0, 1, 2, 3, 4, …, 19 (20 values)"


def test_a_grid_of_every_option_is_told_apart(X: rd.Sequences, tmp_path: Path) -> None:
    kernels = grid(rd.RNTK(), {"sigma_w": [1.3, 1.4], "normalize": [True, False]})
    wanted = wanted_sweep(kernels, X, None, where=str(tmp_path / "s"), tile=TILE)
    manifest = SweepStore.create(tmp_path / "s", wanted.plan_anew(), X).manifest
    assert manifest.chosen(2) == {"sigma_w": 1.4, "normalize": True}
    assert manifest.same.keys() | manifest.varying.keys() == kernels[0].to_dict().keys()
