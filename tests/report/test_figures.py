"""Figures: drawn, of a sensible size, not blank, and in colours that mean one arm each."""

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from rnope.report import draw
from rnope.report.curves import curve
from rnope.report.figures import _heat, _means
from rnope.report.gate import Gate, pooled
from rnope.results import Results

NAMES = ("score", "heat", "learning", "attention", "spread", "spread-kinds", "loss", "cost", "not-learned")


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_not_blank(failed_report: Path, name: str) -> None:
    image = matplotlib.image.imread(failed_report / "figures" / f"{name}.png")
    height, width, _ = image.shape
    assert 200 < height < 2500 and 450 < width < 1800
    ink = (image[..., :3].min(axis=2) < 0.95).mean()
    assert 0.01 < ink < 0.9


def test_an_arm_keeps_its_colour_whatever_the_others_are() -> None:
    assert draw.styles(["x", "rope", "nope"])["rope"] == draw.styles(["rope"])["rope"]
    many = draw.styles(["rope", "rope-extended", "rnope-swa", "swa-rope", "rnope", "qk-norm", "nope", "a", "b", "c"])
    assert len({colour for colour, _ in many.values()}) == len(many)


def test_learning_curves_add_up_over_stages(results: Results) -> None:
    points = curve(results, "rope-extended", 0)
    assert points[-1][0] == 880 and points[-1][1].stage == "extend"
    assert [step for step, _ in points] == sorted(step for step, _ in points)


def test_heat_maps_pool_competent_seeds(results: Results, failed: Results) -> None:
    gate = Gate(failed)
    cells = pooled(row for row in gate.needles() if row.arm == "swa-rope")
    assert {cell.n for cell in cells.values()} == {60}
    cells = pooled(row for row in Gate(results).needles() if row.arm == "swa-rope")
    assert {cell.n for cell in cells.values()} == {120}


def test_a_mean_has_every_seed_in_it(results: Results) -> None:
    rows = [r for r in Gate(results).needles() if r.arm == "rnope-swa"]
    assert set(_means(rows)) == {r.context_tokens for r in rows}
    assert 262_144 not in _means([r for r in rows if (r.seed, r.context_tokens) != (1, 262_144)])


def test_a_heat_map_of_one_arm_with_ragged_cells(results: Results) -> None:
    rows = [r for r in results.needles if r.arm == "rnope-swa"]
    ragged = [replace(r, cells=r.cells[: 3 + i % 3]) for i, r in enumerate(rows)]
    data = _heat(Gate(replace(results, needles=tuple(ragged))))
    assert data is not None and matplotlib.image.imread(io.BytesIO(data)).shape[0] > 150
