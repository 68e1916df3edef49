"""Ten kills at random moments and file operations: the analysis ends with the same samples, arrays and results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_analysis_that_was_killed_ends_as_one_that_was_not():
    source, program = str(Path(__file__).parents[2] / "src"), Path(__file__).with_name("kills.py")
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, str(program), "--kills", "10", "--seed", "1"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "10 kills" in ran.stdout and "same bits" in ran.stdout
