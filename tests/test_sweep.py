"""Sweeps: many kernels in one store, each matrix what it would be alone; they are resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import client_of
from distributed import Client
from typer.testing import CliRunner, Result

import rntk_dist as rd
from rntk_dist.cli import app
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.failures import TileError
from rntk_dist.kernel.families import families, multiple
from rntk_dist.manifest import SweepFoundError
from rntk_dist.plan import Tile, Work, total_pair_steps
from rntk_dist.progress import Progress
from rntk_dist.store import CorruptTileError, StoreFormatError
from rntk_dist.sweep import grid
from rntk_dist.sweep_manifest import SweepManifest, SweepTile, make_batches
from rntk_dist.sweep_store import SweepStore
from rntk_dist.tile_task import compute_batch, works_of

TILE = 8  # 20 sequences: 3 x 3 tiles, six of the upper triangle
KERNELS = [
    *(rd.RNTK(sigma_w=w, sigma_b=b) for w in (1.3, 1.4) for b in (0.0, 0.1)),
    rd.RNTK(activation="erf", sigma_h=0.5, initial_state="independent"),
    rd.RNTK(depth=2, readout="mean", normalize=True),
    rd.RNTK(bidirectional=True, readout="per_step"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(2) as client:
        yield client


@pytest.fixture(scope="module")
def X() -> rd.Sequences:
    rng = np.random.default_rng(7)
    return rd.Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 9, 20)])


def swept(
    kernels: list[rd.RNTK], X: Any, where: Path, client: Client | None, **options: Any
) -> rd.Sweep:
    options = {"tile": TILE, "backend": "numpy", "progress": False} | options
    return rd.sweep(kernels, X, store=where, client=client, **options)


# -- values ---------------------------------------------------------------------------------------


def test_each_matrix_is_what_its_kernel_alone_gives(
    tmp_path: Path, client: Client, X: rd.Sequences
) -> None:
    sweep = swept(KERNELS, X, tmp_path / "sweep", client)
    assert sweep.shape == (len(KERNELS), 20, 20)
    assert list(sweep.kernels) == KERNELS
    for kernel, gram in zip(KERNELS, sweep, strict=True):
        alone = rd.gram(
            kernel,
            X,
            store=tmp_path / f"alone-{sweep.index(kernel)}",
            client=client,
            tile=TILE,
            backend="numpy",
            progress=False,
        )
        assert gram.kernel == kernel
        assert gram.store.manifest == alone.store.manifest
        np.testing.assert_array_equal(np.asarray(gram), np.asarray(alone))
    np.testing.assert_array_equal(sweep.to_dask()[2].compute(), np.asarray(sweep[2]))


@pytest.mark.parametrize(
    ("kind", "dtype", "backend"),
    [("ntk", "float32", "numpy"), ("nngp", "float64", "numpy"), ("ntk", "float64", "numba")],
)
def test_rectangular_sweeps_of_any_kind(
    tmp_path: Path, client: Client, X: rd.Sequences, backend: str, kind: Any, dtype: Any
) -> None:
    options = {"kind": kind, "dtype": dtype, "backend": backend}
    sweep = swept(KERNELS[:3], X[:11], tmp_path / "sweep", client, Y=X[11:], **options)
    assert (sweep.kind, sweep.dtype, sweep[1].shape) == (kind, np.dtype(dtype), (11, 9))
    for kernel, gram in zip(KERNELS[:3], sweep, strict=True):
        np.testing.assert_array_equal(np.asarray(gram), kernel(X[:11], X[11:], **options))


def test_multiples_are_equal_to_rounding(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    base = rd.RNTK(sigma_w=1.3, sigma_b=0.1, sigma_h=0.5)
    twice = replace(base, sigma_u=2.0, sigma_b=0.2, sigma_h=1.0)
    others = [replace(base, sigma_u=3.0, sigma_b=0.3, sigma_h=1.5), replace(base, sigma_v=1.7)]
    sweep = swept([twice, *others, base], X, tmp_path / "sweep", client)
    np.testing.assert_array_equal(np.asarray(sweep[0]), twice(X, backend="numpy"))
    for i in (1, 2):
        assert_equal_to_rounding(np.asarray(sweep[i]), sweep.kernels[i](X, backend="numpy"))
    store = SweepStore.open(sweep.store.location)
    records = [store.slice(i).records().values() for i in range(4)]
    steps = sum(record.pair_steps for several in records for record in several)
    once = total_pair_steps(Work.of(base.to_dict()), store.samples())
    assert steps == once  # of four kernels


def assert_equal_to_rounding(values: np.ndarray, expected: np.ndarray) -> None:
    """Rounding is of the terms of a value; where they cancel, that is more of what is left."""
    np.testing.assert_allclose(values, expected, rtol=5e-15, atol=5e-15 * expected.max())


# -- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "factor"),
    [
        ({"sigma_v": 1.0}, {"sigma_v": 3.0}, 9.0),
        ({"sigma_b": 0.1}, {"sigma_u": 3.0, "sigma_b": 0.3}, 9.0),
        ({"activation": "linear"}, {"activation": "linear", "sigma_u": 2.0}, 4.0),
        ({"normalize": True}, {"normalize": True, "sigma_v": 2.0, "sigma_u": 5.0}, 1.0),
        ({"sigma_w": 0.0}, {"sigma_w": 0.0, "sigma_h": 0.7}, 1.0),
        ({}, {"initial_state": "independent"}, 1.0),
        ({"sigma_u": 0.0, "sigma_b": 1.0}, {"sigma_u": 0.0, "sigma_b": 2.0}, 4.0),
    ],
)
def test_kernels_that_are_multiples(one: dict, other: dict, factor: float, X: rd.Sequences) -> None:
    kernels = [rd.RNTK(**one), rd.RNTK(**other)]
    [family] = families(kernels)
    assert (family.members, family.factors) == ((0, 1), (1.0, pytest.approx(factor, rel=1e-15)))
    first, second = (kernel(X, backend="numpy") for kernel in kernels)
    assert_equal_to_rounding(multiple(first, factor), second)


@pytest.mark.parametrize(
    "other",
    [
        {"sigma_w": 1.3},
        {"sigma_b": 0.1},
        {"sigma_h": 0.1},
        {"activation": "erf", "sigma_u": 2.0},
        {"depth": 2},
        {"sigma_h": 0.1, "initial_state": "independent"},
    ],
)
def test_kernels_that_are_not_multiples(other: dict) -> None:
    kernel = rd.RNTK(activation=other.get("activation", "relu"), sigma_h=0.0)
    shared = rd.RNTK(sigma_h=0.1)
    assert [family.members for family in families([kernel, rd.RNTK(**other)])] == [(0,), (1,)]
    assert len(families([kernel, shared, rd.RNTK(**other)])) == (
        2 if other == {"sigma_h": 0.1} else 3
    )


def test_the_smallest_of_a_family_is_computed() -> None:
    [family] = families([rd.RNTK(sigma_v=4.0), rd.RNTK(), rd.RNTK(sigma_v=2.0)])
    assert (family.members, family.factors) == ((1, 2, 0), (1.0, 4.0, 16.0))
    with pytest.raises(OverflowError, match="exceeds float32"):
        multiple(np.full((2, 2), 1e38, np.float32), 16.0)


# -- resuming -------------------------------------------------------------------------------------


def test_an_interrupted_sweep_is_resumed(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    def stop(now: Progress) -> None:
        if now.tiles == 3:
            raise KeyboardInterrupt

    where, seen = tmp_path / "sweep", []
    empty = swept_empty(where, X)
    with pytest.raises(KeyboardInterrupt, match="3 of 42 tiles are kept"):
        fill(empty, client, backend="numpy", on_progress=stop)
    before = written(where)
    assert 0 < len(before) < 42
    assert not rd.open_sweep(where).complete
    fill(SweepStore.open(where, writable=True), client, on_progress=seen.append)
    assert seen[-1].tiles == seen[-1].tiles_total
    # What a task that was cancelled too late has stored meanwhile is passed over.
    assert 0 < seen[-1].pair_steps <= seen[-1].pair_steps_total
    after = written(where)
    assert len(after) == 42
    assert before.items() <= after.items()


def swept_empty(where: Path, X: rd.Sequences) -> SweepStore:
    alone = ensure_store(KERNELS[6], X, None, store=where.with_name("one"), tile=TILE)
    manifest = SweepManifest.of(alone.manifest, [kernel.to_dict() for kernel in KERNELS])
    return SweepStore.create(where, manifest, X)


def written(where: Path) -> dict[str, int]:
    """When each chunk was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in where.glob("gram/c/*/*/*")
        if not path.suffix  # a task that was cancelled too late may be writing
    }


