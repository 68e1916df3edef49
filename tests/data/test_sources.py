"""Inputs: every kind gives the same documents, blocks are cut the same, and bad records are named by file and line."""

import gzip
import json
import re
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from rnope.data import sources
from rnope.data.sources import Example, examples, find_sources, read_blocks
from rnope.errors import ConfigError

TEXTS = ["one", "two\nlines", "drei “Äpfel” \u2028 🦜", "x" * 300, "five"]


def write(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(*inputs, text_field="text"):
    found = find_sources(tuple(map(str, inputs)))
    return [e for source in found for block in read_blocks(source) for e in examples(block, text_field)]


def texts(*inputs, **options):
    return [example.text if example else None for example in read(*inputs, **options)]


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_every_kind_gives_the_same_documents(tmp_path):
    rows = [{"text": text, "id": 3} for text in TEXTS]
    assert texts(write(tmp_path / "a.jsonl", lines(rows))) == TEXTS
    assert texts(write(tmp_path / "a.jsonl.gz", lines(rows))) == TEXTS
    columns = {"id": list(range(5)), "text": TEXTS}
    assert texts(write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)) == TEXTS
    for number, text in enumerate(TEXTS):
        kind = ["txt", "md", "rst", "txt.gz", "md.gz"][number]
        write(tmp_path / "deep" / f"{number}.{kind}", text.encode())
    write(tmp_path / "deep" / "5.py", b"not read")
    assert texts(tmp_path / "deep") == TEXTS
    assert texts(tmp_path / "deep" / "1.md", tmp_path / "deep" / "0.txt") == [TEXTS[1], TEXTS[0]]


def test_examples_with_a_prompt_and_other_fields(tmp_path):
    rows = [{"prompt": "Ask", "completion": " answer"}, {"text": "t", "prompt": "p"}, {"prompt": "", "completion": "c"}]
    path = write(tmp_path / "a.jsonl", lines(rows))
    assert read(path) == [Example(prompt="Ask", text=" answer"), Example(text="t"), Example(text="c")]
    columns = {"prompt": ["Ask"], "completion": [" answer"], "number": [3]}
    assert read(write_parquet(tmp_path / "a.parquet", columns)) == [Example(prompt="Ask", text=" answer")]
    assert texts(write(tmp_path / "b.jsonl", lines([{"content": "c", "text": 3}])), text_field="content") == ["c"]


def test_blank_lines_are_none_and_empty_texts_are_told(tmp_path):
    raw = (
        '\ufeff{"text": "one"}\r\n\r\n  \n{"text": ""}\n{"text": " \\n"}\n{"text": null}\n{"text": "a\\ud800"}'.encode()
    )
    assert texts(write(tmp_path / "a.jsonl", raw)) == ["one", None, None, None, "a\ufffd"]
    assert read(write(tmp_path / "b.jsonl", lines([{"prompt": "p", "completion": " "}]))) == [None]
    assert texts(write(tmp_path / "c.txt", b"")) == [None]
    assert texts(write_parquet(tmp_path / "d.parquet", {"text": ["a", None]})) == ["a", None]
    assert texts(write(tmp_path / "e.jsonl", b"")) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_blocks_follow_each_other_and_can_be_skipped(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200)
    rows = [{"text": f"{i} " * (i % 7)} for i in range(150)]
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, {"text": [row["text"] for row in rows]})
    else:
        write(path, lines(rows))
    (source,) = find_sources((str(path),))
    blocks = list(read_blocks(source))
    assert len(blocks) > 5 and [block.number for block in blocks] == list(range(len(blocks)))
    assert [e.text if e else "" for b in blocks for e in examples(b, "text")] == [row["text"] for row in rows]
    first = 1
    for block in blocks:
        assert block.first == first
        first += len(block.records)
    for skip in (1, 4, len(blocks), len(blocks) + 3):
        assert list(read_blocks(source, skip)) == blocks[skip:]
    read_bytes = [block.read_bytes for block in blocks]
    assert read_bytes == sorted(read_bytes) and read_bytes[-1] == path.stat().st_size


def test_a_large_file_is_not_read_at_once(tmp_path):
    (source,) = find_sources((str(write(tmp_path / "a.jsonl", lines([{"text": "x" * 1000}] * 8000))),))
    block = next(read_blocks(source))
    assert block.read_bytes < source.bytes / 4 and len(block.records) < 2000


