"""The runner: what it asks, what it keeps, and going on after interruptions and errors."""

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from toys import ToyModel, ToyScoring, ToySuite, figure

from rnope.errors import ConfigError, UserError
from rnope.evals import run
from rnope.evals.plan import Speed
from rnope.evals.results import SuiteResults, mean_figure
from rnope.evals.run import assemble, evaluate
from rnope.evals.store import Store, stores
from rnope.evals.suite import Cell, Prediction, prompt_digest


def folder(out):
    return out / "toy-model" / "toy"


def files(out):
    """What must not depend on interruptions."""
    found = {p.name: p.read_bytes() for p in folder(out).glob("predictions/*")}
    return found | {"results": (folder(out) / "results.json").read_bytes()}


def test_every_sample_is_asked_once_and_scored(tmp_path):
    model = ToyModel()
    results = evaluate(model, ToySuite(), tmp_path)
    assert len(model.asked) == 10 and len(set(model.asked)) == 10
    assert [cell.name for cell in results.cells] == ["toy-8", "toy-16"]
    for cell in results.cells:
        found = figure(cell.figures, "found")
        assert (found.value, found.n) == (0.6, 5)  # even indices: 0, 2, 4
        assert (cell.samples, cell.errors, cell.answers_cut, cell.facts) == (5, 0, 5, {"repeats": 3.0})
        assert cell.prompt_tokens == cell.context_tokens - 3
    assert results.summary[0].value == pytest.approx(0.6)
    assert SuiteResults.load(folder(tmp_path) / "results.json") == results


def test_a_second_run_asks_nothing_and_changes_nothing(tmp_path):
    first = evaluate(ToyModel(), ToySuite(), tmp_path)
    before = files(tmp_path)
    model = ToyModel()
    assert evaluate(model, ToySuite(), tmp_path) == first
    assert model.asked == [] and files(tmp_path) == before


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_stopped_after_each_sample_it_goes_on_to_the_same_files(tmp_path, batch):
    evaluate(ToyModel(), ToySuite(), tmp_path / "whole", batch=batch)
    out = tmp_path / "stopped"
    asked = []
    for _ in range(100):
        model = ToyModel(stop_after=batch)
        try:
            evaluate(model, ToySuite(), out, batch=batch)
            break
        except KeyboardInterrupt:
            asked += model.asked
    assert sorted({*asked, *model.asked}) == sorted(asked + model.asked), "something was asked twice"
    assert files(out) == files(tmp_path / "whole")


