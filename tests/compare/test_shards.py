"""Shards, merging and deadlines, on a recipe of seconds whose jobs are done in this process."""

import io
import json
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rnope import recipes
from rnope.compare import pool
from rnope.compare.run import compare
from rnope.compare.shards import parse, take_over
from rnope.config import Losses
from rnope.errors import ConfigError
from rnope.files import exclusive
from rnope.results import Results
from rnope.strict import to_plain

sys.path.insert(0, str(Path(__file__).parent))
from at_once import Here

QUICK = """
name = "quick"
summary = "two arms that learn nothing"
size = "cpu"
vocab_size = 1024
seeds = [0, 1]
baseline = "rope"
attention_tokens = [64]
attention_samples = 2
sweep.settings = [{ learning_rate = 1.0 }, { learning_rate = 0.5 }]
tasks = { names = ["niah_single_1"], context_tokens = [64], answers = 2 }
losses = { context_tokens = [32], windows = 2 }
costs = { context_tokens = [32], rounds = 1 }
needles = { depths = 2, contexts = 2, context_tokens = [64] }
model = { width = 16, head_size = 8, ffn_width = 16, num_layers = 2 }

[stages.pretrain]
context_tokens = 64
steps = 4
batch_tokens = 64

[stages.extend]
context_tokens = 128
steps = 2
batch_tokens = 128

[arms.rope]
variant = "rope"
summary = "the baseline"
stages = ["pretrain", "extend"]

[arms.nope]
variant = "nope"
summary = "no positions"
stages = ["pretrain"]
seeds = [0]
"""


@pytest.fixture
def recipe():
    return recipes.resolve(tomllib.loads(QUICK))


@pytest.fixture
def run(place, recipe, monkeypatch):
    """Runs the recipe into a folder; returns the results, what was said, and the ids of the jobs that were done."""
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Here)
    monkeypatch.setattr("rnope.compare.run.write_report", lambda results, out: [])

    def go(out, **options):
        said, log = io.StringIO(), Path(out) / "run.jsonl"
        before = log.read_text().splitlines() if log.exists() else []
        results = compare(
            recipe, corpus=str(place.corpus), out=Path(out), workers=1, console=Console(file=said, width=400),
            command="the tests", **options,
        )  # fmt: skip
        lines = log.read_text().splitlines()[len(before) :] if log.exists() else []
        return SimpleNamespace(results=results, said=said.getvalue(), jobs=[json.loads(line) for line in lines])

    return go


def but_for_time(value):
    if isinstance(value, dict):
        return {k: but_for_time(v) for k, v in value.items() if not k.endswith("seconds") and k != "provenance"}
    return [but_for_time(v) for v in value] if isinstance(value, list) else value


def files(out, kind="jobs"):
    return {p.name for p in (out / kind).iterdir()}


def test_all_that_is_measured_is_in_the_results(run, tmp_path):
    found = run(tmp_path / "out").results
    models = {("rope", 0), ("rope", 1), ("nope", 0)}
    for rows in (found.needles, found.attention, found.tasks, found.losses):
        assert {(row.arm, row.seed) for row in rows} == models
    assert {(row.arm, row.seed, row.kind) for row in found.spreads} == {("rope", 0, "rope"), ("nope", 0, "nope")}
    assert [(row.task, row.context_tokens, row.n) for row in found.tasks] == [("niah_single_1", 64, 2)] * 3
    assert [(row.context_tokens, row.n, len(row.bins)) for row in found.losses] == [(32, 2, 3)] * 3
    assert [(row.arm, row.context_tokens, row.n) for row in found.costs] == [("rope", 32, 1), ("nope", 32, 1)]
    assert all(min(row.prefill_seconds, row.step_seconds, row.training_step_seconds) > 0 for row in found.costs)
    assert [point.step for point in found.learning if point.arm == "nope"] == [4]
    assert any("Not testable at this scale: " in note and "niah_multivalue" in note for note in found.notes)
    assert any("arms that differ in θ alone share one" in note for note in found.notes)