def test_the_digest_follows_from_the_text_alone():
    assert Example(text="a").digest == Example(text="a").digest != Example(text="b").digest
    digests = {Example(text="ab").digest, Example(prompt="a", text="b").digest, Example(prompt="ab", text="").digest}
    assert len(digests) == 3 and all(0 <= digest < 2**64 for digest in digests)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"txt": 1}', "a.jsonl:3': has neither a string 'text' nor strings 'prompt'"),
        ("a.jsonl", b'{"txt": 1, "b": ""}', "It has: b, txt. Name the one with the text by --text-field"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1': has neither"),
        ("a.jsonl", b'{"prompt": "a"}', "a.jsonl:1': has neither"),
        ("a.jsonl", b"[]", "a.jsonl:1': has neither"),
        ("a.jsonl", b'{"text": "a"', "a.jsonl:1': is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1': is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n"\xff"', "a.jsonl:2': is not UTF-8"),
        ("a.txt", b"\xff\xfe\x00", "a.txt': is not UTF-8"),
        ("b.txt.gz", b"not gzip", "b.txt.gz': cannot be read (Not a gzipped file"),
        ("b.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "cannot be read (Compressed file ended"),
        ("b.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:12] + b"\xff" * 30, "cannot be read"),
        ("a.parquet", b"not parquet", "a.parquet': cannot be read"),
    ],
)
def test_a_bad_record_is_named(name, raw, words, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith("input = ")


def test_a_row_without_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.parquet:1': has neither a string 'text'"):
        read(write_parquet(tmp_path / "a.parquet", {"number": [1, 2], "other": ["a", "b"]}))


def test_a_document_too_long_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 100)
    rule = "is one document of more than 100 bytes. Cut it into documents"
    for name, raw, where in [
        ("a.txt", b"x" * 101, "a.txt'"),
        ("b.txt.gz", b"x" * 101, "b.txt.gz'"),
        ("c.jsonl", lines([{"text": "a"}, {"text": "x" * 101}]), "c.jsonl:2'"),
        ("d.jsonl", b'{"text": "a"}\n' + b" " * 200, "d.jsonl:2'"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(f"{where}: {rule}")):
            read(write(tmp_path / name, raw))
    assert texts(write(tmp_path / "e.txt", b"x" * 100)) == ["x" * 100]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["none"], "none': does not exist"),
        ([""], "input = '': does not exist"),
        (["x" * 5000], "cannot be read"),
        (["a\0b"], "does not exist"),
        (["a.pdf"], "a.pdf': is of no known kind. Use .txt"),
        (["a.gz"], "is of no known kind"),
        (["a.parquet.gz"], "is of no known kind"),
        (["empty"], "is a folder without a file of a known kind"),
        (["a.txt", "./a.txt"], "a.txt': is given twice"),
        (["a.txt", "."], "a.txt': is given twice"),
        (["datasets:"], "must be datasets:NAME[:CONFIG[:SPLIT]]"),
        (["datasets:a:b:c:d"], "must be datasets:NAME[:CONFIG[:SPLIT]]"),
    ],
)
def test_an_input_that_does_not_serve(names, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pdf", "a.gz", "a.parquet.gz", "a.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=re.escape(words)):
        find_sources(tuple(names))


@pytest.mark.parametrize(("name", "module"), [("a.parquet", "pyarrow"), ("datasets:a/b", "datasets")])
def test_a_package_that_is_missing(name, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    for hidden in (module, f"{module}.parquet"):
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ConfigError, match=f"needs the package '{module}'. pip install {module}"):
        find_sources((name,))


def test_a_dataset_by_its_name(monkeypatch):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        if name == "absent":
            raise FileNotFoundError("no such data set")
        return iter([{"text": text, "n": 1} for text in TEXTS] + [{"text": None, "n": 2}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert texts("datasets:some/name", "datasets:other:config:test") == [*TEXTS, None] * 2
    assert calls == [("some/name", None, "train", True), ("other", "config", "test", True)]
    with pytest.raises(ConfigError, match=r"datasets:absent': cannot be loaded \(FileNotFoundError: no such data set"):
        texts("datasets:absent")
