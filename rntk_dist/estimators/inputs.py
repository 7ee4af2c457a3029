"""What scikit-learn hands to an estimator, as sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from rntk_dist.sequences import Sequences


def sequences_of(estimator: BaseEstimator, X: Any, *, reset: bool) -> Sequences:
    """X as sequences, checked as scikit-learn checks an estimator's input.

    An array, (n, T) or (n, T, m), a data frame, or lists of equally many numbers in a list are a
    table: its T is `n_features_in_`, and other tables must have the same. A list or object array
    (n,) of arrays is a ragged batch, as is a `Sequences`, or lists of differing lengths: its
    lengths are free, and where they happen to be equal in a fold, that binds nobody.

    Parameters
    ----------
    reset : bool
        Whether the estimator is being fitted.

    Raises
    ------
    ValueError, TypeError
        For NaN or infinity, no sample, a wrong number of dimensions or columns, a sparse or complex
        matrix.
    """
    if not _is_ragged(X):
        table = validate_data(
            estimator, X, reset=reset, dtype=[np.float64, np.float32], allow_nd=True
        )
        return Sequences.from_arrays(table)
    if reset:  # of a table that was fitted before
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return Sequences.from_arrays(X)


def _is_ragged(X: Any) -> bool:
    if isinstance(X, np.ndarray):
        return X.dtype == object and X.ndim == 1
    if not isinstance(X, list | tuple):
        return isinstance(X, Sequences)
    if not all(isinstance(x, list | tuple) for x in X):
        return True
    return len({len(x) for x in X}) != 1
