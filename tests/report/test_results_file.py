"""The results file: saved and loaded without loss, refused when it is another's, and described field by field."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from rnope import results as module
from rnope.errors import ConfigError, UserError
from rnope.results import Results, student, t_quantile, wilson

DOCS = Path(__file__).parents[2] / "docs" / "results.md"


def test_round_trip(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "a" / "results.json"
    results.save(path)
    assert Results.load(path) == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_another_version_is_refused(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    dataclasses.replace(results, version=99).save(path)
    with pytest.raises(UserError, match="version 99; this rnope reads versions 1 and 2"):
        Results.load(path)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{"])
def test_what_is_no_results_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.json"):
        Results.load(path)


def test_a_missing_file_and_an_unknown_key(results: Results, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Results.load(tmp_path / "none.json")
    path = tmp_path / "results.json"
    results.save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["needles"]["columns"][data["needles"]["columns"].index("score")] = "skore"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"needles\[0\].*score"):
        Results.load(path)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.25527, 0.36623),
        (0, 0, 0.0, 1.0),
    ],
)  # the fourth: Newcombe 1998, table I
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("degrees", [1, 2, 7, 30, 31, 60, 500])
def test_quantiles_leave_two_and_a_half_percent_above(degrees: int) -> None:
    """By the integral of the density itself."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    at = np.linspace(0, t_quantile(degrees), 20_001)
    density = math.exp(log_scale) * (1 + at**2 / degrees) ** (-(degrees + 1) / 2)
    inside = float(((density[1:] + density[:-1]) / 2).sum() * (at[1] - at[0]))
    assert inside == pytest.approx(0.475, abs=2e-5)


def test_a_single_number_has_no_interval() -> None:
    assert student([0.5]) is None


def test_every_field_is_described() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for cls in vars(module).values():
        if dataclasses.is_dataclass(cls) and isinstance(cls, type):
            (section,) = [part for part in text.split("\n## ") if part.startswith(f"`{cls.__name__}`")]
            for field in dataclasses.fields(cls):
                assert f"| `{field.name}` |" in section, f"{cls.__name__}.{field.name}"
