"""The recurrent neural tangent kernel at scale: exact, tiled, resumable, on Dask and Zarr."""

from importlib.metadata import version

from rntk_dist.gram import Gram, IncompleteGramError, gram, open_gram
from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences
from rntk_dist.store import IdentityError

__version__ = version("rntk_dist")

__all__ = [
    "RNTK",
    "Gram",
    "IdentityError",
    "IncompleteGramError",
    "Sequences",
    "__version__",
    "gram",
    "open_gram",
]
