"""95 % intervals of proportions and of means: what every score and every loss is printed with."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, … degrees of freedom."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as (low, high) in 0 … 1."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of some numbers by Student's t, as (low, high); None for a single number."""
    n = len(values)
    if n < 2:
        return None
    middle, half = float(np.mean(values)), t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return middle - half, middle + half


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1e-4."""
    if degrees <= len(_T975):
        return _T975[degrees - 1]
    z = Z95
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
