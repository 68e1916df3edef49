"""What examples are made of: the training split alone, and text in pieces that lose nothing."""

import gzip
import json
from collections import Counter as Tally
from random import Random

import pytest

from rnope.data.corpus import Document
from rnope.data.examples.invented import Inventor
from rnope.data.examples.material import pieces, running_text, training_documents, training_pairs
from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES
from rnope.errors import ConfigError


def test_documents_to_train_on(corpus, texts, held_out):
    kept = training_documents(corpus)
    assert {d.split for d in kept} == {"train"}
    assert len(kept) == len(texts) - len(held_out)


def test_a_corpus_with_nothing_to_train_on(tmp_path):
    text = next(t for t in map(str, range(99)) if Document(source="", text=t).split != "train")
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"^corpus = .*: none of its 1 documents is of the training split"):
        training_documents(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "One. Two! Three?\n\nFour\n  five 3.5 six.",
        "x",
        "  \n lead",
        "a" * 1000 + " b",
        ("word " * 200).strip(),
        "e.g. A\u2028b\r\nc\x0cd",
    ],
)
def test_pieces_joined_are_the_text(text):
    parts = pieces(text)
    assert "".join(parts) == text and all(part.strip() for part in parts)


def test_pieces_are_sentences_and_lines():
    assert pieces("One is. Two\nthree 3.5! Four  ") == ["One is.", " Two", "\nthree 3.5!", " Four"]
    assert max(map(len, pieces("word " * 500))) < 250


def test_running_text_has_every_piece_once(texts):
    documents = [Document(source="", text=text) for text in texts[:9]]
    every = Tally(part.strip() for text in texts[:9] for part in pieces(text))
    runs = [list(running_text(Random(seed), documents)) for seed in range(4)]
    for run in runs:
        assert Tally(part.strip() for part in run) == every
        joined = "".join(run)
        assert sum(text.strip() in joined for text in texts[:9]) >= 8, "all but the first stand in one piece"
        assert joined.startswith("\n\n")
    assert len({"".join(run) for run in runs}) == 4


def test_pairs_to_train_on(tmp_path, texts, held_out):
    lines = [json.dumps({"source": text, "target": f"t{n}", "more": n}) for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    kept = training_pairs(tmp_path / "a.jsonl", ("source", "target"), by="source")
    assert kept == training_pairs(tmp_path / "b.jsonl.gz", ("source", "target"), by="source")
    assert [pair["target"] for pair in kept] == [f"t{n}" for n in range(len(texts)) if f"zq{n}q" not in held_out]
    assert set(kept[0]) == {"source", "target"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "cannot be read (No such file"),
        (b"\xff", "cannot be read ('utf-8'"),
        (b'{"source": "a", "target": "b"}\n{"source": "a"}', "a.jsonl:2': lacks one of its texts"),
        (b'{"source": "a", "target": " "}', "a.jsonl:1': lacks"),
        (b'{"source": "a", "target": 3}', "a.jsonl:1': lacks"),
        (b"[]", 'Write {"source": "...", "target": "..."} per line.'),
        (b"{", "a.jsonl:1'"),
        (b"\n\n", "none of its 0 documents"),
    ],
)
def test_pairs_that_do_not_serve(raw, words, tmp_path):
    path = tmp_path / "a.jsonl"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        training_pairs(path, ("source", "target"), by="source")
    assert str(caught.value).startswith("pairs = ") and words in str(caught.value), str(caught.value)


def test_invented_words_are_new():
    inventor = Inventor(Random(0))
    words = [inventor.word() for _ in range(20_000)]
    assert len(set(words)) == len(words)
    assert all(word.isascii() and word.islower() and word.isalpha() for word in words)
    assert not {*KEYS, *UNSEEN_KEYS, *VALUES} & set(words)
    assert inventor.name().istitle()
