"""Corpora: every kind of file, splits that stay where they are, and what is told when a file does not serve."""

import gzip
import json

import pytest

from rnope.data.corpus import Document, builtin_documents, digest, read_corpus
from rnope.errors import ConfigError

LINES = [{"text": f"Document {i} says {i * i}."} for i in range(60)]


def texts(path):
    return [document.text for document in read_corpus(str(path))]


def write_lines(path, lines=LINES, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def test_every_kind_of_file_in_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.md", "deep/c.rst"):
        (tmp_path / name).write_text(f"text of {name}")
    with gzip.open(tmp_path / "d.txt.gz", "wt") as file:
        file.write("text of d")
    write_lines(tmp_path / "e.jsonl", [{"text": "one"}, {"text": "two", "id": 3}])
    write_lines(tmp_path / "f.jsonl.gz", [{"text": "three"}], gzip.open)
    (tmp_path / "g.py").write_text("not read")
    found = read_corpus(str(tmp_path))
    assert {(d.source, d.text) for d in found} == {
        ("a.txt", "text of a.txt"),
        ("b.md", "text of b.md"),
        ("c.rst", "text of deep/c.rst"),
        ("d.txt.gz", "text of d"),
        ("e.jsonl:1", "one"),
        ("e.jsonl:2", "two"),
        ("f.jsonl.gz:1", "three"),
    }
    assert texts(tmp_path / "deep" / "c.rst") == ["text of deep/c.rst"]


def test_blank_lines_line_ends_and_byte_order_marks(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "one"}\r\n\r\n   \n{"text": "a\u2028b"}'.encode())
    assert texts(path) == ["one", "a\u2028b"]
    (tmp_path / "b.txt").write_bytes("\ufeffθ".encode())
    assert texts(tmp_path / "b.txt") == ["θ"]


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n{"text": "\\ud83e\\udd9c"}')
    assert texts(path) == ["a\ufffdb", "🦜"]
    assert digest(read_corpus(str(path)))


def test_repeated_and_blank_documents_are_dropped(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in ("one", "two", "one", "", " \n", "two", "three")])
    assert texts(path) == ["one", "two", "three"]
    (tmp_path / "b.txt").write_text("one")
    assert sorted(texts(tmp_path)) == ["one", "three", "two"]


def test_documents_keep_their_split_when_others_come(tmp_path):
    first = {d.text: d.split for d in read_corpus(str(write_lines(tmp_path / "a.jsonl")))}
    more = [{"text": f"Another {i}"} for i in range(100)]
    second = {d.text: d.split for d in read_corpus(str(write_lines(tmp_path / "b.jsonl", more + LINES[::-1])))}
    assert set(first.values()) == {"train", "dev", "eval"}
    assert {text: second[text] for text in first} == first
    assert Document(source="x", text="same").split == Document(source="y", text="same").split


def test_shares_of_the_splits():
    splits = [Document(source="", text=str(i)).split for i in range(4000)]
    shares = [splits.count(name) / 4000 for name in ("train", "dev", "eval")]
    assert shares == pytest.approx([0.45, 0.10, 0.45], abs=0.03)


def test_the_digest_is_that_of_the_texts(tmp_path):
    documents = read_corpus(str(write_lines(tmp_path / "a.jsonl")))
    same = read_corpus(str(write_lines(tmp_path / "b.jsonl")))
    assert digest(documents) == digest(same) != digest(documents[:-1])
    # Two documents are not the same as their texts in one.
    assert digest([Document(source="", text="ab")]) != digest([Document(source="", text=t) for t in "ab"])


def test_the_text_that_python_carries():
    documents = builtin_documents()
    first = [next(documents) for _ in range(20)]
    assert all(d.source.startswith("topics/") and len(d.text) > 100 for d in first)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        (None, None, "none': does not exist"),
        ("a.pdf", b"x", "a.pdf': is of no known kind. Use .txt"),
        ("a.gz", b"x", "a.gz': is of no known kind"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read ('utf-8"),
        ("a.jsonl", b"\xff", "cannot be read ('utf-8"),
        ("a.txt.gz", b"not gzip", "cannot be read (Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "cannot be read (Compressed file ended"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:12] + b"\xff" * 30, "cannot be read"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}', "a.jsonl:2': is no JSON object with a string `text`"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1': is no JSON object"),
        ("a.jsonl", b"[]", "a.jsonl:1'"),
        ("a.jsonl", b"3", "a.jsonl:1'"),
        ("a.jsonl", b'"text"', "a.jsonl:1'"),
        ("a.jsonl", b'{"text": "a"', "a.jsonl:1'"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1'"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1'"),
    ],
)
def test_a_file_that_does_not_serve(name, raw, words, tmp_path):
    path = tmp_path / (name or "none")
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_corpus(str(path))
    assert str(caught.value).startswith("corpus = '") and words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("path", ["", "x" * 5000, "\x00"])
def test_a_path_that_is_none(path):
    with pytest.raises(ConfigError, match="corpus = "):
        read_corpus(path)
