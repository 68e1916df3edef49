"""Shards on disk: what is written is read, and what is missing, cut or changed is named."""

import json
import re

import numpy as np
import pytest

from rnope.data.shards import INDEX, Index, Shards, SourceCounts, Vocabulary, array_path, shard_path, write_shard
from rnope.errors import UserError
from rnope.tokenizer import Tokenizer

VOCABULARY = Vocabulary(digest="d" * 64, vocab_size=300, bos_id=1, eos_id=2, pad_id=0)
DOCUMENTS = [[[5, 6, 2], [7, 2]], [[8, 9, 10, 11, 2]]]
COMPLETIONS = [[0, 1], [3]]


def write(folder, *, vocabulary=VOCABULARY, documents=DOCUMENTS, completions=COMPLETIONS):
    entries = [
        write_shard(
            shard_path(folder, "train", number),
            [np.array(ids) for ids in held],
            np.array([len(ids) for ids in held]),
            np.array(starts),
            vocab_size=vocabulary.vocab_size,
        )
        for number, (held, starts) in enumerate(zip(documents, completions, strict=True))
    ]
    counts = (SourceCounts(name="here", documents=3, tokens=10),)
    Index(vocabulary=vocabulary, train=tuple(entries), sources=counts, build={"a": 1}).write(folder)
    return Shards.open(folder)


def test_what_is_written_is_read(tmp_path):
    shards = write(tmp_path)
    assert (shards.tokens, shards.documents, shards.split, shards.folder) == (10, 3, "train", tmp_path)
    assert (shards.tokenizer_digest, shards.vocab_size) == ("d" * 64, 300)
    assert (shards.bos_id, shards.eos_id, shards.pad_id) == (1, 2, 0)
    for shard, documents, completions in zip(shards.shards, DOCUMENTS, COMPLETIONS, strict=True):
        assert isinstance(shard.ids, np.memmap) and shard.ids.dtype == np.uint16
        assert not shard.ids.flags.writeable
        assert shard.ends.dtype == shard.completions.dtype == np.int64
        assert shard.completions.tolist() == completions
        assert [part.tolist() for part in np.split(shard.ids, shard.ends)[:-1]] == documents
        assert (shard.tokens, shard.documents) == (shard.ends[-1], len(documents))
    assert shards.lengths().tolist() == [3, 2, 5]
    assert [(ids.tolist(), start) for ids, start in shards.first_documents(3)] == [
        ([5, 6, 2], 0), ([7, 2], 1), ([8, 9, 10, 11, 2], 3),
    ]  # fmt: skip
    assert len(list(shards.first_documents(2))) == 2 and len(list(shards.first_documents(9))) == 3
    shards.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_as_wide_as_they_must_be(vocab_size, dtype, tmp_path):
    vocabulary = Vocabulary(digest="d", vocab_size=vocab_size, bos_id=1, eos_id=2, pad_id=0)
    ids = [vocab_size - 1, 0, 2]
    shards = write(tmp_path, vocabulary=vocabulary, documents=[[ids]], completions=[[0]])
    assert shards.shards[0].ids.dtype == dtype and shards.shards[0].ids.tolist() == ids


def test_the_digest_is_that_of_the_contents(tmp_path):
    digest = write(tmp_path / "a").digest
    assert digest == write(tmp_path / "b").digest
    changes = [
        dict(documents=[[[5, 6, 2], [8, 2]], DOCUMENTS[1]]),
        dict(documents=[[[5, 6], [2, 7, 2]], DOCUMENTS[1]]),
        dict(completions=[[0, 0], [3]]),
        dict(vocabulary=Vocabulary(digest="e", vocab_size=300, bos_id=1, eos_id=2, pad_id=0)),
    ]
    for number, change in enumerate(changes):
        assert write(tmp_path / str(number), **change).digest != digest


@pytest.mark.parametrize("name", ["ids", "ends", "completions"])
@pytest.mark.parametrize("harm", ["cut", "longer", "missing", "flipped"])
def test_harm_is_named(name, harm, tmp_path):
    shards = write(tmp_path)
    path = array_path(shards.shards[1].path, name)
    raw = path.read_bytes()
    changed = {"cut": raw[:-1], "longer": raw + b"x", "flipped": raw[:-1] + bytes([raw[-1] ^ 1])}
    path.unlink() if harm == "missing" else path.write_bytes(changed[harm])
    words = {
        "cut": f"was cut short: it has {len(raw) - 1} bytes and not {len(raw)}",
        "longer": f"was changed: it has {len(raw) + 1} bytes and not {len(raw)}",
        "missing": "is missing",
        "flipped": "was changed: its SHA-256 is",
    }[harm]
    where = f"{path}: {words}"
    with pytest.raises(UserError, match=re.escape(where) + ".*rnope data build"):
        Shards.open(tmp_path).verify() if harm == "flipped" else Shards.open(tmp_path)


def test_a_split_without_documents(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"its 'validation' split holds no document.*--validation"):
        Shards.open(tmp_path, "validation")
    with pytest.raises(UserError, match=r"split = 'valid': no such split\. Did you mean 'validation'"):
        Shards.open(tmp_path, "valid")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "index.json: does not exist. Give a folder that `rnope data build` has finished"),
        ("{", "cannot be read"),
        ("[]", "is of format None; this rnope reads format 1"),
        ('{"format": 2}', "is of format 2"),
        ('{"format": 1}', "vocabulary = None: is missing"),
    ],
)
def test_an_index_that_does_not_serve(text, words, tmp_path):
    write(tmp_path)
    (tmp_path / INDEX).unlink() if text is None else (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        Shards.open(tmp_path)


def test_a_pickled_array_is_not_opened(tmp_path):
    shards = write(tmp_path)
    path = array_path(shards.shards[0].path, "ends")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        _ = shards.shards[0].ends


def test_its_tokenizer(tmp_path):
    tokenizer = Tokenizer.train(["some text"], vocab_size=260)
    tokenizer.save(tmp_path)
    shards = write(tmp_path)
    assert shards.tokenizer().digest == tokenizer.digest
    assert json.loads((tmp_path / INDEX).read_text())["sources"][0]["name"] == "here"
