"""The results file: names of columns are written once, and both forms are read."""

import json
from dataclasses import replace

import pytest

from rnope.errors import UserError
from rnope.results import LossBin, LossRow, Point, Results, TaskRow
from rnope.strict import to_plain


@pytest.fixture
def results():
    points = tuple(
        Point(arm="a", seed=0, stage="s", step=i, tokens=8 * i, context_tokens=8, loss=1 / (i + 1), accuracy=0.5)
        for i in range(3)
    )
    bins = tuple(LossBin(begin=i, end=i + 16, loss=1.5, low=1.0, high=2.0) for i in (0, 16))
    task = TaskRow(
        arm="a", seed=0, task="niah_single_1", context_tokens=64, n=2, hits=1, score=50.0, low=9.5, high=90.5
    )
    return Results(
        recipe={"columns": ["kept"], "arms": [{"name": "a"}, {"name": "b", "model": {}}]}, scale={}, provenance={},
        arms={"a": "an arm"}, models=(), learning=points, needles=(), attention=(), trials=(), differences=(), verdicts=(),
        tasks=(task,), losses=(LossRow(arm="a", seed=0, context_tokens=32, n=2, bins=bins),) * 2,
    )  # fmt: skip


def test_what_is_saved_is_read_and_names_are_written_once(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    assert Results.load(path) == results
    plain = json.loads(path.read_text())
    assert plain["learning"]["columns"] == list(Point.__dataclass_fields__)
    assert [row[3] for row in plain["learning"]["rows"]] == [0, 1, 2]
    assert plain["losses"]["rows"][0][-1] == {
        "columns": ["begin", "end", "loss", "low", "high"], "rows": [[0, 16, 1.5, 1.0, 2.0], [16, 32, 1.5, 1.0, 2.0]],
    }  # fmt: skip
    assert isinstance(plain["tasks"], list), "a single row stays a table"
    assert plain["recipe"] == results.recipe, "rows of different keys stay tables too"


def test_lists_of_tables_are_read_as_before(results, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(to_plain(results)))
    assert Results.load(path) == results
    path.write_text(json.dumps(to_plain(replace(results, version=1))))
    assert Results.load(path) == replace(results, version=1)


@pytest.mark.parametrize("row", [[1, 2], 3, {"arm": "a"}])
def test_a_row_that_does_not_fit_its_columns_is_refused(results, tmp_path, row):
    path = tmp_path / "results.json"
    results.save(path)
    plain = json.loads(path.read_text())
    plain["learning"]["rows"][1] = row
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"results\.json: rows = .*: must be lists of 8, one for each of the columns"):
        Results.load(path)
