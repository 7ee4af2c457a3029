"""How many kernels of a method's grid a data set can afford, by a count of work and not by a clock.

The same data set gets the same kernels on every machine. The constants are those of one core of an
ordinary machine; they need only be right in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rntk_dist.experiments.methods import MEAN_WORK, Method, Variant
from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences
from rntk_dist.solve.selection import Procedure

PAIR_STEP = 5e-9
"""Seconds for a pair of sequences and a step, one layer, one direction, one feature."""

MEAN_PAIR_STEP = 1e-8
"""The same for a pair of steps, of which readout "mean" takes T² a pair of sequences."""

FEATURE = 0.2
"""What each further feature adds to a pair-step, in pair-steps."""

FIT, FIT_PAIR, FIT_CLASSES = 2e-4, 2.5e-8, 5e-6
"""Seconds of a support vector machine: whatever its size, by n², and by the square of classes."""


@dataclass(frozen=True)
class Budget:
    """Seconds of one core that selection may take on a data set.

    `paper` is for the paper's method with its 900 kernels, `other` for each other method, and
    `mean_work` bounds a matrix of the readout "mean": see `methods`. `trained` is for each kind of
    trained network, the last fits included: see `networks`.
    """

    other: float
    paper: float
    mean_work: float = MEAN_WORK
    trained: float = 32.0


FULL = Budget(other=4.0, paper=2000.0)
"""All of the paper's 900 kernels on up to 600 training sequences; 73 data sets, with networks, in
some 5.2 core-hours."""

QUICK = Budget(other=0.4, paper=1.2, mean_work=1e7, trained=15.0)
"""8 small data sets within 3 minutes."""


def affordable(
    method: Method, train: Sequences, procedures: tuple[Procedure, ...], seconds: float
) -> Method:
    """The method with as many of its variants as the seconds suffice for, at least the first.

    Which ones are left is the same for all data sets of the same number: the first, and then a
    fixed random order. They keep the order of the grid.
    """
    costs = [_kernel_seconds(variant, train) for variant in method.variants]
    fits = fit_seconds(train, procedures)
    order = [0, *(1 + np.random.default_rng(0).permutation(len(costs) - 1))]
    spent = np.cumsum([costs[i] + fits for i in order])
    count = max(1, int((spent <= seconds).sum()))
    kept = sorted(int(i) for i in order[:count])
    return Method(method.name, tuple(method.variants[i] for i in kept))


def fit_seconds(train: Sequences, procedures: tuple[Procedure, ...], folds: int = 10) -> float:
    """Of cross-validation on one matrix, for all procedures and strengths."""
    strengths = sum(len(procedure.machine.strengths) for procedure in procedures)
    classes = 1 if train.labels is None else len(np.unique(train.labels))
    one = FIT + FIT_PAIR * len(train) ** 2 + FIT_CLASSES * classes**2
    # About half of the strengths are so weak that a stronger one has given their machine.
    return one * folds * strengths / 2


def _kernel_seconds(variant: Variant, train: Sequences) -> float:
    """Of the matrix of the training samples."""
    kernel = variant.kernel
    if not isinstance(kernel, RNTK):
        return PAIR_STEP * len(train) ** 2
    steps, features = variant.inputs.shape(train)
    work = MEAN_PAIR_STEP * steps**2 if kernel.readout == "mean" else PAIR_STEP * steps
    passes = kernel.depth * (2 if kernel.bidirectional else 1)
    return work * len(train) ** 2 / 2 * passes * (1 + FEATURE * (features - 1))
