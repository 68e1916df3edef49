"""The results file: what is in it, how an interrupted run goes on, and what it refuses to mix."""

import json

import pytest
import torch

from rnope.bench.record import Record, read, seconds
from rnope.bench.timing import Contestant, Entry, OutOfTime, Row, Sample, interleave
from rnope.errors import ConfigError, UserError

HEAD = {"plan": {"what": "prefill", "seed": 0}, "model": {"size": "tiny"}, "machine": {"processor": "p"}}


class Scripted(Contestant):
    """Takes the times that a test says, and logs its turns."""

    def __init__(self, name, log, times, logits=None, fails=()):
        super().__init__()
        self.name, self.log, self.times, self.fails = name, log, iter(times), fails
        self.logits = logits

    def warm_up(self):
        self.log.append(f"warm {self.name}")
        if "warm" in self.fails:
            raise RuntimeError("no\n such thing")

    def measure(self):
        self.log.append(self.name)
        if self.log.count(self.name) in self.fails:
            raise torch.OutOfMemoryError("full")
        return Sample(next(self.times), {"some": 1.0})

    def close(self):
        self.log.append(f"close {self.name}")


class Free:
    """Lets everything run, up to a number of measurements."""

    def __init__(self, most=99):
        self.left = most

    def before(self, row, entry, expected_seconds):
        self.left -= 1
        if self.left < 0:
            raise OutOfTime("x")

    def after(self):
        pass


def row_of(log, **contestants):
    entries = [
        Entry(
            who="ours" if name == "a" else "torch",
            how=name,
            layout="full",
            make=lambda n=name, k=kind: Scripted(n, log, **k),
        )
        for name, kind in contestants.items()
    ]
    return Row(tokens=8, threads=1, dtype="fp32", entries=entries, notes=("a note",))


def samples(record):
    entries = record.data["rows"][0]["contestants"]
    return {name.split()[1]: [s["seconds"] for s in each["samples"]] for name, each in entries.items()}


def test_contestants_take_turns_after_one_warm_up_each(tmp_path):
    log, record = [], Record(tmp_path / "r.json", HEAD, {"date": "today"})
    interleave(row_of(log, a=dict(times=[3, 1, 2]), b=dict(times=[5, 6, 7])), record, 3, Free())
    assert log == ["warm a", "warm b", *"ababab", "close a", "close b"]
    found = read(tmp_path / "r.json")
    assert found == record.data and found["format"] == 1 and found["rows"][0]["notes"] == ["a note"]
    entry = found["rows"][0]["contestants"]["ours a full"]
    assert seconds(entry) == 2 and [s["seconds"] for s in entry["samples"]] == [3, 1, 2]
    assert entry["samples"][0] == {"seconds": 3, "parts": {"some": 1.0}, "session": 0}
    assert {"who", "how", "layout", "dtype", "flops", "bytes", "warm_up_seconds", "facts", "error"} <= set(entry)


def test_an_interrupted_run_measures_only_what_is_missing(tmp_path):
    path = tmp_path / "r.json"
    first = Record(path, HEAD, {"date": "monday"})
    with pytest.raises(OutOfTime):
        interleave(row_of(log := [], a=dict(times=[1, 2, 3]), b=dict(times=[4, 5, 6])), first, 3, Free(5))
    assert log[-2:] == ["close a", "close b"] and samples(Record(path, HEAD, {})) == {"a": [1, 2], "b": [4]}
    second = Record(path, HEAD, {"date": "tuesday"})
    interleave(row_of(log := [], a=dict(times=[9]), b=dict(times=[8, 7])), second, 3, Free())
    assert samples(second) == {"a": [1, 2, 9], "b": [4, 8, 7]}
    assert log[:5] == ["warm a", "warm b", "b", "a", "b"]
    assert [s["session"] for s in second.data["rows"][0]["contestants"]["torch b full"]["samples"]] == [0, 1, 1]
    interleave(row_of(log := [], a=dict(times=[]), b=dict(times=[])), Record(path, HEAD, {}), 3, Free())
    assert log == []


def test_a_failing_peer_is_recorded_and_the_others_go_on(tmp_path):
    record = Record(tmp_path / "r.json", HEAD, {})
    row = row_of([], a=dict(times=[1, 2]), b=dict(times=[], fails=["warm"]), c=dict(times=[3], fails=[2]))
    interleave(row, record, 2, Free())
    assert samples(record) == {"a": [1, 2], "b": [], "c": [3]}
    errors = {n.split()[1]: e["error"] for n, e in read(tmp_path / "r.json")["rows"][0]["contestants"].items()}
    assert errors == {"a": None, "b": "RuntimeError: no such thing", "c": "OutOfMemoryError: full"}


def test_logits_are_compared_with_the_first_of_the_layout(tmp_path):
    record = Record(None, HEAD, {})
    near, far = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    interleave(row_of([], a=dict(times=[1], logits=near), b=dict(times=[1], logits=far)), record, 1, Free())
    entries = record.data["rows"][0]["contestants"]
    assert entries["torch b full"]["facts"]["logits_differ_by"] == pytest.approx(0.2)
    assert "logits_differ_by" not in entries["ours a full"]["facts"]


def test_another_plan_or_machine_is_refused(tmp_path):
    path = tmp_path / "r.json"
    Record(path, HEAD, {}).write()
    with pytest.raises(ConfigError, match=r"plan\.seed = 1: .* was measured with 0"):
        Record(path, HEAD | {"plan": {"what": "prefill", "seed": 1}}, {})
    with pytest.raises(ConfigError, match=r"machine\.processor = 'q'"):
        Record(path, HEAD | {"machine": {"processor": "q"}}, {})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9, "plan": {}, "sessions": [], "rows": []}'])
def test_what_is_no_results_file_is_refused(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=r"r\.json"):
        Record(tmp_path / "r.json", HEAD, {})


def test_numbers_that_json_lacks_are_text(tmp_path):
    record = Record(tmp_path / "r.json", HEAD, {"odd": float("nan"), "pair": (1, 1 / 3)})
    record.write()
    assert json.loads((tmp_path / "r.json").read_text())["sessions"] == [{"odd": "nan", "pair": [1, 0.3333333]}]
