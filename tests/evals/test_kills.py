"""Ten kills at random moments and file operations: the evaluation ends with the same files as without."""

import os
import subprocess
import sys
from pathlib import Path


def program(*arguments):
    source = str(Path(__file__).parents[2] / "src")
    paths = os.pathsep.join(filter(None, [source, str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_an_evaluation_that_was_killed_ends_with_the_same_files():
    ran = program(str(Path(__file__).with_name("kills.py")), "--kills", "10", "--seed", "1")
    assert ran.returncode == 0, ran.stderr
    assert "10 kills" in ran.stdout and "same bits" in ran.stdout


def test_the_kit_sees_an_evaluation_that_loses_answers():
    """A runner that takes begun cells for finished ones must not pass."""
    broken = """
import tempfile
from pathlib import Path
import kills
from rnope.evals import run
original = run._missing
run._missing = lambda store, cell: not store.read(cell.name) and original(store, cell)
with tempfile.TemporaryDirectory() as folder:
    kills.test_kit(12, 1, Path(folder))
"""
    ran = program("-c", broken)
    assert ran.returncode == 1 and "these differ" in ran.stderr, ran.stdout + ran.stderr
