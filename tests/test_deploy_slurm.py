"""deploy/slurm beside stand-ins for sbatch, scontrol and scancel, on this machine's loopback."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from deployments import DEPLOY, slurm
from sites import (
    assert_same_bits_as_here,
    environment,
    make_certificates,
    make_shared_folder,
    wait_until,
)

pytestmark = pytest.mark.slow

STAND_INS = {
    # Starts the job at once, as a leader of its own group, whose number is that of the job.
    "sbatch": 'cp "$1" "$JOBS/$$.job" && setsid bash "$JOBS/$$.job" >"$JOBS/$$.log" 2>&1 & '
    'echo "$!" >>"$JOBS/started"; echo "Submitted batch job $!"',
    "scancel": 'kill -TERM -- "-$1"',
    "squeue": 'case "$*" in *--jobs=7_3*) date --date="1 hour" +%FT%T ;; esac',
    "scontrol": 'echo "$@" >>"$JOBS/asked"',
}


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Path]:
    """The folder of the stand-ins and of what they note; no job outlives the test."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    yield folder
    started = folder / "started"
    for group in started.read_text().split() if started.exists() else []:
        with suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)


@pytest.fixture
def site_environment(jobs: Path, tmp_path: Path) -> dict[str, str]:
    """What environment.sh leaves to be set, on a machine of one node."""
    own = environment()
    path = {"PATH": f"{jobs}:{own.pop('PATH')}", "JOBS": str(jobs)}
    certificate = make_certificates(tmp_path / "tls") / "client"
    home = {"RNTK_HOME": str(tmp_path / "home"), "RNTK_TLS": str(certificate)}
    cache = os.environ.get("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return {**os.environ, **path, **home, "RNTK_INTERFACE": "lo", "NUMBA_CACHE_DIR": cache}


def batch(script: str, env: dict[str, str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A batch script, started as SLURM does."""
    node = slurm(
        script, SLURM_CPUS_PER_TASK="1", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3", **more
    )
    with log.open("ab") as output:
        return subprocess.Popen(node.command, env={**env, **node.env}, stdout=output, stderr=output)


def test_batch_jobs_end_in_good_order(
    site_environment: dict[str, str], jobs: Path, tmp_path: Path
) -> None:
    """A worker whose time is up queues again; one that is told to go does not."""
    env, file = site_environment, tmp_path / "home" / "scheduler.json"
    log, asked = tmp_path / "log", jobs / "asked"
    scheduler = batch("scheduler.sbatch", env, log)
    try:
        wait_until(file.exists, "a scheduler")
        over = str(int(time.time()))
        at_its_end = batch("workers.sbatch", env, log, SLURM_JOB_END_TIME=over)
        assert at_its_end.wait(timeout=60) == 0, log.read_text()
        assert asked.read_text() == "requeue 7_3\n"
        told_to_go = batch("workers.sbatch", env, log)  # squeue knows when its time is up
        wait_until(lambda: log.read_text().count("Registered to") == 2, "another worker")
        told_to_go.terminate()
        assert told_to_go.wait(timeout=60) == 143, log.read_text()
        assert asked.read_text() == "requeue 7_3\n"
    finally:
        scheduler.terminate()
        assert scheduler.wait(timeout=60) == 143, log.read_text()
    assert not file.exists()
    assert "End scheduler" in log.read_text()


def test_jobqueue_submits_workers(
    site_environment: dict[str, str], jobs: Path, tmp_path: Path
) -> None:
    """The script of dask-jobqueue computes the job, with TLS, and cancels what it has submitted."""
    shared = make_shared_folder(tmp_path / "shared", backend="numpy")
    folder = DEPLOY / "slurm"
    compute = f"python {folder}/jobqueue.py job.toml --jobs 1 --cores 1"
    done = subprocess.run(
        ["bash", "-c", f"source {folder}/environment.sh && exec {compute}"],
        cwd=shared,
        env=site_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    logs = "".join(path.read_text() for path in jobs.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert "tls://127.0.0.1" in logs
    (submitted,) = jobs.glob("*.job")
    assert "#SBATCH --requeue" in submitted.read_text()
    (group,) = (jobs / "started").read_text().split()
    wait_until(lambda: not is_alive(int(group)), "the end of the job")
    assert_same_bits_as_here(shared, tmp_path)


def is_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False
