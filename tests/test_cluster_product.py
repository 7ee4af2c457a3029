"""Products on a cluster whose workers keep their tiles."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import client_of, cluster_of
from distributed import Client
from matrices import filled

import rntk_dist as rd
from rntk_dist.cluster_product import NoWorkerError

N, TILE = 61, 8


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(2, threads_per_worker=2) as client:
        yield client


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(N, 5))
    return features @ features.T


@pytest.fixture
def gram(values: np.ndarray, tmp_path: Path) -> rd.Gram:
    return rd.Gram(filled(tmp_path / "gram", values, TILE))


def chunks(gram: rd.Gram) -> list[Path]:
    return [p for p in (Path(str(gram.store.location)) / "gram" / "c").rglob("*") if p.is_file()]


def test_the_workers_read_each_tile_once_and_keep_it(
    client: Client, gram: rd.Gram, values: np.ndarray
) -> None:
    V = np.random.default_rng(1).normal(size=(N, 3))
    with gram.distribute(client) as remote:
        np.testing.assert_allclose(remote @ V, values @ V, atol=1e-12)
        assert sorted(remote.kept().values()) == [18, 18]
        for path in chunks(gram):
            path.unlink()
        np.testing.assert_allclose(V.T @ remote, V.T @ values, atol=1e-12)
        assert remote.identity == gram.identity
        assert (remote.shape, remote.dtype, remote.edge) == (gram.shape, gram.dtype, gram.edge)


def test_what_does_not_fit_is_read_again(client: Client, gram: rd.Gram, values: np.ndarray) -> None:
    v = np.ones(N)
    with gram.distribute(client, room=5 * TILE * TILE * 8) as remote:
        for _ in range(2):
            np.testing.assert_allclose(remote @ v, values @ v, atol=1e-12)
        assert all(5 <= count <= 7 for count in remote.kept().values())  # edge tiles are smaller


def test_views_compute_there(client: Client, gram: rd.Gram, values: np.ndarray) -> None:
    roots = np.sqrt(np.diag(values))
    with gram.distribute(client) as remote:
        cosine = remote.normalized()
        expected = (values / roots / roots[:, None]).sum(axis=1)
        np.testing.assert_allclose(cosine @ np.ones(N), expected, atol=1e-12)
        assert sum(remote.kept().values()) == gram.plan.n_tiles
        assert np.array_equal(remote[3:5, [0, 60]], values[3:5, [0, 60]])
        assert np.array_equal(remote.diag(), np.diag(values))
        assert remote.to_dask().shape == (N, N)


def test_a_rectangular_matrix_both_ways(client: Client, tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(20, 33))
    gram = rd.Gram(filled(tmp_path / "cross", values, 7, symmetric=False))
    with gram.distribute(client) as remote:
        np.testing.assert_allclose(remote @ np.ones(33), values.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(np.ones(20) @ remote, values.sum(axis=0), atol=1e-12)


def test_workers_drop_the_tiles_at_the_end(client: Client, gram: rd.Gram) -> None:
    with gram.distribute(client) as remote:
        remote @ np.ones(N)
        name = remote._name
    assert not any(client.run(lambda dask_worker: name in dask_worker.plugins).values())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_worker_that_dies_is_made_up_for(gram: rd.Gram, values: np.ndarray) -> None:
    v = np.random.default_rng(3).normal(size=N)
    with (
        cluster_of(2) as cluster,
        Client(cluster, set_as_default=False) as client,
        gram.distribute(client) as remote,
    ):
        np.testing.assert_allclose(remote @ v, values @ v, atol=1e-12)
        os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)
        np.testing.assert_allclose(remote @ v, values @ v, atol=1e-12)
        np.testing.assert_allclose(remote @ v, values @ v, atol=1e-12)


def test_a_cluster_without_workers_is_refused(gram: rd.Gram) -> None:
    with client_of(0) as client, pytest.raises(NoWorkerError, match="has no worker"):
        gram.distribute(client)


def test_a_gap_is_refused_before_anything_is_sent(client: Client, gram: rd.Gram) -> None:
    chunks(gram)[0].unlink()
    with pytest.raises(rd.IncompleteGramError):
        gram.distribute(client)
