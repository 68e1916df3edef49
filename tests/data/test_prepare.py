"""A corpus made ready: once, whole or not at all, and refused when it is too small for the rows."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

import rnope.data.prepare as prepare_module
from rnope.data.corpus import read_corpus
from rnope.data.prepare import SPLITS, prepare
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    words = "alpha beta gamma delta of the and a in to is was it that for on as with at by".split()
    lines = [" ".join(rng.choices(words, k=60)) + "." for _ in range(60)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def made(corpus, folder, vocab_size=1024, least_tokens=100):
    return prepare(corpus, vocab_size=vocab_size, folder=folder, least_tokens=least_tokens)


def test_tokens_are_those_of_the_documents(corpus, folder):
    data = made(corpus, folder)
    tokenizer = data.tokenizer()
    for split in SPLITS:
        held = [d.text for d in read_corpus(corpus) if d.split == split]
        found = data.documents(split)
        assert [tokenizer.decode(ids.tolist()) for ids in found] == held
        assert data.tokens[split] == len(data.text(split)) == sum(map(len, found))
        assert data.text(split).dtype == np.int64 and data.text(split).max() < tokenizer.vocab_size
    assert sorted(p.name for p in folder.iterdir()) == [data.digest]


def test_a_second_call_finds_it(corpus, folder, monkeypatch):
    first = made(corpus, folder)
    monkeypatch.setattr(Tokenizer, "train", None)
    assert made(corpus, folder) == first
    with pytest.raises(TypeError):  # another vocabulary, or another text, is another folder
        made(corpus, folder, vocab_size=2000)


def test_other_vocabularies_and_texts_stand_beside(corpus, folder, tmp_path):
    first, second = made(corpus, folder), made(corpus, folder, vocab_size=1100)
    (tmp_path / "more.jsonl").write_text(Path(corpus).read_text() + '{"text": "one more"}\n')
    third = made(str(tmp_path / "more.jsonl"), folder)
    assert len({first.digest, second.digest, third.digest}) == 3
    assert sorted(p.name for p in folder.iterdir()) == sorted([first.digest, second.digest, third.digest])


def test_the_tokenizer_learns_from_the_training_split_alone(corpus, folder, monkeypatch):
    seen = []
    train = Tokenizer.train
    monkeypatch.setattr(Tokenizer, "train", lambda texts, **options: seen.extend(texts) or train(texts, **options))
    made(corpus, folder)
    assert seen == [d.text for d in read_corpus(corpus) if d.split == "train"]


def test_of_a_large_corpus_it_learns_from_every_nth_document_and_tokens_stay_those_of_the_documents(
    corpus, folder, monkeypatch
):
    seen = []
    train = Tokenizer.train
    monkeypatch.setattr(Tokenizer, "train", lambda texts, **options: seen.extend(texts) or train(texts, **options))
    held = [d.text for d in read_corpus(corpus) if d.split == "train"]
    monkeypatch.setattr(prepare_module, "TOKENIZER_CHARACTERS", sum(map(len, held)) * 2 // 5)
    monkeypatch.setattr(prepare_module, "_ENCODED_CHARACTERS", 1000)  # three documents at a time, and some left over
    data = made(corpus, folder)
    assert seen == held[::3]
    assert [data.tokenizer().decode(ids.tolist()) for ids in data.documents("train")] == held


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
@pytest.mark.parametrize("where", ["savez", "replace"])
def test_killed_half_way_it_leaves_nothing(error, where, corpus, folder, monkeypatch):
    def fail(*_, **__):
        raise error

    calls = []
    save = np.savez

    def second_fails(*arguments, **arrays):
        calls.append(arguments)
        (save if len(calls) == 1 else fail)(*arguments, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(*((np, "savez", second_fails) if where == "savez" else (os, "replace", fail)))
        with pytest.raises(error if isinstance(error, type) else type(error)):
            made(corpus, folder)
    assert list(folder.iterdir()) == []
    assert made(corpus, folder).tokens["train"] > 0


@pytest.mark.parametrize("least", [10**4, 700])
def test_too_small_for_the_rows(least, corpus, folder):
    with pytest.raises(ConfigError) as caught:
        made(corpus, folder, least_tokens=least)
    assert f"tokens, too few for rows of {least:,}. Use a larger corpus, or shorter contexts." in str(caught.value)


def test_too_few_documents(tmp_path, folder):
    path = tmp_path / "one.txt"
    path.write_text("all in one document")
    with pytest.raises(ConfigError, match=r"its 1 documents leave none for the '\w+' split. Use more documents"):
        made(str(path), folder)
    assert not folder.exists()


def test_a_vocabulary_too_small(corpus, folder):
    with pytest.raises(ConfigError, match="vocab_size = 400: is too small to keep"):
        made(corpus, folder, vocab_size=400)
    assert not folder.exists()
