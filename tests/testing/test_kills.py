"""The kill test in its short form; `python -m rnope.testing.kills` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = str(Path(__file__).parents[2] / "src")


def program(*arguments, timeout=300):
    paths = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("way", [[], ["--asynchronous"]], ids=["now", "asynchronous"])
def test_a_run_that_was_killed_ends_with_the_same_bits(way):
    ran = program("-m", "rnope.testing.kills", "--kills", "4", "--seed", "3", *way)
    assert ran.returncode == 0, ran.stderr
    assert "4 kills" in ran.stdout and "same bits" in ran.stdout


def test_the_kit_sees_a_resume_that_goes_wrong():
    """A resume that forgets the optimizer's moments must not pass."""
    broken = """
import sys, tempfile
from pathlib import Path
from rnope.testing import kills
from rnope.train import loop
original = loop.Checkpoints.load
loop.Checkpoints.load = lambda self, step, tensors: original(
    self, step, {name: tensor for name, tensor in tensors.items() if not name.startswith("exp_avg.")})
with tempfile.TemporaryDirectory() as folder:
    kills.test_kit(3, 3, Path(folder))
"""
    ran = program("-c", broken)
    assert ran.returncode == 1 and "these differ" in ran.stderr
