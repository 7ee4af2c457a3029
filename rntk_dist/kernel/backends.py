"""Which loops compute a tile: NumPy's arrays, Numba's on the CPU, or CUDA's on a GPU.

What a backend needs is imported when it is first asked for: Numba takes longer to load than many a
small matrix to compute, and CuPy is there only where a GPU is.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from rntk_dist.kernel.arrays import Recursion, block_edge, tile_values
from rntk_dist.kernel.variances import Array, Slab

TileValues = Callable[[Recursion, Slab, Slab | None], Array]
"""Values of a tile in units of the product of two sequences' scales; see `arrays.tile_values`."""


def tile_function(backend: str) -> TileValues:
    """The loops of a backend; "auto" takes the fastest that works here.

    Raises
    ------
    ImportError
        If a backend is asked for by name and what it needs is not installed.
    """
    name = fastest_backend() if backend == "auto" else backend
    if name == "cupy":
        from rntk_dist.kernel.fused_gpu import gpu_tile_values

        return gpu_tile_values
    if name == "numba":
        from rntk_dist.kernel.fused_cpu import fused_tile_values

        return fused_tile_values
    return _array_tile_values


@cache
def fastest_backend() -> str:
    """What "auto" is on this machine: "cupy" where CuPy sees a GPU, else "numba", else "numpy"."""
    from rntk_dist.kernel.fused_gpu import gpu_is_seen

    if gpu_is_seen():
        return "cupy"
    return "numpy" if find_spec("numba") is None else "numba"


def _array_tile_values(recursion: Recursion, rows: Slab, columns: Slab | None) -> Array:
    dtype = rows.directions[0].output.dtype
    return tile_values(recursion, rows, columns, edge=block_edge(dtype))
