"""Stores at URLs of fsspec that are no buckets: a local file URL, and a plain HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from clusters import client_of

import rntk_dist as rd
from rntk_dist.plan import Tile
from rntk_dist.store import GramStore, chunk_key

KERNEL = rd.RNTK(sigma_w=1.3)
X = np.random.default_rng(0).normal(size=(20, 6))


class Silent(SimpleHTTPRequestHandler):
    """Knows no ranges: it answers each request with the whole file."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = partial(Silent, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_store_at_a_url_is_filled_resumed_verified_and_read(served: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/gram"
    with client_of(1) as client:

        def run() -> rd.Gram:
            return rd.gram(KERNEL, X, store=url, tile=8, client=client, progress=False)

        first = np.asarray(run())
        GramStore.open(url, writable=True).discard([Tile(0, 1)])
        kept = (tmp_path / "gram" / chunk_key(Tile(0, 0))).stat().st_mtime_ns
        assert np.array_equal(np.asarray(run()), first)
        assert (tmp_path / "gram" / chunk_key(Tile(0, 0))).stat().st_mtime_ns == kept
    published = rd.open_gram(f"{served}/gram")
    assert published.complete
    assert np.array_equal(np.asarray(published), KERNEL(X))
    assert rd.verify(f"{served}/gram", recompute=20).ok
    path = tmp_path / "gram" / chunk_key(Tile(1, 2))
    path.write_bytes(path.read_bytes()[:-1])
    assert [problem.tile for problem in rd.verify(f"{served}/gram").problems] == [Tile(1, 2)]


def test_what_is_not_at_a_url(served: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no Gram store at http://127"):
        rd.open_gram(f"{served}/nothing")
