"""The results file: saved and loaded without loss, refused when it is another's, and described field by field."""

import dataclasses
import json
from pathlib import Path

import pytest

from rnope import results as module
from rnope.errors import ConfigError, UserError
from rnope.results import Results

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


def test_every_field_is_described() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for cls in vars(module).values():
        if dataclasses.is_dataclass(cls) and isinstance(cls, type):
            (section,) = [part for part in text.split("\n## ") if part.startswith(f"`{cls.__name__}`")]
            for field in dataclasses.fields(cls):
                assert f"| `{field.name}` |" in section, f"{cls.__name__}.{field.name}"
