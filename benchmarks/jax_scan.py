"""The same kernel as a JAX user would write it: jit and scan over the steps of all pairs.

relu, one layer, one feature, equal lengths, the last step's readout; from the recursion of
docs/mathematics.md in its plain form, which carries the covariance.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tiles import Problem
from benchmarks.timing import Call, installed

TOLERANCE = {"float64": 1e-5, "float32": 5e-2}
"""What the plain form leaves of a number type: a small angle loses half its digits."""


def jax_calls(problem: Problem) -> dict[str, Call]:
    """Compiled whole calls by name, none where JAX is missing.

    Raises ArithmeticError if they compute something else than our kernel.
    """
    tangent_kernel = _compiled(problem)
    if tangent_kernel is None:
        return {}
    exact = problem.kernel(problem.X, problem.Y)
    calls = {}
    for dtype in ("float64", "float32"):
        x, y = (side.values.reshape(len(side), -1).astype(dtype) for side in (problem.X, problem.Y))
        calls[f"JAX {dtype}"] = _call(tangent_kernel, x, y)
        error = np.abs(np.asarray(tangent_kernel(x, y)) - exact).max() / exact.max()
        if not error < TOLERANCE[dtype]:
            raise ArithmeticError(f"JAX in {dtype} is {error:.1e} off the kernel it should equal")
    return calls


def _call(tangent_kernel: Callable[..., Any], x: Any, y: Any) -> Call:
    return lambda: np.asarray(tangent_kernel(x, y))


def _compiled(problem: Problem) -> Callable[..., Any] | None:
    """(n, T), (m, T) -> (n, m), or None where JAX is missing."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if not installed("jax"):
        return None
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    weight, scale = problem.kernel.sigma_w**2, problem.kernel.sigma_u**2

    def dual(k: Any, qx: Any, qy: Any) -> tuple[Any, Any]:
        """E phi phi and E phi' phi' of relu."""
        s = jnp.sqrt(qx[:, None] * qy[None, :])
        cosine = jnp.clip(k / jnp.where(s > 0, s, 1), -1, 1)
        turn = math.pi - jnp.arccos(cosine)
        value = s * (jnp.sqrt(1 - cosine**2) + turn * cosine) / (2 * math.pi)
        return value, turn / (2 * math.pi)

    def step(state: Any, inputs: Any) -> tuple[Any, None]:
        sigma, theta, qx, qy = state
        x, y = inputs
        value, slope = dual(sigma, qx, qy)
        sigma = weight * value + scale * x[:, None] * y[None, :]
        theta = sigma + weight * slope * theta
        qx, qy = weight * qx / 2 + scale * x**2, weight * qy / 2 + scale * y**2
        return (sigma, theta, qx, qy), None

    @jax.jit
    def tangent_kernel(x: Any, y: Any) -> Any:
        zeros = jnp.zeros((len(x), len(y)), x.dtype)
        start = (zeros, zeros, jnp.zeros_like(x[:, 0]), jnp.zeros_like(y[:, 0]))
        (sigma, theta, qx, qy), _ = jax.lax.scan(step, start, (x.T, y.T))
        value, slope = dual(sigma, qx, qy)
        return value + slope * theta

    return tangent_kernel
