"""Many kernels side by side: each gives what it gives alone, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel import many
from rntk_dist.kernel.arrays import Recursion, diagonal_values
from rntk_dist.kernel.many import many_values
from rntk_dist.kernel.variances import make_slab, make_slabs, stacked

KERNELS = [
    RNTK(),
    RNTK(sigma_w=1.3, sigma_b=0.2),
    RNTK(sigma_w=1.4, sigma_b=0.7, normalize=True),
    RNTK(depth=3, frozen_layers=1, sigma_b=0.1, readout="per_step"),
    RNTK(depth=3, frozen_layers=1, sigma_b=0.3, sigma_w=1.2, readout="per_step"),
    RNTK(activation="erf", sigma_h=0.4, readout="mean"),
    RNTK(activation="erf", sigma_h=0.2, sigma_u=2.0, readout="mean"),
    RNTK(bidirectional=True, initial_state="independent", sigma_h=1.0),
    RNTK(bidirectional=True, initial_state="independent", sigma_h=0.1, sigma_v=3.0),
]


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(5)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 12, 17)])


@pytest.mark.parametrize("stack", [2**17, 300, 1])
@pytest.mark.parametrize("columns", [0, 6])
@pytest.mark.parametrize(("kind", "dtype"), [("ntk", "float64"), ("nngp", "float32")])
def test_values_are_those_of_each_kernel_alone(
    X: Sequences, monkeypatch: pytest.MonkeyPatch, stack: int, columns: int, kind: Any, dtype: str
) -> None:
    monkeypatch.setattr(many, "STACK_STEPS", stack)
    rows, cols = X[columns:], X[:columns] if columns else None
    how: Any = {"kind": kind, "dtype": np.dtype(dtype), "backend": "numpy"}
    found = dict(many_values(KERNELS, rows, cols, **how))
    assert sorted(found) == list(range(len(KERNELS)))
    for i, kernel in enumerate(KERNELS):
        np.testing.assert_array_equal(found[i], kernel(rows, cols, **how))


def test_one_that_overflows_leaves_the_others_as_they_are(X: Sequences) -> None:
    kernels = [RNTK(sigma_w=1.3), RNTK(sigma_w=1e100), RNTK(sigma_w=1.2), RNTK(sigma_w=1e10)]
    how: Any = {"kind": "ntk", "dtype": np.dtype("float32"), "backend": "numpy"}
    found = dict(many_values(kernels, X, **how))
    for i in (0, 2):
        np.testing.assert_array_equal(found[i], kernels[i](X, **how))
    for i, what in ((1, "variance of sequence"), (3, "exceeds float32")):
        error = found[i]
        assert isinstance(error, OverflowError)
        assert what in str(error)


def test_a_stack_is_its_slabs_one_after_another(X: Sequences) -> None:
    kernels = [KERNELS[3], KERNELS[4]]
    slabs = make_slabs(kernels, X)
    for kernel, slab in zip(kernels, slabs, strict=True):
        np.testing.assert_array_equal(slab.scale, make_slab(kernel, X).scale)
    whole, recursion = stacked(slabs), kernels[0].recursion("ntk")
    parts = [diagonal_values(recursion, slab) for slab in slabs]
    np.testing.assert_array_equal(diagonal_values(recursion, whole), np.concatenate(parts))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.activation == "relu"], ids=repr)
@pytest.mark.parametrize("tangent", [True, False])
def test_self_values_are_those_of_equal_samples(X: Sequences, kernel: RNTK, tangent: bool) -> None:
    """The short way for relu against the loop over pairs, which knows nothing of it."""
    shared = replace(kernel, initial_state="shared", normalize=False)
    kind: Any = "ntk" if tangent else "nngp"
    recursion: Recursion = shared.recursion(kind)
    slab = make_slab(shared, X)
    across = shared(X, X, kind=kind, backend="numpy")
    own = diagonal_values(recursion, slab) * slab.scale**2
    np.testing.assert_allclose(own, np.diagonal(across), rtol=1e-15)
