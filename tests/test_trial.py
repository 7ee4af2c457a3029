"""A trial: what short, real runs say of a cluster, and that nothing is left of them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from clusters import client_of
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from rntk_dist.creation import Wanted
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Work, Workers
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore
from rntk_dist.trial import Run, Trial, drawn, measured_rates, pair_steps_of, room, scratch, solved


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(3)
    return Sequences.from_arrays([rng.normal(size=t) for t in rng.integers(4, 12, size=40)])


def test_three_runs_give_three_unknowns() -> None:
    def seconds(tiles: int, work: int) -> float:
        return 3.0 + 0.02 * tiles + 5e-10 * work

    sizes = [(3, 10**8), (21, 2 * 10**9), (171, 2 * 10**9)]
    runs = [Run(tiles, work, seconds(tiles, work)) for tiles, work in sizes]
    np.testing.assert_allclose(solved(runs), (3.0, 0.02, 5e-10), rtol=1e-6)


def test_noise_makes_no_negative_time() -> None:
    start, tile, pair_step = solved([Run(3, 100, 2.0), Run(21, 10**6, 5.0), Run(171, 10**6, 4.9)])
    assert tile == 0.0
    assert (start, pair_step) == pytest.approx((2.0, 2.95e-6), rel=0.02)
    assert solved([Run(3, 10, 2.0), Run(21, 100, 2.0), Run(171, 100, 2.0)])[2] > 0


def test_runs_are_as_long_as_asked_and_give_each_worker_enough_tiles() -> None:
    trial = Trial.of(pair_steps=100.0, speed=1e9, workers=Workers(2), seconds=10.0)
    few, long, fine = trial.sizes()
    assert long[0] ** 2 / 2 * 100 == pytest.approx(1e10, rel=1e-3)
    assert few[0] == long[0] // 4
    assert fine == (long[0], -(-long[0] // 18))
    many = Trial.of(pair_steps=100.0, speed=1e9, workers=Workers(64), seconds=1.0)
    blocks = -(-many.n // list(many.sizes())[1][1])
    assert blocks * (blocks + 1) / 2 >= 8 * 64


def test_sequences_are_drawn_and_repeated_only_if_they_must_be(X: Sequences) -> None:
    some = drawn(X, 10)
    assert len({tuple(x.ravel()) for x in some}) == 10
    assert len(drawn(X, 100)) == 100
    assert drawn(X, 10).fingerprint == some.fingerprint


def test_a_pair_takes_the_shorter_of_two_lengths() -> None:
    two = Sequences.from_arrays([np.ones(3), np.ones(5)])
    assert pair_steps_of(two, Work()) == (3 + 3 + 5) / 3


def test_a_place_beside_the_store_is_removed_with_all_it_holds(tmp_path: Path) -> None:
    with suppress(InterruptedError), scratch(str(tmp_path / "deep" / "er" / "gram")) as place:
        assert Path(place).parent.parent == tmp_path
        Path(place).mkdir()
        (Path(place) / "chunk").write_bytes(b"1")
        raise InterruptedError
    assert list(tmp_path.iterdir()) == []
    free = room(str(tmp_path / "none"))
    assert free is not None
    assert free > 0
    assert room("s3://bucket/gram") is None


def test_a_place_behind_a_url_is_removed_too() -> None:
    with scratch("memory://bucket/gram") as url:
        assert url.startswith("memory://bucket/gram-trial-")
        store = FsspecStore.from_url(url)
        zarr.create_group(store).create_array("gram", shape=2, dtype="f4")[:] = 1
        assert sync(store.exists("gram/zarr.json"))
    assert not sync(store.exists("gram/zarr.json"))
    GramStore.remove(url)  # of what is not there: nothing


@pytest.mark.slow
def test_rates_are_those_of_runs_on_the_cluster(X: Sequences, tmp_path: Path) -> None:
    wanted = Wanted(str(tmp_path / "gram"), RNTK(), X, dtype="float32", backend="numpy")
    with client_of(2) as client:
        rates = measured_rates(wanted, client, seconds=0.5)
    assert rates.workers.count == 2
    assert not rates.on_gpu
    assert 1e5 < rates.pair_steps < 1e12
    assert rates.reading > 1e5
    assert rates.flops > 1e8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_compares_routes(X: Sequences, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(60, 20)))
    command = [str(Path(sys.executable).parent / "rntk-dist"), "plan", "data.npy"]
    options = ["--store", "gram", "--dtype", "float32", "--samples", "5000", "--samples", "1000000"]
    asked = [*command, *options]
    done = subprocess.run(
        asked, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rows, small, large = done.stdout.splitlines()
    assert first.startswith("measured with ")
    assert [row.split("\t")[1] for row in rows] == [
        "store",
        "recompute",
        "nystroem",
        "neighbors",
    ] * 2
    assert small.startswith("N = 5,000: regression is cheapest by ")
    assert large.startswith("N = 1,000,000: regression is cheapest by nystroem (")
    told = subprocess.run(
        [*asked, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    facts = json.loads(told.stdout)
    assert [each["samples"] for each in facts["scales"]] == [5000, 1000000]
    assert {path.name for path in tmp_path.iterdir()} == {"data.npy"}
