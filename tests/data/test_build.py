"""Building shards: equal to the plainest way, whatever the workers, and after any kill; nothing of others is touched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnope.data import build as building
from rnope.data import encode, sources
from rnope.data.build import BuildRequest, build
from rnope.data.parts import PROGRESS
from rnope.data.shards import INDEX, Shards
from rnope.errors import ConfigError, UserError
from rnope.tokenizer import Tokenizer

SOURCE = Path(building.__file__).parents[2]


def rows(start, stop):
    """Documents of very different lengths, some with a prompt, some empty, some repeated."""
    for i in range(start, stop):
        if i % 11 == 5:
            yield {"prompt": f"Question {i}? " * (i % 3), "completion": f" The answer is {i * i}."}
        elif i % 13 == 7:
            yield {"text": " \n"}
        else:
            yield {
                "text": f"Document {i % 150},{'<EOS_TOKEN>' * (i % 2)} of words: " + "one, two — three " * (i % 150 % 9)
            }


def write_lines(path, held):
    path.write_text("".join(json.dumps(row) + "\n" for row in held))
    return str(path)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (sources, building):
        monkeypatch.setattr(module, "BLOCK_BYTES", 800)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([row.get("text", "?") for row in rows(0, 200)], vocab_size=320).save(path)
    return path


@pytest.fixture
def request_(tmp_path, folder):
    inputs = (write_lines(tmp_path / "a.jsonl", rows(0, 120)), write_lines(tmp_path / "b.jsonl", rows(120, 200)))
    return BuildRequest(inputs=inputs, tokenizer=folder, shard_tokens=900, validation=0.2)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def documents(out, split):
    shards = Shards.open(out, split)
    return [(ids.tolist(), start) for ids, start in shards.first_documents(shards.documents)]


def test_equal_to_the_plainest_way(request_, folder, tmp_path):
    index, fresh = build(request_, tmp_path / "out")
    tokenizer = Tokenizer.load(folder)
    seen, empty, repeated = set(), 0, 0
    expected = {"train": [], "validation": []}
    for row in rows(0, 200):
        prompt, text = row.get("prompt", ""), row.get("text", row.get("completion"))
        if not text.strip():
            empty += 1
        elif (prompt, text) in seen:
            repeated += 1
        else:
            seen.add((prompt, text))
            example = sources.Example(prompt=prompt, text=text)
            before = tokenizer.encode(prompt)
            ids = [*before, *tokenizer.encode_plain([text])[0], tokenizer.eos_id]
            expected["validation" if example.digest < 0.2 * 2**64 else "train"].append((ids, len(before)))
    for split, held in expected.items():
        assert documents(tmp_path / "out", split) == held and len(held) > 10
    assert any(start for _, start in expected["train"]) and empty > 5 and repeated > 10
    assert len(index.train) > 3, "several shards"
    counts = index.sources
    assert [c.name for c in counts] == list(request_.inputs)
    assert sum(c.documents for c in counts) == len(seen) and sum(c.empty for c in counts) == empty
    assert sum(c.duplicates for c in counts) == repeated and counts[1].duplicates > counts[0].duplicates
    tokens = sum(len(ids) for held in expected.values() for ids, _ in held)
    assert fresh == tokens == sum(c.tokens for c in counts)
    for split in expected:
        Shards.open(tmp_path / "out", split).verify()
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {INDEX, "tokenizer.json", "tokenizer_config.json", "train", "validation"}
    shards = Shards.open(tmp_path / "out")
    assert shards.tokenizer_digest == tokenizer.digest == shards.tokenizer().digest
    assert (shards.vocab_size, shards.bos_id, shards.eos_id, shards.pad_id) == (tokenizer.vocab_size, 1, 2, 0)
    eos = [int(shard.ids[end - 1]) for shard in shards.shards for end in shard.ends]
    assert set(eos) == {2} and all(np.count_nonzero(shard.ids == 2) == shard.documents for shard in shards.shards)


def test_workers_change_nothing(request_, tmp_path):
    build(request_, tmp_path / "one")
    build(request_, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_shard_ends_with_the_block_that_fills_it(request_, tmp_path):
    build(request_, tmp_path / "out")
    train, validation = (Shards.open(tmp_path / "out", split).shards for split in ("train", "validation"))
    totals = [a.tokens + b.tokens for a, b in zip(train, validation, strict=True)]
    assert all(900 <= total < 900 + 800 for total in totals[:-1]) and totals[-1] < 900 + 800


class Killed(BaseException):
    pass


def test_going_on_after_a_kill_at_any_block(request_, tmp_path):
    blocks = []
    build(request_, tmp_path / "whole", report=lambda *told: blocks.append(told))
    assert len(blocks) > 15 and blocks[-1][0] == blocks[-1][1] > 0

    def kill(*told):
        left.append(told)
        if len(left) == moment:
            raise Killed

    for moment in range(1, len(blocks) + 1):
        out, left = tmp_path / f"killed-{moment}", []
        with pytest.raises(Killed):
            build(request_, out, report=kill)
        assert not (out / INDEX).exists()
        with pytest.raises(UserError, match=r"index\.json: does not exist\. .*if this one was interrupted"):
            Shards.open(out)
        written = json.loads((out / PROGRESS).read_text())["parts"]
        _, fresh = build(request_, out)
        assert contents(out) == contents(tmp_path / "whole")
        assert (fresh < blocks[-1][2]) == (written > 0), "what was written is kept"
    assert written > 3


def test_going_on_after_a_kill_while_writing(request_, tmp_path, monkeypatch):
    request_ = changed(request_, inputs=request_.inputs[1:])
    build(request_, tmp_path / "whole")
    real = os.replace
    renamed = []
    monkeypatch.setattr(os, "replace", lambda *a: (renamed.append(a), real(*a)))
    build(request_, tmp_path / "counted")
    assert len(renamed) > 20

    def replace(*arguments):
        left.append(arguments)
        if len(left) == moment:
            raise Killed
        real(*arguments)

    for moment in range(1, len(renamed) + 1):
        out, left = tmp_path / f"killed-{moment}", []
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            build(request_, out)
        monkeypatch.setattr(os, "replace", real)
        build(request_, out)
        assert contents(out) == contents(tmp_path / "whole"), moment


def test_a_process_that_is_really_killed(request_, tmp_path):
    """SIGKILL with two workers: the workers end too, and the build goes on to the same bytes."""
    build(request_, tmp_path / "whole")
    out = tmp_path / "out"
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rnope.data import build as building, sources\n"
        "sources.BLOCK_BYTES = building.BLOCK_BYTES = 800\n"
        "if __name__ == '__main__':\n"
        f"    request = building.BuildRequest(inputs={request_.inputs!r}, tokenizer=Path({str(request_.tokenizer)!r}),\n"
        "        shard_tokens=900, validation=0.2)\n"
        "    slow = lambda *told: (print(told, flush=True), time.sleep(0.1))\n"
        f"    building.build(request, Path({str(out)!r}), workers=2, report=slow)\n"
    )
    process = subprocess.Popen([sys.executable, str(program)], env={"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE)
    for _ in range(10):
        assert process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) >= 2 and not any(Path(f"/proc/{child}").exists() for child in children)
    assert json.loads((out / PROGRESS).read_text())["parts"] >= 1
    build(request_, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_built_is_found(request_, tmp_path):
    index, _ = build(request_, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert build(request_, tmp_path / "out", workers=7) == (index, 0)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}


def changed(request, **changes):
    values = {name: getattr(request, name) for name in BuildRequest.__dataclass_fields__}
    return BuildRequest(**values | changes)


@pytest.mark.parametrize("finished", [True, False])
def test_another_build_is_refused(finished, request_, tmp_path):
    out = tmp_path / "out"
    if finished:
        build(request_, out)
    else:
        told = []

        def kill(*told_):
            told.append(told_)
            if len(told) == 12:
                raise Killed

        with pytest.raises(Killed):
            build(request_, out, report=kill)
    before = contents(out)
    other = tmp_path / "other"
    Tokenizer.train(["other text"], vocab_size=270).save(other)
    for change, words in [
        (dict(validation=0.3), "validation 0.2 and not 0.3"),
        (dict(shard_tokens=901), "shard_tokens 900 and not 901"),
        (dict(inputs=request_.inputs[:1]), "input 2 files, "),
        (dict(tokenizer=other), "tokenizer "),
        (dict(tokenizer=None, vocab_size=300), "vocab_size None and not 300"),
        (dict(text_field="content"), "text_field text and not content"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            build(changed(request_, **change), out)
        assert "Give another --out, or delete that folder" in str(caught.value)
    Path(request_.inputs[0]).touch()
    with pytest.raises(UserError, match="of another kind: input 2 files"):
        build(request_, out)
    assert contents(out) == before


def test_a_folder_of_others_is_left_alone(request_, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(UserError, match=r"holds something else\. Give --out a new or empty folder"):
            build(request_, out)
    assert contents(tmp_path / "out") == {"mine.txt": b"mine"}


def test_a_start_that_wrote_no_shard_can_be_started_anew(request_, tmp_path, folder):
    """As after a wrong --text-field, with another tokenizer whose files must not stay."""
    other = tmp_path / "other"
    Tokenizer.load(folder).save(other)
    (other / "special_tokens_map.json").write_text('{"pad_token": "<EOS_TOKEN>"}')
    out = tmp_path / "out"
    lines = write_lines(tmp_path / "c.jsonl", [{"content": f"text {i}"} for i in range(20)])
    with pytest.raises(ConfigError, match=r"c\.jsonl:1': has neither .* --text-field"):
        build(changed(request_, inputs=(lines,), tokenizer=other), out)
    right = changed(request_, inputs=(lines,), text_field="content")
    build(right, out)
    build(right, tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew") and "special_tokens_map.json" not in contents(out)


def test_a_bad_line_late_in_the_input(request_, tmp_path):
    write_lines(tmp_path / "b.jsonl", [*rows(120, 199), {"no": "text"}, {"neither": 1}])
    for workers in (1, 2):
        with pytest.raises(ConfigError, match=r"b\.jsonl:80': has neither"):
            build(request_, tmp_path / f"out-{workers}", workers=workers)
        assert not (tmp_path / f"out-{workers}" / INDEX).exists()


def test_a_shard_that_was_cut_is_named_when_going_on(request_, tmp_path):
    out, told = tmp_path / "out", []

    def kill(*told_):
        told.append(told_)
        if len(told) == 12:
            raise Killed

    with pytest.raises(Killed):
        build(request_, out, report=kill)
    (out / "train" / "shard-00000.ends.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00000\.ends\.npy: was cut short: it has 0 bytes"):
        build(request_, out)
    (out / PROGRESS).write_text("{")
    with pytest.raises(UserError, match=r"progress\.json: cannot be read .* Delete .* and start again"):
        build(request_, out)


def test_documents_keep_their_split_when_others_come(request_, tmp_path):
    build(request_, tmp_path / "few")
    more = write_lines(tmp_path / "0.jsonl", [{"text": f"another {i}"} for i in range(300)])
    build(changed(request_, inputs=(more, *request_.inputs)), tmp_path / "many")
    for split in ("train", "validation"):
        few, many = ({tuple(ids) for ids, _ in documents(tmp_path / name, split)} for name in ("few", "many"))
        assert few < many
    counts = [len(documents(tmp_path / "many", split)) for split in ("train", "validation")]
    assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.05)


def test_training_a_tokenizer_on_the_input(request_, tmp_path, monkeypatch):
    wanted = changed(request_, tokenizer=None, vocab_size=300)
    build(wanted, tmp_path / "a")
    build(wanted, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert Shards.open(tmp_path / "a").vocab_size == 300
    texts = list(building._sample(wanted, sources.find_sources(wanted.inputs)))
    held = {ids for ids, _ in ((tuple(i), s) for i, s in documents(tmp_path / "a", "validation"))}
    tokenizer = Shards.open(tmp_path / "a").tokenizer()
    assert held and not held & {(*tokenizer.encode_plain([text])[0], tokenizer.eos_id) for text in texts}
    monkeypatch.setattr(building, "_SAMPLE_BYTES", 1000)
    few = list(building._sample(wanted, sources.find_sources(wanted.inputs)))
    assert sum(map(len, few)) == 1000 and any("Document 3," in text for text in few)
    assert any(re.match(r"Document 12\d,", text) for text in few), "from the second file too"
    monkeypatch.setattr(building, "_SAMPLE_SOURCES", 1)
    one = list(building._sample(wanted, sources.find_sources(wanted.inputs)))
    assert sum(map(len, one)) == 1000 and not any(re.match(r"Document 12\d,", text) for text in one)


def test_empty_and_tiny_inputs(request_, tmp_path):
    blank = write_lines(tmp_path / "blank.jsonl", [{"text": ""}] * 3)
    with pytest.raises(UserError, match=r"blank\.jsonl: no document in it"):
        build(changed(request_, inputs=(blank,)), tmp_path / "out")
    one = write_lines(tmp_path / "one.jsonl", [{"text": "a"}])
    build(changed(request_, inputs=(one,), validation=0.0), tmp_path / "out")
    assert [len(ids) for ids, _ in documents(tmp_path / "out", "train")] == [2]
    with pytest.raises(UserError, match="'validation' split holds no document"):
        Shards.open(tmp_path / "out", "validation")


def test_a_worker_that_is_killed(request_, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *args, **options):
            pass

        def submit(self, *args):
            raise encode.BrokenProcessPool

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(encode, "ProcessPoolExecutor", Broken)
    with pytest.raises(UserError, match=r"A worker was killed.*with fewer --workers"):
        build(request_, tmp_path / "out", workers=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(inputs=()), "input = (): is missing"),
        (dict(vocab_size=300), "give either a tokenizer or a vocab_size"),
        (dict(tokenizer=None), "give either a tokenizer or a vocab_size"),
        (dict(shard_tokens=0), "shard_tokens = 0: must be at least 1"),
        (dict(validation=1.0), "validation = 1.0: must lie in 0 … 1"),
        (dict(validation=-0.1), "validation = -0.1"),
        (dict(validation=float("nan")), "validation = nan"),
        (dict(text_field=""), "text_field = '': is empty"),
    ],
)
def test_requests_that_do_not_serve(change, words, request_):
    with pytest.raises(ConfigError, match=re.escape(words)):
        changed(request_, **change)
