"""What the system says of a process, and a system that says nothing."""

import sys

import numpy as np
import pytest

from rnope import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says it")
def test_memory_that_is_used_is_resident():
    before = memory.status_bytes("VmRSS")
    held = np.ones(1 << 26, dtype=np.uint8)
    assert held.nbytes * 0.9 < memory.status_bytes("VmRSS") - before < held.nbytes * 1.2
    assert memory.status_bytes("VmHWM") >= memory.status_bytes("VmRSS")
    assert memory.status_bytes("VmNothing") == 0


def test_a_system_without_it(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert memory.status_bytes("VmRSS") == 0
