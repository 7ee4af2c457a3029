"""Compute a job file on SLURM: dask-jobqueue submits the workers.

    source environment.sh
    python jobqueue.py job.toml --jobs 8 --cores 16

The scheduler runs in this process: start it where it may stay, in a batch job of its own or on a
login node that allows it. What sbatch wants at a site (an account, a partition), dask-jobqueue
reads from ~/.config/dask/jobqueue.yaml. When this ends for any reason, so do the workers; started
again, it goes on with what is stored.
"""

import argparse
import os

from dask_jobqueue import SLURMCluster
from distributed import Client, Security

import rntk_dist as rd
from rntk_dist.job_file import JobFile

GIB_PER_CORE = 2


def slurm_cluster(cores: int, interface: str | None, cache: str) -> SLURMCluster:
    """A scheduler in this process; each of its jobs is so many worker processes of one thread."""
    return SLURMCluster(
        cores=cores,
        processes=cores,
        memory=f"{GIB_PER_CORE * cores}GiB",
        walltime="02:00:00",
        interface=interface,
        security=Security(),  # TLS, as environment.sh has set it
        protocol="tls://",
        # In good order before the time is up.
        worker_extra_args=["--lifetime", "112m", "--lifetime-stagger", "4m", "--no-dashboard"],
        death_timeout=300,
        job_extra_directives=["--requeue"],
        job_script_prologue=[f"export NUMBA_CACHE_DIR={cache}"],
        local_directory=os.environ.get("TMPDIR", "/tmp"),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    )


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Compute a job file on SLURM.")
    parser.add_argument("job", help="a job file (.toml, .yaml)")
    parser.add_argument("--jobs", type=int, default=8, help="SLURM jobs, at work or in line")
    parser.add_argument("--cores", type=int, default=8, help="cores of a SLURM job")
    return parser.parse_args()


def main() -> None:
    """Read the job file, and compute it."""
    given = options()
    job = JobFile.read(given.job)
    interface, cache = os.environ["RNTK_INTERFACE"] or None, os.environ["NUMBA_CACHE_DIR"]
    with slurm_cluster(given.cores, interface, cache) as cluster, Client(cluster) as client:
        # As many at all times, others in place of those that end. Dask's load would ask for fewer,
        # for two tiles a worker are in flight, whatever there is to do.
        cluster.adapt(minimum_jobs=given.jobs, maximum_jobs=given.jobs)
        client.wait_for_workers(1)  # for as long as the line is
        gram = rd.gram(
            job.kernel,
            *job.sequences(),
            store=job.store,
            kind=job.kind,
            client=client,
            tile=job.tile,
            dtype=job.dtype,
            backend=job.backend,
        )
    print(gram)


if __name__ == "__main__":
    main()