def test_names_of_shards(recipe):
    assert parse(recipe, []) == {("rope", 0), ("rope", 1), ("nope", 0)}
    assert parse(recipe, ["rope"]) == {("rope", 0), ("rope", 1)} and parse(recipe, ["nope:0"]) == {("nope", 0)}
    assert parse(recipe, ["rope:1", "rope:1", "nope"]) == {("rope", 1), ("nope", 0)}
    for given, words in {
        "rop": r"--shard = 'rop': no such arm. Did you mean 'rope'\?", "nope:1": r"nope has the seeds 0. Use one",
        "nope:": "nope has the seeds 0", "rope:one": "rope has the seeds 0, 1",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            parse(recipe, [given])


def test_shards_of_two_folders_merged_are_one_run(run, tmp_path):
    whole = run(tmp_path / "whole")
    a = run(tmp_path / "a", shards=["rope:0"])
    b = run(tmp_path / "b", shards=["rope:1", "nope"])
    assert a.results is None and not (tmp_path / "a" / "results.json").exists()
    assert "Done. Shards still missing here: rope:1, nope." in a.said
    trained = {job["title"].split(" · ")[0] for job in a.jobs if job["title"].startswith("train")}
    assert trained == {"train rope"}, "of the sweep too, only what the shard needs"
    assert not any("seed 1 " in job["title"] + " " for job in a.jobs)
    merged = run(tmp_path / "c", merge=[tmp_path / "a", tmp_path / "b"])
    *taken, timed = merged.jobs
    assert {job["job"] for job in taken} == {job["job"] for job in [*a.jobs, *b.jobs]} and len(taken) == len(
        whole.jobs
    ) - 1
    assert timed["title"].startswith("time 2 layouts"), "which is done here"
    assert merged.said.count("finished jobs taken over from") == 2 and " · seed" not in merged.said, (
        "nothing is done again"
    )
    assert but_for_time(to_plain(merged.results)) == but_for_time(to_plain(whole.results))
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    saved = [to_plain(Results.load(tmp_path / name / "results.json")) for name in ("c", "whole")]
    assert but_for_time(saved[0]) == but_for_time(saved[1])
    assert run(tmp_path / "c").jobs == [], "all is found again"


def test_a_shard_goes_on_from_what_was_merged(run, tmp_path):
    run(tmp_path / "a", shards=["rope:0"])
    first = run(tmp_path / "b", shards=["rope"], merge=[tmp_path / "a"])
    taken = files(tmp_path / "a")
    fresh = {job["job"] for job in first.jobs} - {name.removesuffix(".json") for name in taken}
    assert fresh and all("-seed0-" not in name for name in fresh) and taken < files(tmp_path / "b")
    last = run(tmp_path / "b", shards=["nope"])
    assert "Done, and no shard is missing. Run without --shard for the results." in last.said
    assert run(tmp_path / "b").results is not None


def test_what_is_damaged_or_begun_is_not_taken_over(run, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    run(other, shards=["nope"])
    digest = next((other / "data").iterdir()).name
    trainings = sorted(n for n in files(other) if n.startswith("pretrain"))
    torn, hollow, begun, kept = trainings[0], trainings[1], trainings[2], sorted(files(other) - {*trainings})[0]
    (other / "jobs" / torn).write_text('{"run": {"na')
    shutil.rmtree(other / "stages" / hollow.removesuffix(".json") / "model")
    (out / "stages" / begun.removesuffix(".json")).mkdir(parents=True)
    (out / "jobs").mkdir()
    (out / "jobs" / kept).write_text('{"mine": 1}')
    (other / "jobs" / "costs-0.json").write_text('{"training": [1.0]}')  # of another machine
    count = take_over(other, out, digest)
    assert count == len(files(other)) - 5 and files(out) == files(other) - {torn, hollow, begun, "costs-0.json"}
    assert json.loads((out / "jobs" / kept).read_text()) == {"mine": 1}, "nothing is overwritten"
    assert not any((out / "stages" / begun.removesuffix(".json")).iterdir())
    assert take_over(other, out, digest) == 0
    (out / "jobs" / kept).write_text("{")
    assert take_over(other, out, digest) == 1, "what is damaged here is"


def test_folders_that_cannot_be_merged(run, tmp_path):
    out = tmp_path / "out"
    run(out, shards=["nope"])
    digest = next((out / "data").iterdir()).name
    (tmp_path / "empty").mkdir()
    shutil.copytree(out, tmp_path / "foreign")
    (tmp_path / "foreign" / "data" / digest).rename(tmp_path / "foreign" / "data" / "another-1024")
    for name, words in {
        "empty": "holds no comparison", "none": "holds no comparison", "foreign": "another corpus or vocabulary",
        "out": "is the folder that is merged into",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            take_over(tmp_path / name, out, digest)


def test_what_cannot_be_is_refused_before_the_corpus_is_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("rnope.compare.run.prepare", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(ConfigError, match=r"--merge = '.*none': holds no comparison"):
        run(tmp_path / "out", merge=[tmp_path / "none"])
    with pytest.raises(ConfigError, match=r"--minutes = nan: must be a number above 0"):
        run(tmp_path / "out", minutes=float("nan"))
    with (
        exclusive(tmp_path / "out" / ".lock"),
        pytest.raises(ConfigError, match=r"--out = .*another comparison is at work there"),
    ):
        run(tmp_path / "out")


def test_stopped_again_and_again_it_ends_as_if_it_never_was(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    asked = []
    monkeypatch.setattr(pool, "_passed", lambda deadline: deadline is not None and (asked.append(1) or len(asked) > 9))
    calls, last = 0, None
    while last is None:
        calls, _ = calls + 1, asked.clear()
        found = run(tmp_path / "parts", minutes=5)
        last = found.results
        if last is None:
            assert "Time is up: " in found.said and "Run the same command again to go on." in found.said
            assert not (tmp_path / "parts" / "results.json").exists()
        assert calls < 60
    assert calls > 4
    lines = [json.loads(line) for line in (tmp_path / "parts" / "run.jsonl").read_text().splitlines()]
    assert any(not line["done"] for line in lines), "a training was stopped inside"
    assert but_for_time(to_plain(last)) == but_for_time(to_plain(whole.results))


def test_when_time_is_up_nothing_begins(run, tmp_path):
    found = run(tmp_path / "out", minutes=1e-9)
    assert found.results is None and not found.jobs and not (tmp_path / "out" / "jobs").exists()
    # Of the sweep 2 settings × 2 subjects × 2; of rope twice 2 trainings and 6 questions; of nope 1 and 5; and the times.
    assert f"Time is up: {8 + 2 * 8 + 6 + 1} jobs are left, about 0 minutes." in found.said


def test_windows_longer_than_the_held_out_text(place, recipe, tmp_path):
    long = replace(recipe, losses=Losses(context_tokens=(10**6,)))
    with pytest.raises(ConfigError, match=r"losses\.context_tokens = 1000000: is longer than the held-out text, 12,"):
        compare(
            long,
            corpus=str(place.corpus),
            out=tmp_path,
            workers=1,
            console=Console(file=io.StringIO()),
            command="tests",
        )
