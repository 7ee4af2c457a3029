"""The recurrent neural tangent kernel at scale: exact, tiled, resumable, on Dask and Zarr."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rntk_dist import plot
from rntk_dist.failures import SchedulerLostError, StoreUnavailableError
from rntk_dist.gram import Gram, IncompleteGramError, gram, open_gram
from rntk_dist.job import Job, JobInterruptedError, NoJobError, connect, jobs, submit
from rntk_dist.job_record import JobStatus
from rntk_dist.kernel import RNTK
from rntk_dist.lease import LeaseLostError, StoreBusyError
from rntk_dist.neighbors import Neighbors, neighbors, open_neighbors
from rntk_dist.sequences import Sequences
from rntk_dist.store import IdentityError
from rntk_dist.sweep import Sweep, open_sweep, sweep
from rntk_dist.verify import Verification, repair, verify

if TYPE_CHECKING:
    from rntk_dist.estimators import (
        RNTKClassifier,
        RNTKGaussianProcess,
        RNTKRegressor,
        RNTKTransformer,
        to_aeon_metric,
        to_sktime_kernel,
    )

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
    "Neighbors",
    "NoJobError",
    "RNTKClassifier",
    "RNTKGaussianProcess",
    "RNTKRegressor",
    "RNTKTransformer",
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
    "neighbors",
    "open_gram",
    "open_neighbors",
    "open_sweep",
    "plot",
    "repair",
    "submit",
    "sweep",
    "to_aeon_metric",
    "to_sktime_kernel",
    "verify",
]

_ESTIMATORS = (
    "RNTKClassifier",
    "RNTKGaussianProcess",
    "RNTKRegressor",
    "RNTKTransformer",
    "to_aeon_metric",
    "to_sktime_kernel",
)


def __getattr__(name: str) -> Any:
    """The estimators, when first asked for: scikit-learn takes a second, and workers need none."""
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module("rntk_dist.estimators"))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
