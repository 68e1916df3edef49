"""The meter of memory: what was taken and given back again counts, and what there was before does not."""

import sys

import numpy as np
import pytest

from rnope.analysis.peak import Peak

MEGABYTE = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the process's peak is known on Linux alone")
def test_the_most_since_the_reset_counts():
    kept = np.ones(48 * MEGABYTE, dtype=np.uint8)
    peak = Peak("cpu")
    peak.reset()
    taken = np.ones(64 * MEGABYTE, dtype=np.uint8)
    del taken
    first = peak.taken()
    peak.reset()
    second = peak.taken()
    assert 60 * MEGABYTE < first < 80 * MEGABYTE and second < 16 * MEGABYTE
    assert kept.all()
