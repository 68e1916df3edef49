"""Killed at any moment and run again, training ends with the same bits: weights, optimizer state, history, log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnope.compare.learn.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    program = Path(__file__).with_name("kills.py")
    source = str(Path(__file__).parents[3] / "src")
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), source]))
    ran = subprocess.run(
        [sys.executable, program, root], env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return root


def same(a, b):
    """Nested state, bit for bit, but for seconds."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items() if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("stage", "steps"), [("one", 60), ("two", 30)])
def test_a_run_that_was_killed_seven_times_ends_like_one_that_was_not(folder, stage, steps):
    whole, killed = (folder / which / stage for which in ("whole", "killed"))
    a, b = (load_checkpoint(place / "checkpoint.pt") for place in (whole, killed))
    assert a["progress"]["step"] == steps and (stage == "two" or a["progress"]["promotions"])
    for part in a:
        assert same(a[part], b[part]), part
    lines = [[json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()] for place in (whole, killed)]
    assert [line["step"] for line in lines[0]] == list(range(10, steps + 1, 10))
    assert same(*lines)
    assert same(lines[1], b["progress"]["history"])
    assert sorted(p.name for p in killed.iterdir()) == ["checkpoint.pt", "log.jsonl"], "half-written files are removed"


def test_the_comparison_sees_a_difference_of_one_bit(folder):
    a, b = (load_checkpoint(folder / which / "two" / "checkpoint.pt") for which in ("whole", "killed"))
    weight = b["model"]["embedding.weight"]
    weight.view(torch.int32)[0, 0] ^= 1
    assert not same(a["model"], b["model"])
    b["progress"]["history"][1]["loss"] += 1e-12
    assert not same(a["progress"], b["progress"])
