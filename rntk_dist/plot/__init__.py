"""Pictures of Gram matrices and kernels; they need matplotlib (`pip install 'rntk_dist[plot]'`).

Each function draws into `ax`, or into a new pyplot figure, and returns the axes. Matplotlib is
imported when the first picture is drawn: a worker that imports the package does not wait for it.
"""

from rntk_dist.plot.convergence import (
    convergence,
    courses,
    deviation,
    save_convergence,
    save_training,
)
from rntk_dist.plot.curves import save_sweep_curves, sweep_curves
from rntk_dist.plot.decisions import profiles, save_decisions, save_profiles
from rntk_dist.plot.eigen import kernel_pca, spectrum
from rntk_dist.plot.matrix import heat_map, save_heat_map, tile_map
from rntk_dist.plot.ranks import critical_difference, save_critical_difference
from rntk_dist.plot.steps import sensitivity

__all__ = [
    "convergence",
    "courses",
    "critical_difference",
    "deviation",
    "heat_map",
    "kernel_pca",
    "profiles",
    "save_convergence",
    "save_critical_difference",
    "save_decisions",
    "save_heat_map",
    "save_profiles",
    "save_sweep_curves",
    "save_training",
    "sensitivity",
    "spectrum",
    "sweep_curves",
    "tile_map",
]
