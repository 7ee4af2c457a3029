"""The faces for scikit-learn, sktime and aeon.

Estimators take (n, T) and (n, T, m) arrays, lists of (T_i,) or (T_i, m) arrays, and `Sequences`.
"""

from rntk_dist.estimators.adapters import KernelDistance, to_aeon_metric, to_sktime_kernel
from rntk_dist.estimators.classifier import RNTKClassifier
from rntk_dist.estimators.gaussian_process import RNTKGaussianProcess
from rntk_dist.estimators.regressor import RNTKRegressor
from rntk_dist.estimators.transformer import RNTKTransformer

__all__ = [
    "KernelDistance",
    "RNTKClassifier",
    "RNTKGaussianProcess",
    "RNTKRegressor",
    "RNTKTransformer",
    "to_aeon_metric",
    "to_sktime_kernel",
]
