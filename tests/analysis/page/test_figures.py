"""What the figures of an analysis draw: their lines and squares against the results, and one page with all drawn."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "evals" / "page"))
import made
from folders import PNG, parsed, read

from rnope.analysis.page import heads, layers, mass, positions, write_pages
from rnope.analysis.page.view import View
from rnope.analysis.results import ALL
from rnope.report import draw

HYBRID = ["rope-window", "rope-window", "rope-window", "nope"]
STRANGE = "<img src=x onerror=a()> | $x_1$ `b` [c](d) 鎖 _e"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is made, in place of its pixels."""
    found: list[Any] = []
    monkeypatch.setattr(draw, "png", lambda figure: found.append(figure) or PNG)
    return found


def view(*models: made.AnalysedModel, lengths: tuple[int, ...] = (8192, 32768)) -> View:
    return View(made.results(models, lengths))


def panels(figure: Any) -> dict[str, Any]:
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}


def test_mass_against_length(figures: list[Any]) -> None:
    assert mass.against_length(view(made.model("m", HYBRID))) is not None
    found = panels(figures[0])
    assert list(found) == ["all layers", "NoPE"]  # no windowed layer reaches the needle
    line, *_, uniform = found["NoPE"].get_lines()
    assert list(line.get_xdata()) == [8192, 32768]  # a single model is not shifted
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), [0.09, 0.0225])
    np.testing.assert_allclose(uniform.get_ydata(), [made.NEEDLE / 8192, made.NEEDLE / 32768])
    (bars,) = [each for each in found["NoPE"].collections if isinstance(each, LineCollection)]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.081, 0.099])


def test_one_length_is_no_line(figures: list[Any]) -> None:
    assert mass.against_length(view(made.model("m", HYBRID), lengths=(8192,))) is None


def test_distributions_end_at_the_window_and_mark_the_needle(figures: list[Any]) -> None:
    shown = view(made.model("m", HYBRID, window=2048), lengths=(8192,))
    positions.draw_spreads(shown, (ALL, "nope", "rope-window"))
    found = panels(figures[0])
    assert list(found) == ["8k, all layers", "8k, NoPE", "8k, windowed RoPE"]
    assert "moving average of 100" in figures[0].axes[0].get_ylabel()
    spread = shown.models[0].at(8192, "nope").spread  # type: ignore[union-attr]
    lines = {len(line.get_xdata()): line for line in found["8k, NoPE"].get_lines()}
    np.testing.assert_array_equal(lines[200].get_ydata(), spread.values)
    windowed = next(line for line in found["8k, windowed RoPE"].get_lines() if len(line.get_xdata()) == 200)
    seen = np.asarray(windowed.get_xdata())[np.isfinite(np.asarray(windowed.get_ydata(), dtype=float))]
    assert seen.min() >= 8192 - 2048
    marks = [line.get_xdata()[0] for line in found["8k, NoPE"].get_lines() if len(set(line.get_xdata())) == 1]
    assert marks == [4096 + made.NEEDLE / 2] and [text.get_text() for text in found["8k, NoPE"].texts] == [" needle"]


def test_a_window_with_nothing_to_show(figures: list[Any]) -> None:
    positions.draw_spreads(view(made.model("m", HYBRID, window=64), lengths=(8192,)), ("nope", "rope-window"))
    found = panels(figures[0])
    (text,) = found["8k, windowed RoPE"].texts
    assert text.get_text() == "its window is in\nwhat is left out"
    low, high = found["8k, NoPE"].get_ylim()  # the empty panel beside it does not change its axis
    assert 1e-5 < low < 5e-5 and 5e-4 < high < 2e-3
    assert "0.0001" in [tick.get_text() for tick in found["8k, NoPE"].get_yticklabels()]


def test_all_panels_of_a_length_are_in_the_axis_that_they_share(figures: list[Any]) -> None:
    results = made.results([made.model("m", HYBRID, window=7000)], (8192,))
    tall, falling = 0.01, 1e-12
    for kind, values in (("nope", (2e-4, 1e-4)), ("rope-window", (falling, tall))):
        (found,) = [each for each in results.lengths[0].kinds if each.kind == kind]
        object.__setattr__(found, "spread", replace(found.spread, positions=(2000.0, 6000.0), values=values))
    positions.draw_spreads(View(results), ("nope", "rope-window"))
    low, high = panels(figures[0])["8k, NoPE"].get_ylim()
    assert high > tall and low == pytest.approx(0.8e-3 / 8192)


def test_heat_maps_are_layers_by_heads_and_grey_out_of_reach(figures: list[Any]) -> None:
    shown = view(made.model("m", HYBRID, heads=8), lengths=(8192,))
    model = shown.models[0]
    heads.heat(shown, model, model.lengths[8192], top=0.7)
    found = panels(figures[0])
    assert list(found) == ["mass of needle", "retrieval score", "sink"]
    for title, name in (("mass of needle", "mass.needle"), ("retrieval score", "retrieval"), ("sink", "sink")):
        (image,) = found[title].get_images()
        grid = np.ma.filled(image.get_array(), np.nan)
        assert grid.shape == (4, 8)
        assert np.isnan(grid[:3]).all()
        np.testing.assert_array_equal(grid[3], model.lengths[8192].layers[3].heads[name])
    strip = found["sink"].child_axes[0]
    assert strip.get_images()[0].get_array()[:, 0].tolist() == [3, 3, 3, 0]


def test_heat_maps_of_layers_with_unlike_heads_and_of_none(figures: list[Any]) -> None:
    results = made.results([made.model("m", ["rope", "rope"])], (1024,))
    (found,) = results.lengths
    few = {name: values[:2] for name, values in found.layers[1].heads.items()}
    object.__setattr__(found.layers[1], "heads", few)
    shown = View(results)
    heads.heat(shown, shown.models[0], found, top=1.0)
    grid = np.ma.filled(panels(figures[0])["sink"].get_images()[0].get_array(), np.nan)
    assert np.isnan(grid).tolist() == [[False] * 4, [False, False, True, True]]
    for layer in found.layers:
        object.__setattr__(layer, "heads", dict.fromkeys(layer.heads, (None, None)))
    assert heads.heat(shown, shown.models[0], found, top=1.0) is None


def test_spans_by_layer(figures: list[Any]) -> None:
    layers.spans(view(made.model("m", HYBRID, window=4096), lengths=(8192,)))
    axis = panels(figures[0])["m"]
    line, window = axis.get_lines()
    np.testing.assert_allclose(line.get_ydata(), [0.02 * 8192] * 3 + [0.8 * 8192])
    assert list(window.get_ydata()) == [4096, 4096]


def test_a_page_with_everything_drawn_and_strange_names(tmp_path: Path) -> None:
    models = [made.model(STRANGE, HYBRID, class_name="<script>"), made.model("鎖", ["rope"] * 2)]
    written = write_pages(made.results(models, (8192,), extra=("$a_1$ <b>",)), tmp_path)
    assert all(path.read_bytes().startswith(PNG) for path in written[2:])
    page, markdown = read(tmp_path)
    parsed(page)
    prose = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))  # the rest is code
    for text in (page, prose):
        assert not any(tag in text for tag in ("<img src=x", "<script>", "<b>"))
    assert {path.name for path in written if "heads" in path.name} == {
        "heads-img-src-x-onerror-a-x_1-b-c-d-_e-8192.png",
        "heads-model-2-8192.png",
    }
