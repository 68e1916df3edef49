"""Haystacks against the texts that they are made of, put together slowly."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.evals.text import Haystack
from rnope.tokenizer import Tokenizer

TEXTS = [
    "One goes. Two stay! “Why so?” asks three.",
    "Pi is 3.14 or so. No end here",
    "Four (that is all.) Five…  Six\nseven eight nine",
    "终于到了。真好！然后",
    "No sentence at all",
]


@pytest.fixture(scope="module")
def hay(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return Haystack(Tokenizer.train(["spell it out"], vocab_size=262), str(folder))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["spell it out"], vocab_size=262)


def test_documents_are_the_texts_in_order(hay, tokenizer):
    assert [tokenizer.decode(ids.tolist()) for ids in hay.documents] == [f"{text}\n\n" for text in TEXTS]
    assert hay.tokens == sum(map(len, hay.documents)) and hay.texts == TEXTS


@given(seed=st.integers(0, 99), tokens=st.integers(0, 700))
@settings(max_examples=60, deadline=None)
def test_a_haystack_is_whole_documents_in_random_orders(hay, tokenizer, seed, tokens):
    ids = hay.compose(np.random.default_rng(seed), tokens)
    assert len(ids) == tokens and ids.dtype == np.int64
    # Each time through, every token of the corpus comes once.
    everything = Counter(np.concatenate(hay.documents).tolist())
    for begin in range(0, tokens - hay.tokens + 1, hay.tokens):
        assert Counter(ids[begin : begin + hay.tokens].tolist()) == everything
    rest = Counter(ids[tokens - tokens % hay.tokens :].tolist())
    assert rest <= everything
    assert hay.repeats(tokens) == max(1, tokens / hay.tokens)


def test_orders_differ_and_begin_at_sentences(hay, tokenizer):
    texts = [tokenizer.decode(hay.compose(np.random.default_rng(i), 60).tolist()) for i in range(200)]
    starts = {text[:7].lstrip() for text in texts}
    assert len(set(texts)) > 15
    assert {"Two st", "One go"} <= {start[:6] for start in starts}
    assert not any(start.startswith(("14", "wo", "seven", "eight")) for start in starts)


def test_one_long_document_makes_many_haystacks(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text(" ".join(f"Sentence {i} is here." for i in range(300)))
    hay = Haystack(tokenizer, str(tmp_path))
    found = {hay.compose(np.random.default_rng(i), 200).tobytes() for i in range(50)}
    assert len(found) > 40


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_boundaries_are_where_a_reader_sees_them(hay, tokenizer, number):
    ids = hay.documents[number]
    found = {tokenizer.decode(ids[:place].tolist()) for place in hay.boundaries(ids)}
    text = f"{TEXTS[number]}\n\n"
    expected = {
        text[:i]
        for i in range(1, len(text))
        if text[i - 1] in "。！"
        or (text[:i].rstrip("”)").endswith((".", "!", "?", "…")) and text[i - 1] != " " and text[i] in " \n")
    }
    # One byte a token here: a mark of several bytes, or one before a bracket, is not seen by its last token alone.
    assert {text for text in found if "�" not in text} <= expected
    assert {e for e in expected if e[-1] in ".!?"} <= found
