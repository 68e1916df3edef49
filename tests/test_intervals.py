"""Intervals against published values and against the integral of the density."""

import math

import numpy as np
import pytest

from rnope.intervals import student, t_quantile, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.25527, 0.36623),
        (0, 0, 0.0, 1.0),
    ],
)  # the fourth: Newcombe 1998, table I
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("degrees", [1, 2, 7, 30, 31, 60, 500])
def test_quantiles_leave_two_and_a_half_percent_above(degrees: int) -> None:
    """By the integral of the density itself."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    at = np.linspace(0, t_quantile(degrees), 20_001)
    density = math.exp(log_scale) * (1 + at**2 / degrees) ** (-(degrees + 1) / 2)
    inside = float(((density[1:] + density[:-1]) / 2).sum() * (at[1] - at[0]))
    assert inside == pytest.approx(0.475, abs=2e-5)


def test_a_single_number_has_no_interval() -> None:
    assert student([0.5]) is None
