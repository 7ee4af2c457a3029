"""The reference equals the golden numbers, which code independent of the project computed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import both_kernels, reference, reference_matrix

GOLDEN = Path(__file__).parent / "golden"
NOT_OPTIONS = ("a", "b", "ntk", "nngp", "proportional")


def golden(name: str) -> list[Any]:
    cases = json.loads((GOLDEN / f"{name}.json").read_text())
    marks = [pytest.mark.slow] if name == "long" else []
    return [pytest.param(case, id=f"{name}-{i}", marks=marks) for i, case in enumerate(cases)]


@pytest.mark.parametrize("case", golden("short") + golden("long"))
def test_reference_equals_golden(case: dict[str, Any]) -> None:
    options = {name: value for name, value in case.items() if name not in NOT_OPTIONS}
    long = max(len(x) for x in case["a"] + case["b"]) > 20
    rows = [
        [both_kernels(x, y, diagonal_only=long, **options) for y in case["b"]] for x in case["a"]
    ]
    actual = np.array(rows, dtype=float)  # (a, b, 2)
    for i, kind in enumerate(("ntk", "nngp")):
        expected = np.array(case[kind])
        scale = np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
        assert np.all(np.abs(actual[:, :, i] - expected) <= 1e-13 * scale)


@pytest.mark.parametrize("readout", ["last", "per_step"])
def test_the_diagonal_suffices_for_end_aligned_readouts(readout: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 2)), rng.standard_normal((3, 2))
    options: dict[str, Any] = dict(depth=2, readout=readout, sigma_b=0.1, bidirectional=True)
    whole = both_kernels(x, y, **options)
    assert both_kernels(x, y, diagonal_only=True, **options) == whole


def test_one_step_is_the_kernel_of_a_feed_forward_network_by_hand() -> None:
    # Orthogonal unit inputs of 2 features: Sigma = 0, theta = pi/2, V = s/(2 pi), V' = 1/4.
    value = reference([[1.0, 0.0]], [[0.0, 1.0]], sigma_u=2.0)
    assert value == pytest.approx(2.0 / (2 * np.pi), rel=1e-15)
    # Equal inputs, q = 2: V + V' q = q/2 + q/2.
    assert reference([[1.0, 0.0]], [[1.0, 0.0]], sigma_u=2.0) == pytest.approx(2.0, rel=1e-15)


def test_diagonal_authors_by_hand() -> None:
    # Linear, sigma_w = 0: Theta_out[t, t] = 2 x_t y_t, so (2*3 + 2*8 + 2*8) / 2.
    options: dict[str, Any] = dict(activation="linear", sigma_w=0.0)
    options["readout"] = "diagonal_authors"
    assert reference([[1.0], [2.0]], [[3.0], [4.0]], **options) == pytest.approx(19.0)


def test_an_independent_start_counts_only_for_the_same_sample() -> None:
    x = [[0.3], [-0.8]]
    options: dict[str, Any] = dict(sigma_h=0.7, activation="linear", sigma_w=0.9)
    shared = reference_matrix([x, x], **options)
    independent = reference_matrix([x, x], initial_state="independent", **options)
    across = reference_matrix([x], [x], initial_state="independent", **options)
    assert np.all(shared == shared[0, 0])
    assert np.all(np.diag(independent) == shared[0, 0])
    assert independent[0, 1] == independent[1, 0] == across[0, 0] < shared[0, 0]


def test_a_zero_start_gives_numbers_and_a_zero_self_value_normalises_to_zero() -> None:
    zero, one = [[0.0], [0.0]], [[1.0], [0.5]]
    assert np.all(reference_matrix([zero, one])[0] == 0)
    normal = reference_matrix([zero, one], normalize=True)
    assert np.allclose(normal, [[0, 0], [0, 1]], rtol=0, atol=1e-15)