def test_a_torn_line_is_asked_again_and_nothing_else(tmp_path):
    evaluate(ToyModel(), ToySuite(), tmp_path)
    before = files(tmp_path)
    path = folder(tmp_path) / "predictions" / "toy-8.jsonl"
    whole = path.read_bytes()
    for cut in (1, 30, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        model = ToyModel()
        evaluate(model, ToySuite(), tmp_path)
        assert len(model.asked) == 1 and files(tmp_path) == before


def test_batches_are_the_same_whatever_was_done(tmp_path):
    """Rounding may depend on the company that a sample is read in, so it keeps its company."""
    suite = ToySuite(lengths=(8,), samples=7)
    model = ToyModel()
    evaluate(model, suite, tmp_path, batch=3)
    assert model.groups == [3, 3, 1]


def test_a_batch_that_was_kept_in_part_is_asked_in_whole(tmp_path):
    suite = ToySuite(lengths=(8,), samples=4)
    evaluate(ToyModel(), suite, tmp_path, batch=2)
    before = files(tmp_path)
    path = folder(tmp_path) / "predictions" / "toy-8.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    model = ToyModel()
    evaluate(model, suite, tmp_path, batch=2)
    assert model.groups == [2] and files(tmp_path) == before


def test_errors_are_counted_left_out_of_figures_and_asked_again(tmp_path):
    suite = ToySuite(lengths=(8,), samples=5)
    results = evaluate(ToyModel(errors=[1, 4]), suite, tmp_path)  # the 1st and 4th sample
    (cell,) = results.cells
    assert (cell.errors, cell.samples, figure(cell.figures, "found").n) == (2, 5, 3)
    assert figure(cell.figures, "found").value == pytest.approx(2 / 3)
    model = ToyModel()
    (cell,) = evaluate(model, suite, tmp_path).cells
    assert len(model.asked) == 2 and cell.errors == 0
    evaluate(ToyModel(), suite, tmp_path / "whole")
    assert files(tmp_path) == files(tmp_path / "whole")


def test_a_cell_of_errors_only_has_no_figure(tmp_path):
    results = evaluate(ToyModel(errors=range(1, 6)), ToySuite(lengths=(8,)), tmp_path)
    assert results.cells[0].figures == () and results.cells[0].errors == 5


def test_lengths_and_samples_may_be_added(tmp_path):
    evaluate(ToyModel(), ToySuite(lengths=(8,), samples=3), tmp_path)
    model = ToyModel()
    results = evaluate(model, ToySuite(lengths=(16,), samples=2), tmp_path)
    assert len(model.asked) == 2 and [c.context_tokens for c in results.cells] == [8, 16]
    model = ToyModel()
    results = evaluate(model, ToySuite(lengths=(8,), samples=5), tmp_path)
    assert len(model.asked) == 2 and results.cells[0].samples == 5
    fewer = evaluate(ToyModel(), ToySuite(lengths=(8,), samples=2), tmp_path)
    assert fewer.cells[0].samples == 5, "asking for fewer loses none"


def test_an_unfinished_cell_is_in_no_result(tmp_path):
    model = ToyModel(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, ToySuite(), tmp_path)
    store = Store(folder(tmp_path))
    assert len(store.read("toy-16")) == 2
    assert [cell.name for cell in assemble(store, ToyScoring()).cells] == ["toy-8"]
    assert SuiteResults.load(store.results_path).cells[0].name == "toy-8", "written as soon as the cell was done"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (dict(model=ToyModel(sha256="b" * 64)), "model.sha256"),
        (dict(suite=ToySuite(seed=1)), "settings.seed"),
        (dict(batch=2), "batch"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, change, field):
    evaluate(ToyModel(), ToySuite(), tmp_path)
    before = files(tmp_path)
    asked = {"model": ToyModel(), "suite": ToySuite(), "batch": 1} | change
    with pytest.raises(ConfigError, match=r"holds answers of .* Choose another --out") as caught:
        evaluate(asked["model"], asked["suite"], tmp_path, batch=asked["batch"])
    assert caught.value.field == field and files(tmp_path) == before


def test_other_versions_of_packages_may_go_on_and_are_logged(tmp_path):
    evaluate(ToyModel(), ToySuite(lengths=(8,)), tmp_path)
    path = folder(tmp_path) / "run.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"versions": {"rnope": "0.0.1"}}))
    results = evaluate(ToyModel(), ToySuite(), tmp_path)
    assert results.versions == {"rnope": "0.0.1"} and len(results.cells) == 2
    starts = [line for line in Store(folder(tmp_path)).read_log() if line["event"] == "start"]
    assert len(starts) == 2 and starts[1]["versions"]["rnope"] != "0.0.1"


def test_two_processes_in_a_folder_are_refused(tmp_path):
    store = Store(folder(tmp_path))
    with store.locked(), pytest.raises(UserError, match="another process"):
        evaluate(ToyModel(), ToySuite(), tmp_path)


def test_the_log_counts_what_was_done(tmp_path):
    evaluate(ToyModel(errors=[2]), ToySuite(lengths=(8,), samples=3), tmp_path, command="rnope eval toy")
    log = Store(folder(tmp_path)).read_log()
    assert [line["event"] for line in log] == ["start", "answers", "answers", "answers", "end"]
    assert log[0]["command"] == "rnope eval toy"
    assert [line["errors"] for line in log[1:4]] == [[], ["no answer came"], []]
    assert [line["new_tokens"] for line in log[1:4]] == [3, 0, 3] and all(line["seconds"] >= 0 for line in log[1:4])


def test_a_damaged_predictions_file_is_named(tmp_path):
    evaluate(ToyModel(), ToySuite(), tmp_path)
    path = folder(tmp_path) / "predictions" / "toy-8.jsonl"
    for text in ("nonsense\n", "", "{}\n", path.read_text().replace('"answer"', '"reply"')):
        path.write_text(text)
        with pytest.raises(UserError, match=r"toy-8\.jsonl: is no file of predictions"):
            evaluate(ToyModel(), ToySuite(), tmp_path)


def test_a_cell_with_other_settings_is_refused(tmp_path):
    evaluate(ToyModel(), ToySuite(), tmp_path)

    class Other(ToySuite):
        def cells(self):
            return tuple(replace(cell, max_new_tokens=2) for cell in super().cells())

    for samples in (9, 5, 1):  # finished cells too: their answers are to other prompts
        with pytest.raises(ConfigError, match="with other settings"):
            evaluate(ToyModel(), Other(samples=samples), tmp_path)


def test_prompts_longer_than_the_cell_are_never_asked(tmp_path):
    class Longer(ToySuite):
        def cells(self):
            return (Cell(name="toy-8", context_tokens=8, samples=1, max_new_tokens=4),)

    model = ToyModel()
    with pytest.raises(ConfigError, match="more than the 8 tokens"):
        evaluate(model, Longer(), tmp_path)
    assert model.asked == []


def test_stores_are_found_by_model_and_suite(tmp_path):
    for name in ("b", "a"):
        evaluate(ToyModel(name=name), ToySuite(lengths=(8,)), tmp_path)
    assert [store.folder.relative_to(tmp_path).parts for store in stores(tmp_path)] == [("a", "toy"), ("b", "toy")]


def test_prompt_digests_are_of_the_ids():
    import hashlib

    ids = np.array([1, 258, 70000])
    plain = b"".join(int(i).to_bytes(8, "little") for i in ids)
    assert prompt_digest(ids) == hashlib.sha256(plain).hexdigest() == prompt_digest(ids.astype(np.int32))


def test_lines_of_answers_survive_any_text(tmp_path):
    store = Store(tmp_path / "m" / "toy")
    cell = Cell(name="c", context_tokens=8, samples=1, max_new_tokens=3)
    store.folder.mkdir(parents=True)
    answer = 'a\nb\u2028c\x85d\x00e \\ " é 🙂 \r\n'
    line = Prediction(
        cell="c", index=0, prompt_sha256="0", prompt_tokens=5, answer=answer, new_tokens=3, ended="length",
        facts={"span": [1, 2], "deep": {"x": None}},
    )  # fmt: skip
    store.begin(cell)
    store.add(cell, [line])
    assert store.read("c") == {0: line} and store.cells() == [cell]


def test_intervals_hold_the_mean_and_are_repeatable():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    found = mean_figure("x", values)
    assert found == mean_figure("x", list(values)) and found.low < found.value < found.high
    # The textbook's interval of a mean is what many resamples of many values come near to.
    many = rng.normal(size=2000)
    wide = 1.96 * many.std() / len(many) ** 0.5
    close = mean_figure("x", many)
    assert close.high - close.low == pytest.approx(2 * wide, rel=0.1)
    assert mean_figure("x", [1.0, 1.0]).low == 1.0 and mean_figure("x", []).n == 0


def test_what_a_person_sees(tmp_path, monkeypatch):
    """Each finished cell once, and a bar that ends at its end and leaves room for the estimate."""
    monkeypatch.setattr(run, "measure", lambda model, cells, **_: Speed(1e-3, 0.0, 1e-3, 128))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    evaluate(ToyModel(name="a-model-of-a-very-long-name", errors=[7]), ToySuite(), tmp_path, console=console)
    lines = re.split(r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]", stream.getvalue())
    assert [line for line in lines if "n 5" in line or "n 4" in line] == [
        "toy-8: found 0.6, n 5",
        "toy-16: found 0.75, n 4, 1 errors",
    ]
    bars = [line for line in lines if "%" in line]
    assert "100%" in bars[-1] and all(re.search(r"\d:\d\d:\d\d +(\d|-):", line) for line in bars)
    told = "1 of 10 samples have no answer (errors): the same command asks them again."
    assert f"a-model-of-a-very-long-name: toy: {told}" in stream.getvalue()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    original, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(ToyModel(), ToySuite(), tmp_path)
    evaluate(ToyModel(), ToySuite(), tmp_path)
    evaluate(ToyModel(), ToySuite(), tmp_path / "whole")
    assert files(tmp_path) == files(tmp_path / "whole")