def test_only_what_a_kernel_lacks_is_computed(
    tmp_path: Path, client: Client, X: rd.Sequences
) -> None:
    sweep = swept(KERNELS, X, tmp_path / "sweep", client)
    before = written(tmp_path / "sweep")
    for chunk in ("3/0/1", "5/2/2"):
        (tmp_path / "sweep/gram/c" / chunk).unlink()
    assert sweep.progress() == [6, 6, 6, 5, 6, 5, 6]
    assert not sweep.complete
    assert sweep[3].missing == [Tile(0, 1)]
    assert sweep[4].complete
    with pytest.raises(rd.IncompleteGramError):
        np.asarray(sweep[3])
    swept(KERNELS, X, tmp_path / "sweep", client)
    changed = {k for k, v in written(tmp_path / "sweep").items() if before[k] != v}
    assert {k.rpartition("/c/")[2] for k in changed} == {"3/0/1", "5/2/2"}
    report = rd.open_sweep(tmp_path / "sweep").store.report()
    assert report is not None
    assert (report["tiles"], report["recorded"]) == (42, 42)


def test_a_kernel_that_overflows_keeps_nobody_from_being_stored(
    tmp_path: Path, client: Client, X: rd.Sequences
) -> None:
    kernels = [KERNELS[0], rd.RNTK(sigma_w=1e30), KERNELS[1]]
    for _ in range(2):
        with pytest.raises(TileError, match=r"in tile \(0, 0\) of .* with kernel 1 of the sweep: "):
            swept(kernels, X, tmp_path / "sweep", client, dtype="float32")
        sweep = rd.open_sweep(tmp_path / "sweep")
        assert [gram.complete for gram in sweep] == [True, False, True]


