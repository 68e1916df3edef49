"""Pieces: the same ids as the tokenizer alone, for every kind of tokenizer and the nastiest text."""

import json
import random

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from rnope.data.pieces import _PATTERNS, PieceEncoder
from rnope.tokenizer import Tokenizer

TEXT = "The quick brown fox, isn't it? “Yes,” he'd said; 12,345 times — the the other's and end. " * 20
ALPHABET = [
    " ", "  ", "\n", "\r\n", "\t", "\xa0", "\u2009", "\x1c", "\x85", "a", "the", "The", "s", "t", "'", "'s", "'ll", "’",
    ",", ".", ";", ":", "!", "?", ")", "(", "”", "“", "—", "-", "<", ">", "_", "1", "23", "½", "²", "é", "e\u0301",
    "\u0301", "\u0338", "ſ", "漢字", "ß", "🦜", "\u200d", "\x00", "<EOS_TOKEN>", "<t>", "   ",
]  # fmt: skip


def variant(kind):
    """A tokenizer of another family with the same merges."""
    backend = Backend.from_str(Tokenizer.train([TEXT], vocab_size=360).backend.to_str())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "gpt2":
        backend.normalizer, backend.pre_tokenizer = None, level
    elif kind in ("llama", "qwen"):
        pattern = next(p for p in _PATTERNS if ("{1,3}" in p) == (kind == "llama"))
        content = json.loads(backend.to_str())
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, plain]}
        backend = Backend.from_str(json.dumps(content))
    elif kind == "added":
        backend.add_tokens([AddedToken("<t>", normalized=False), AddedToken("   ", normalized=False)])
    elif kind == "prefixed":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif kind == "uncut":
        backend.pre_tokenizer = bare
    elif kind == "unknown":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("the", "isolated"), bare])
    elif kind == "replacing":
        backend.normalizer = normalizers.Replace(" ", "a")
    elif kind == "across":
        backend.add_tokens([AddedToken("a the", normalized=False)])
    elif kind == "stripping":
        backend.add_tokens([AddedToken("<t>", normalized=False, rstrip=True, lstrip=True)])
    return Tokenizer(backend)


KNOWN = ["ours", "gpt2", "llama", "qwen", "added"]
OTHERS = ["prefixed", "uncut", "unknown", "replacing", "across", "stripping"]


@pytest.mark.parametrize("kind", KNOWN + OTHERS)
def test_the_same_ids_as_of_the_whole_text(kind):
    tokenizer = variant(kind)
    encode = PieceEncoder(tokenizer)
    assert encode.in_pieces == (kind in KNOWN)
    draw = random.Random(kind)
    texts = ["".join(draw.choices(ALPHABET, k=draw.randint(0, 25))) for _ in range(4000)] + ["", " ", TEXT]
    whole = tokenizer.encode_plain(texts)
    assert encode(texts) == whole
    assert encode(texts) == whole, "from memory"


@pytest.mark.parametrize("kind", ["prefixed", "across", "stripping"])
def test_those_that_are_refused_would_differ(kind):
    tokenizer = variant(kind)
    encode = PieceEncoder(tokenizer)
    encode.in_pieces = True
    texts = ["a the", "in the other", "x <t> y", "he said, the end"]
    assert encode(texts) != tokenizer.encode_plain(texts)


def test_special_tokens_are_text():
    tokenizer = variant("ours")
    (ids,) = PieceEncoder(tokenizer)(["a<EOS_TOKEN> b"])
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "a<EOS_TOKEN> b"
    assert tokenizer.eos_id in tokenizer.encode("a<EOS_TOKEN> b"), "and are read again elsewhere"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("rnope.data.pieces._KEPT", 100)
    encode = PieceEncoder(variant("ours"))
    for i in range(50):
        words = " ".join(f"w{i}x{j}" for j in range(40)) + " " + "long" * 20
        assert encode([words]) == encode.tokenizer.encode_plain([words])
        assert len(encode._known) <= 140 and not any(len(piece) > 32 for piece in encode._known)
