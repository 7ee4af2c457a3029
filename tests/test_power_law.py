"""A power law through points: exact on exact points, and an interval that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from rntk_dist.experiments.power_law import fit

WIDTHS = np.repeat(2.0 ** np.arange(5, 12), 6)


def test_an_exact_law_is_found() -> None:
    law = fit(WIDTHS, 3 * WIDTHS**-0.5)
    assert law.exponent == pytest.approx(-0.5)
    assert law.factor == pytest.approx(3)
    assert law.high - law.low < 1e-6
    np.testing.assert_allclose(law([64.0, 100.0]), [3 / 8, 0.3])


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for confidence in (0.8, 0.95):
        hits = 0
        for _ in range(400):
            law = fit(
                WIDTHS,
                WIDTHS**-0.5 * np.exp(0.5 * rng.normal(size=len(WIDTHS))),
                confidence=confidence,
            )
            hits += law.low < -0.5 < law.high
        # Four standard errors of a share of 400.
        assert abs(hits / 400 - confidence) < 4 * (confidence * (1 - confidence) / 400) ** 0.5


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 2, 4], [1, 0, 2]), ([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [1])]
)
def test_what_is_no_line_is_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="fitted to three or more pairs of positive numbers"):
        fit(x, y)
