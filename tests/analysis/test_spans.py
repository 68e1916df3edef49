"""Segments as token spans, and characters to tokens for tokenizers that merge what they like."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from rnope.analysis.spans import covering, offsets, segments, token_span
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer

TEXT = "One day Ann hid a blue pearl in the barn. “Où est-elle ?” 北京 👩‍🚀 nobody knew."


@pytest.fixture(scope="module")
def byte_level():
    return Tokenizer.train([TEXT], vocab_size=300)


@pytest.fixture(scope="module")
def greedy():
    """A BPE without words, whose tokens run over spaces."""
    backend = Backend(models.BPE())
    texts = [TEXT] + ["a blue pearl in"] * 9
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def trimmed(byte_level):
    """As GPT-2's: offsets leave the space before a word out."""
    from tokenizers import processors

    backend = Backend.from_str(byte_level.backend.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return Tokenizer(backend)


def test_context_is_what_lies_between():
    found = segments(100, {"qc": (90, 100), "needle": (50, 60), "begin": (0, 10), "zoo": (20, 25), "ant": (60, 61)})
    assert found == {
        "begin": ((0, 10),),
        "needle": ((50, 60),),
        "context": ((10, 20), (25, 50), (61, 90)),
        "qc": ((90, 100),),
        "ant": ((60, 61),),
        "zoo": ((20, 25),),
    }
    assert list(found) == ["begin", "needle", "context", "qc", "ant", "zoo"]
    assert segments(5, {}) == {"context": ((0, 5),)}
    assert segments(5, {"qc": (0, 5)}) == {"context": (), "qc": ((0, 5),)}


@settings(max_examples=60, deadline=None)
@given(cuts=st.sets(st.integers(0, 60), min_size=2, max_size=12), data=st.data())
def test_every_token_is_in_one_segment(cuts, data):
    edges = sorted(cuts)
    pairs = [pair for pair in pairwise(edges) if data.draw(st.booleans())]
    named = {f"s{i}": pair for i, pair in enumerate(data.draw(st.permutations(pairs)))}
    found = segments(60, named)
    tokens = [(t, name) for name, stretches in found.items() for begin, end in stretches for t in range(begin, end)]
    assert sorted(t for t, _ in tokens) == list(range(60))
    assert {name: (stretches) for name, stretches in found.items() if name != "context"} == {
        name: (span,) for name, span in named.items()
    }
    assert list(found["context"]) == sorted(found["context"])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"needle": (5, 5)}, r"spans\.needle = \(5, 5\): holds nothing"),
        ({"needle": (9, 5)}, r"spans\.needle = \(9, 5\): holds nothing"),
        ({"needle": (-1, 5)}, r"spans\.needle .*not inside the text of 20 tokens"),
        ({"needle": (5, 21)}, r"spans\.needle .*not inside the text of 20 tokens"),
        ({"needle": (5, 10), "qc": (9, 20)}, r"spans\.qc = \(9, 20\): overlaps with needle = \(5, 10\)"),
        ({"a": (5, 10), "b": (5, 10)}, r"spans\.b .*overlaps with a"),
        ({"a": (0, 20), "b": (3, 4), "c": (18, 20)}, r"spans\.b .*overlaps with a"),
        ({"context": (5, 10)}, r"spans\.context .*leave over"),
    ],
)
def test_spans_that_cannot_be_are_refused(named, message):
    with pytest.raises(ConfigError, match=message):
        segments(20, named)


def test_words_are_found_and_the_space_before_one_is_no_widening(byte_level, trimmed):
    for tokenizer in (byte_level, trimmed):
        for begin in (TEXT.index("blue"), TEXT.index(" blue")):
            (first, last), widened = token_span(tokenizer, TEXT, begin, TEXT.index(" in the"))
            assert tokenizer.decode(tokenizer.encode(TEXT)[first:last]) == " blue pearl"
            assert not widened


def test_a_merged_needle_is_widened_to_whole_tokens(greedy):
    places = offsets(greedy, TEXT)
    index = next(i for i, (begin, end) in enumerate(places) if " " in TEXT[begin + 1 : end - 1])
    begin, end = places[index]
    inner = begin + 1 + TEXT[begin + 1 : end - 1].index(" ")
    assert token_span(greedy, TEXT, begin, end) == ((index, index + 1), False)
    assert token_span(greedy, TEXT, begin, inner) == ((index, index + 1), True), "what follows is merged with it"
    assert token_span(greedy, TEXT, inner + 1, end) == ((index, index + 1), True), "what stands before it is"
    assert token_span(greedy, TEXT, inner + 1, end + 1) == ((index, index + 2), True)


def test_the_tokens_hold_the_characters_and_one_fewer_would_not(byte_level, greedy, trimmed):
    spans = [(begin, end) for begin in range(len(TEXT)) for end in range(begin + 1, min(begin + 13, len(TEXT) + 1))]
    for tokenizer in (byte_level, greedy, trimmed):
        places = offsets(tokenizer, TEXT)
        for begin, end in spans:
            holders = [i for i, (a, b) in enumerate(places) if any(a <= c < b for c in range(begin, end))]
            if TEXT[begin:end].strip():
                (first, last), widened = covering(TEXT, places, begin, end)
                assert (first, last) == (holders[0], holders[-1] + 1)
                more = {c for a, b in places[first:last] for c in range(a, b)} - set(range(begin, end))
                assert widened == any(not TEXT[c].isspace() for c in more)


@pytest.mark.parametrize("character", "ù“北京👩🚀")
def test_a_character_of_several_bytes_is_all_its_tokens(byte_level, character):
    at = TEXT.index(character)
    (first, last), _ = token_span(byte_level, TEXT, at, at + 1)
    assert character in byte_level.decode(byte_level.encode(TEXT)[first:last])
    split = [i for i, (a, b) in enumerate(offsets(byte_level, TEXT)) if a <= at < b]
    assert split == list(range(first, last)) and (character == "京" or len(split) > 1)


@pytest.mark.parametrize("span", [(0, 0), (5, 3), (-1, 3), (0, 10_000)])
def test_characters_that_are_not_there_are_refused(byte_level, span):
    with pytest.raises(ConfigError, match=r"span = .*must be a stretch of the \d+ characters"):
        token_span(byte_level, TEXT, *span)


def test_characters_in_no_token_are_refused():
    backend = Backend(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match=r"in no token"):
        token_span(Tokenizer(backend), "a   a", 2, 3)
