"""The paper's numbers: each row as the paper prints it, and masses that add up to one."""

import os
from pathlib import Path

import pytest

from rnope.model.spec import VARIANTS
from rnope.report import paper

TEXT = Path(os.environ.get("RNOPE_PAPER_TEXT", "paper.txt"))
"""The paper's text, its tables' cells parted by tabs; not part of the repository."""


def _same(ours: str, theirs: str) -> bool:
    try:
        return float(ours) == float(theirs) and ours.lstrip("0") == theirs.lstrip("0")
    except ValueError:
        return ours == theirs


@pytest.mark.skipif(not TEXT.exists(), reason="set RNOPE_PAPER_TEXT to a file with the paper's text")
@pytest.mark.parametrize("table", paper.TABLES, ids=lambda table: f"table {table.number}")
def test_every_row_is_in_the_paper(table: paper.PaperTable) -> None:
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith(f"Table {table.number}:"))
    block = [line.split("\t") for line in lines[end - 26 : end] if "\t" in line]
    length, printed = "", []
    for cells in block:
        length = cells[0] or length
        printed.append([length, *cells[1:]])
    printed = printed[-len(table.rows) :]
    assert len(printed) == len(table.rows)
    for ours, theirs in zip(table.rows, printed, strict=True):
        assert len(ours) == len(theirs) and all(map(_same, ours, theirs)), (ours, theirs)


@pytest.mark.skipif(not TEXT.exists(), reason="set RNOPE_PAPER_TEXT to a file with the paper's text")
def test_raw_scores_are_in_the_captions() -> None:
    text = TEXT.read_text(encoding="utf-8")
    for model, scores in paper.RAW_SCORES.items():
        for length, score in scores.items():
            name = "Baseline model" if model == "Baseline" else model
            assert f"{name} up to {length}. The raw score is {score}" in text


def test_masses_add_up_to_one() -> None:
    found = 0
    for variant in VARIANTS:
        for kind in ("nope", "rope-window"):
            for length in paper.LENGTHS:
                mass = paper.mass(variant, kind, length)
                if mass is not None:
                    found += 1
                    assert sum(mass.values()) == pytest.approx(1, abs=0.0035), (variant, kind, length)
    assert found > 30


def test_counterparts() -> None:
    assert paper.mass("rope", "rope", "128k") == {"begin": 0.3463, "needle": 0.0010, "context": 0.4751, "qc": 0.1776}
    assert paper.mass("nope", "nope", "128k") == {"begin": 0.0846, "needle": 0.0073, "context": 0.8156, "qc": 0.0925}
    assert paper.mass("qk-norm", "rope+qk-norm", "8k") == {
        "begin": 0.0242,
        "needle": 0.0173,
        "context": 0.8020,
        "qc": 0.1565,
    }
    assert paper.mass("rnope-swa", "nope", "32k") == {
        "begin": 0.3303,
        "needle": 0.0742,
        "context": 0.5634,
        "qc": 0.0321,
    }
    assert paper.mass("rnope-swa", "rope-window", "32k") is None
    assert paper.mass("swa-rope", "rope", "8k") is None and paper.raw_scores("swa-rope") is None
    assert paper.raw_scores("rope") == ("Baseline", {"128k": "9.99", "256k": "8.25"})


def test_table_3_and_8_agree_on_rope() -> None:
    for length in paper.LENGTHS:
        assert paper.TABLE_3.row(length, "RoPE")[2:] == paper.TABLE_8.row(length, "RoPE")[6:]