def test_a_damaged_chunk_is_told_and_computed_anew(
    tmp_path: Path, client: Client, X: rd.Sequences
) -> None:
    sweep = swept(KERNELS, X, tmp_path / "sweep", client)
    chunk = tmp_path / "sweep/gram/c/2/0/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(
        CorruptTileError, match=r"`rntk-dist repair .*` computes its chunk gram/c/2/0/0"
    ):
        np.asarray(sweep[2])
    chunk.unlink()
    again = swept(KERNELS, X, tmp_path / "sweep", client)
    np.testing.assert_array_equal(np.asarray(again[2]), KERNELS[2](X, backend="numpy"))


def test_a_task_run_twice_leaves_the_same_bytes(tmp_path: Path, X: rd.Sequences) -> None:
    store, task = swept_empty(tmp_path / "sweep", X), SweepTile(0, 2, (1, 5, 6))
    chunks = [tmp_path / f"sweep/gram/c/{i}/0/2" for i in task.kernels]
    first = compute_batch(store.location, task, "numpy")
    contents = [chunk.read_bytes() for chunk in chunks]
    assert first.nbytes == 3 * TILE * 4 * 8
    again = compute_batch(store.location, task, "numpy")
    assert (again.nbytes, again.pair_steps) == (0, 0)
    chunks[1].unlink()
    third = compute_batch(store.location, task, "numpy")
    assert third.nbytes == TILE * 4 * 8
    assert third.pair_steps < first.pair_steps
    assert [chunk.read_bytes() for chunk in chunks] == contents
    assert store.stored() == {(1, 0, 2), (5, 0, 2), (6, 0, 2)}
    assert len(works_of(store, task)) == 3
    with pytest.raises(rd.IdentityError, match="another sweep"):
        compute_batch(store.location, task, "numpy", identity="0" * 64)
    assert not store.gone([task])


# -- what is stored -------------------------------------------------------------------------------


