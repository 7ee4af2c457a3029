"""The recurrent neural tangent kernel at scale: exact, tiled, resumable, on Dask and Zarr."""

from importlib.metadata import version

from rntk_dist import plot
from rntk_dist.failures import SchedulerLostError, StoreUnavailableError
from rntk_dist.gram import Gram, IncompleteGramError, gram, open_gram
from rntk_dist.job import Job, JobInterruptedError, NoJobError, connect, jobs, submit
from rntk_dist.job_record import JobStatus
from rntk_dist.kernel import RNTK
from rntk_dist.lease import LeaseLostError, StoreBusyError
from rntk_dist.sequences import Sequences
from rntk_dist.store import IdentityError
from rntk_dist.sweep import Sweep, open_sweep, sweep
from rntk_dist.verify import Verification, repair, verify

__version__ = version("rntk_dist")

__all__ = [
    "RNTK",
    "Gram",
    "IdentityError",
    "IncompleteGramError",
    "Job",
    "JobInterruptedError",
    "JobStatus",
    "LeaseLostError",
    "NoJobError",
    "SchedulerLostError",
    "Sequences",
    "StoreBusyError",
    "StoreUnavailableError",
    "Sweep",
    "Verification",
    "__version__",
    "connect",
    "gram",
    "jobs",
    "open_gram",
    "open_sweep",
    "plot",
    "repair",
    "submit",
    "sweep",
    "verify",
]
