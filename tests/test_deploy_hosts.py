"""The very commands of deploy/, on hosts of a network of their own: TLS, partitions, lost hosts."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deployments import (
    COMPOSE,
    DEPLOY,
    TLS,
    Node,
    commands_in,
    compose,
    inside,
    kubernetes_job,
    slurm,
)
from hosts import network
from sites import (
    Site,
    assert_same_bits_as_here,
    make_certificates,
    make_shared_folder,
    wait_until,
)

pytestmark = pytest.mark.slow

HANDSHAKE = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.check_hostname = False
with context.wrap_socket(socket.create_connection(("scheduler", 8786))) as connection:
    connection.recv(1)
"""

HOSTS = {
    "scheduler": ("rntk-job-scheduler",),  # the service of the Dask operator
    "worker-1": (),
    "worker-2": (),
    "client": (),
    "stranger": (),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Five hosts, a folder that they share, and certificates."""
    shared = tmp_path / "shared"
    certificates = make_certificates(tmp_path / "tls")
    with network(tmp_path, HOSTS) as hosts:
        yield Site(hosts, shared, certificates)


# -- Compose ---------------------------------------------------------------------------------------


@pytest.fixture
def services(site: Site) -> dict[str, Node]:
    """What the Compose files run, with TLS."""
    values = {"RNTK_DATA": str(site.shared), "RNTK_TLS": str(site.certificates)}
    return compose(values, *COMPOSE)


def submit_command() -> list[str]:
    """What deploy/README says to run in the notebook's container, for a cluster with TLS."""
    found = commands_in(DEPLOY / "README.md", "rntk-dist")
    (with_tls,) = [words for words in found if "tls://scheduler:8786" in words]
    return inside(with_tls, "rntk-dist")


def test_job_survives_a_partition_and_a_lost_host(
    site: Site, services: dict[str, Node], tmp_path: Path
) -> None:
    """The host that drives the job is cut off and comes back; then the other, which does, is lost.

    Meanwhile those without a certificate of the cluster try to get in.
    """
    make_shared_folder(site.shared, sequences=42)
    site.slow()
    start_cluster(site, services)
    client = services["notebook"]
    submitted = site.run("client", client.running(*submit_command()))
    assert submitted.returncode == 0, submitted.stderr
    refused = start_strangers(site, services)
    wait_until(lambda: all(map(site.tiles().get, ("worker-1", "worker-2"))), "tiles of both")

    first = site.driver()
    second = "worker-2" if first == "worker-1" else "worker-1"
    site.hosts[first].cut_off()
    wait_until(lambda: site.driver() == second, "another that drives the job")
    done = len(site.tiles()[second])
    wait_until(lambda: len(site.tiles()[second]) > done + 2, "tiles of who is left")
    site.hosts[first].reconnect()
    back = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    wait_until(lambda: site.tiles()[first][-1:] > [back], "tiles of who has come back")

    site.hosts[second].lose()
    wait_until(lambda: site.driver() == first, "the first to drive the job again")
    site.fast()
    ended = site.run("client", client.running("rntk-dist", "status", "gram.zarr", "--wait"))
    assert ended.returncode == 0, ended.stderr
    assert_refused(site, refused)
    assert_same_bits_as_here(site.shared, tmp_path)


def start_cluster(site: Site, services: dict[str, Node]) -> None:
    """A scheduler and two workers; returns when they are healthy, as the file asks."""
    site.start("scheduler", services["scheduler"])
    for worker in ("worker-1", "worker-2"):
        site.start(worker, services["worker"])
    for name, host in (("scheduler", "scheduler"), ("worker", "worker-1")):
        asked = services[name].running(*services[name].check)
        wait_until(lambda at=host, ask=asked: site.run(at, ask).returncode == 0, f"healthy {name}")


def start_strangers(site: Site, services: dict[str, Node]) -> dict[str, subprocess.Popen[bytes]]:
    """Who is to be refused; what each says goes to a log of its name."""
    ask, address = ("rntk-dist", "jobs", "--scheduler"), "tls://scheduler:8786"
    known = replace(services["notebook"], restarts="never")
    other = make_certificates(site.shared.parent / "tls of others")
    plain = replace(known, env={})
    bare = plain.running("python", "-c", HANDSHAKE, f"{TLS}/ca.crt")
    strangers = {
        "bare": bare,
        "no certificate": plain.running(*ask, address, "--tls-ca-file", f"{TLS}/ca.crt"),
        "no TLS": plain.running(*ask, "tcp://scheduler:8786"),
        "others": replace(
            known.running(*ask, address), mounts={**known.mounts, TLS: str(other / "client")}
        ),
        "worker": replace(compose({}, COMPOSE[0])["worker"], mounts={}, restarts="never", cwd="/"),
    }
    return {name: site.start("stranger", node, log=name) for name, node in strangers.items()}


def assert_refused(site: Site, strangers: dict[str, subprocess.Popen[bytes]]) -> None:
    """All have ended with an error, and no worker of theirs has become one of the cluster's."""
    stranger = site.hosts["stranger"]
    for name in ("no certificate", "no TLS", "others"):
        assert strangers[name].wait(timeout=30) == 2, stranger.said(name)
        assert stranger.said(name).startswith("rntk-dist jobs: "), stranger.said(name)
    assert strangers["bare"].wait(timeout=30) == 1
    assert re.search("certificate.required", stranger.said("bare"), re.I), stranger.said("bare")
    scheduler = site.hosts["scheduler"].said()
    for name in ("worker-1", "worker-2"):
        assert f"Register worker addr: tls://{site.hosts[name].address}:" in scheduler
    assert stranger.address not in "".join(
        line for line in scheduler.splitlines() if "Register worker" in line
    )
    assert strangers["worker"].wait(timeout=60) == 1
    assert "Nanny failed to start" in stranger.said("worker")


# -- Kubernetes ------------------------------------------------------------------------------------


def test_kubernetes_job_runs_to_its_end(site: Site, tmp_path: Path) -> None:
    """Started all at once, as by the operator: the runner tries until there is a cluster."""
    make_shared_folder(site.shared)
    pods = kubernetes_job()
    runner = site.start("client", pods["runner"], "client")
    site.start("scheduler", pods["scheduler"], "scheduler")
    for worker in ("worker-1", "worker-2"):
        site.start(worker, pods["worker"], "worker")
    assert runner.wait(timeout=90) == 0, site.hosts["client"].said()
    assert_same_bits_as_here(site.shared, tmp_path)


# -- SLURM -----------------------------------------------------------------------------------------


def test_slurm_jobs_make_a_cluster(site: Site, tmp_path: Path) -> None:
    """Scheduler and workers as batch jobs, and a client that sources environment.sh."""
    make_shared_folder(site.shared, backend="numpy")  # for its cache of compiled code is empty
    folder = {"RNTK_HOME": "/srv/rntk", "RNTK_TLS": TLS, "SLURM_CPUS_PER_TASK": "1"}
    mounts = {"/srv/rntk": "data", TLS: "tls"}
    job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    hour = {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    workers = replace(slurm("workers.sbatch", **folder, **job, **hour), mounts=mounts)
    scheduler = replace(slurm("scheduler.sbatch", **folder), mounts=mounts)
    site.start("scheduler", scheduler, "client")
    for worker in ("worker-1", "worker-2"):
        site.start(worker, workers, "client")
    wait_until((site.shared / "scheduler.json").exists, "a scheduler")
    (submit,) = commands_in(DEPLOY / "README.md", "on_cluster")
    client = replace(scheduler, cwd="/srv/rntk")
    sourced = f"source {DEPLOY}/slurm/environment.sh && {' '.join(inside(submit, 'on_cluster'))}"
    submitted = site.run("client", client.running("bash", "-c", sourced), "client")
    assert submitted.returncode == 0, submitted.stderr
    status = ("rntk-dist", "status", "gram.zarr", "--wait", "--json")
    ended = site.run("client", client.running(*status), "client")
    assert json.loads(ended.stdout)["state"] == "done"
    assert_same_bits_as_here(site.shared, tmp_path)