def test_another_sweep_is_refused(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    where = tmp_path / "sweep"
    swept(KERNELS[:2], X, where, client)
    with pytest.raises(rd.IdentityError, match="kernels: stored 2, given 3"):
        swept(KERNELS[:3], X, where, client)
    with pytest.raises(rd.IdentityError, match=r"kernel 1 .*\n +kernel\.sigma_w: stored 1\.3, gi"):
        swept([KERNELS[0], KERNELS[3]], X, where, client)
    with pytest.raises(rd.IdentityError, match=r"fingerprint: stored"):
        swept(KERNELS[:2], X[::-1], where, client)
    with pytest.raises(ValueError, match="needs kernels, and there are none"):
        swept([], X, where, client)
    with pytest.raises(ValueError, match="features"):
        swept(KERNELS[:2], X, tmp_path / "other", client, Y=np.ones((2, 3, 5)))
    assert not (tmp_path / "other").exists()


def test_a_sweep_is_no_gram_and_a_gram_no_sweep(
    tmp_path: Path, client: Client, X: rd.Sequences
) -> None:
    swept(KERNELS[:2], X, tmp_path / "sweep", client)
    rd.gram(KERNELS[0], X, store=tmp_path / "gram", client=client, progress=False)
    with pytest.raises(SweepFoundError, match=r"a sweep of many kernels.*rd\.open_sweep"):
        rd.open_gram(tmp_path / "sweep")
    with pytest.raises(SweepFoundError):
        rd.gram(KERNELS[0], X, store=tmp_path / "sweep", client=client)
    with pytest.raises(StoreFormatError, match="one Gram matrix, not a sweep"):
        swept(KERNELS[:2], X, tmp_path / "gram", client)
    with pytest.raises(FileNotFoundError):
        rd.open_sweep(tmp_path / "nothing")


def test_a_manifest_comes_back_as_it_was(tmp_path: Path, X: rd.Sequences) -> None:
    store = swept_empty(tmp_path / "sweep", X)
    assert SweepManifest.from_dict(store.manifest.to_dict()) == store.manifest
    assert [rd.RNTK.from_dict(options) for options in store.manifest.kernels] == KERNELS
    assert store.manifest.kernel == KERNELS[6].to_dict()  # both directions need most memory
    assert store.array.metadata.dimension_names == ("kernel", "row", "col")


def test_batches_are_a_partition() -> None:
    for n_kernels, n_tiles in ((1, 1), (7, 6), (900, 1), (900, 30), (33, 1)):
        batches = make_batches([(i,) for i in range(n_kernels)], n_tiles)
        assert [i for batch in batches for i in batch] == list(range(n_kernels))
        assert len(batches) * n_tiles >= min(32, n_kernels * n_tiles)
    assert make_batches([(0, 3), (1,), (2, 4, 5)], 1) == ((0, 3), (1,), (2, 4, 5))
    assert make_batches([(0, 3), (1,), (2, 4, 5)], 30) == ((0, 3, 1), (2, 4, 5))


def test_a_sweep_is_a_sequence_of_views(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    sweep = swept(KERNELS[:2], X, tmp_path / "sweep", client)
    assert len(list(sweep)) == len(sweep) == 2
    assert sweep[-1].kernel == KERNELS[1]
    with pytest.raises(IndexError, match="no kernel 2 in a sweep of 2"):
        sweep[2]
    with pytest.raises(ValueError, match="not one of the 2"):
        sweep.index(KERNELS[6])
    assert "2 kernels, 20 x 20 float64 ntk, 12/12 tiles" in repr(sweep)
    assert sweep.sequences.fingerprint == X.fingerprint
    assert sweep.sequences_y is None


def test_reading_needs_no_right_to_write(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    first = swept(KERNELS[:2], X, tmp_path / "sweep", client)
    chunks = written(tmp_path / "sweep")
    again = swept(KERNELS[:2], X, tmp_path / "sweep", client, tile=None)
    assert again.store.manifest == first.store.manifest
    assert written(tmp_path / "sweep") == chunks


# -- grids and the command ------------------------------------------------------------------------


def test_a_grid_has_every_combination() -> None:
    kernels = grid(rd.RNTK(depth=2), {"sigma_w": [1.3, 1.4], "sigma_b": [0, 0.1, 1]})
    assert [(kernel.sigma_w, kernel.sigma_b) for kernel in kernels] == [
        *((1.3, 0.0), (1.3, 0.1), (1.3, 1.0)),
        *((1.4, 0.0), (1.4, 0.1), (1.4, 1.0)),
    ]
    assert {kernel.depth for kernel in kernels} == {2}
    with pytest.raises(ValueError, match="sigma_x is no option of a kernel"):
        grid(rd.RNTK(), {"sigma_x": [1]})
    with pytest.raises(ValueError, match="sigma_w has no value"):
        grid(rd.RNTK(), {"sigma_w": []})


def test_the_command_sweeps_and_goes_on(tmp_path: Path, client: Client, X: rd.Sequences) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(6, 5)))
    assert client.scheduler is not None

    def call(*more: str) -> Result:
        head = ["sweep", f"{tmp_path / 'data.npy'}", "--store", f"{tmp_path / 'sweep'}", "-q"]
        at = ["--scheduler", client.scheduler.address, "--backend", "numpy"]
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, [*head, *at, *more])

    over = ("--over", "sigma_w=1.3,1.4", "--over", "readout=last,per_step", "--sigma-b", "0.1")
    done = call(*over, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["shape"] == [4, 6, 6]
    assert facts["tiles"] == {"stored": 4, "total": 4}
    sweep = rd.open_sweep(tmp_path / "sweep")
    assert sweep.kernels[1] == rd.RNTK(sigma_w=1.3, readout="per_step", sigma_b=0.1)
    assert "4 kernels" in call(*over).stdout
    other = call("--over", "sigma_w=1.3,1.5")
    assert (other.exit_code, "kernels: stored 4, given 2" in other.stderr) == (3, True)
    assert call("--over", "sigma_w").exit_code == 2
