"""A cluster as the files of deploy/ say it, on hosts that share a folder with a job file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from deployments import DEPLOY, ROOT, Node, commands_in
from hosts import Host
from slow_tiles import PRELOAD

import rntk_dist as rd
from rntk_dist.job_file import JobFile
from rntk_dist.store import GramStore

JOB = """
[kernel]
readout = "per_step"
sigma_b = 0.2

[data]
x = "x.npy"

[run]
store = "gram.zarr"
tile = 3
backend = "{backend}"
"""

_AGAIN = {
    "always": ("sh", "-c", 'while :; do "$@"; sleep 1; done', "sh"),
    "on failure": ("sh", "-c", 'until "$@"; do sleep 1; done', "sh"),
    "never": (),
}


def environment() -> dict[str, str]:
    """Finds this interpreter's programs, and the preload that makes tiles take their time."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Lost connections are noticed within seconds.
    return {"PATH": path, **PRELOAD, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}


def make_shared_folder(folder: Path, sequences: int = 15, backend: str = "numba") -> Path:
    """A folder with a job file and its data; three sequences are a tile's side."""
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(sequences, 20)))
    (folder / "job.toml").write_text(JOB.format(backend=backend))
    return folder


def make_certificates(folder: Path) -> Path:
    """As deploy/README says."""
    (make,) = commands_in(DEPLOY / "README.md", "deploy/tls/make-certificates")
    subprocess.run([ROOT / make[0], folder], check=True, capture_output=True)
    return folder


@dataclass
class Site:
    """Hosts, the folder that they share, and a folder of certificates."""

    hosts: Mapping[str, Host]
    shared: Path
    certificates: Path

    def start(
        self, at: str, node: Node, holder: str = "", log: str = "log"
    ) -> subprocess.Popen[bytes]:
        """Start what a node runs, on a host, with a certificate; again and again if it is to be."""
        return self.hosts[at].start(
            [*_AGAIN[node.restarts], *(word.replace("%w", at) for word in node.command)],
            env={**environment(), **node.env},
            mounts=self._mounts(node, holder),
            cwd=node.cwd,
            log=log,
        )

    def run(self, at: str, node: Node, holder: str = "") -> subprocess.CompletedProcess[str]:
        """Run what a node runs, on a host, to its end."""
        env, mounts = {**environment(), **node.env}, self._mounts(node, holder)
        return self.hosts[at].run(node.command, env=env, mounts=mounts, cwd=node.cwd)

    def _mounts(self, node: Node, holder: str) -> dict[str, Path]:
        own = {"data": self.shared, "tls": self.certificates / holder}
        return {where: own.get(what, Path(what)) for where, what in node.mounts.items()}

    def slow(self) -> None:
        """Have tiles take their time."""
        (self.shared / "slow").touch()

    def fast(self) -> None:
        """Have tiles take no more time than they must."""
        (self.shared / "slow").unlink()

    def tiles(self) -> dict[str, list[str]]:
        """When the tiles were stored, by the host that computed them, oldest first."""
        found: dict[str, list[str]] = {name: [] for name in self.hosts}
        for record in GramStore.open(self.shared / "gram.zarr").records().values():
            found[record.host].append(record.finished)
        return {host: sorted(times) for host, times in found.items()}

    def driver(self) -> str:
        """The host from which the job is driven."""
        return str(json.loads((self.shared / "gram.zarr/gram/job.json").read_text())["host"])


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as it is so; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def assert_same_bits_as_here(shared: Path, folder: Path) -> None:
    """Every chunk of the matrix has the bytes of one that is computed on this machine."""
    job = JobFile.read(shared / "job.toml")
    tile, backend = job.tile, job.backend
    here, there = folder / "here.zarr", shared / "gram.zarr"
    rd.gram(job.kernel, *job.sequences(), store=here, tile=tile, backend=backend, progress=False)
    chunks = _chunks(here)
    assert len(chunks) == rd.open_gram(here).plan.n_tiles
    assert chunks == _chunks(there)


def _chunks(store: Path) -> dict[str, bytes]:
    folder = store / "gram" / "c"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
