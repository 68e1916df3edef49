"""The tokenizer: words whole, nothing lost, and read alike by `AutoTokenizer`."""

import unicodedata

import pytest
from transformers import AutoTokenizer

from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES
from rnope.errors import ConfigError, UserError
from rnope.tokenizer import BOS, EOS, PAD, Tokenizer

WORDS = [*KEYS, *UNSEEN_KEYS, *VALUES, "secret", "recall"]
TEXTS = ["The quick brown fox jumps over the lazy dog. " * 20, "Pack my box with five dozen liquor jugs!\n" * 20]
STRINGS = [
    "",
    " ",
    "\n\n\t  x\r\n",
    "Hello, world",
    "  two  spaces  ",
    "1234567890 3.14 1,000,000",
    "a1b22c333",
    "naïve café Ångström",
    "cafe\u0301 A\u030a",  # decomposed: NFC joins them
    "ﬁ ligature, ½, ①",
    "漢字とカナ العربية עברית",
    "👩‍👩‍👧 🦜 🇩🇪",
    "\x00\x7f\u200b\ufeff",
    "it's they'll I'm",
    " secret acorn anchor. recall anchor acorn.",
    "x" * 500,
    "<|endoftext|> </s> <pad>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=1024, whole_words=WORDS)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    tokenizer.save(path)
    return path


def test_needle_words_are_one_token_each_and_all_different(tokenizer):
    ids = [tokenizer.word(word) for word in WORDS]
    assert len(set(ids)) == len(WORDS) and tokenizer.vocab_size <= 1024
    sentence = " secret acorn anchor."
    assert tokenizer.encode(sentence)[:3] == [tokenizer.word(w) for w in ("secret", "acorn", "anchor")]
    with pytest.raises(ConfigError, match="word = 'antidisestablishmentarianism': is not one token"):
        tokenizer.word("antidisestablishmentarianism")


@pytest.mark.parametrize("text", STRINGS)
def test_decoding_gives_the_normalised_text_back(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_digits_are_single(tokenizer):
    assert len(tokenizer.encode("1234567890")) == 10


def test_encode_adds_no_bos_and_batches_alike(tokenizer):
    ids = tokenizer.encode_batch(STRINGS)
    assert ids == [tokenizer.encode(text) for text in STRINGS]
    assert tokenizer.bos_id not in {i for row in ids for i in row}
    assert max(i for row in ids for i in row) < tokenizer.vocab_size


def test_auto_tokenizer_reads_it_alike(tokenizer, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in STRINGS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text), text
        assert theirs.encode(text) == [tokenizer.bos_id, *tokenizer.encode(text)], text
        assert theirs.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    specials = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert specials == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (BOS, EOS, PAD)
    assert len(theirs) == tokenizer.vocab_size


def test_loading_gives_the_same_tokenizer(tokenizer, folder):
    again = Tokenizer.load(folder)
    assert again.vocab_size == tokenizer.vocab_size and again.encode_batch(STRINGS) == tokenizer.encode_batch(STRINGS)
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, 0)
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_training_again_gives_the_same_file(folder, tmp_path):
    Tokenizer.train(TEXTS, vocab_size=1024, whole_words=WORDS).save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("vocab_size", [-5, 0, 258])
def test_a_vocabulary_below_the_bytes(vocab_size):
    with pytest.raises(ConfigError, match=f"vocab_size = {vocab_size}: bytes and special tokens alone are 259"):
        Tokenizer.train(TEXTS, vocab_size=vocab_size)


def test_a_vocabulary_too_small_for_the_words():
    with pytest.raises(ConfigError, match=r"vocab_size = 300: is too small to keep \d+ of \d+ needle words whole"):
        Tokenizer.train(TEXTS, vocab_size=300, whole_words=WORDS)
    assert Tokenizer.train(TEXTS, vocab_size=259).vocab_size == 259


@pytest.mark.parametrize("text", [None, "", "{}", "[1", "\x00"])
def test_a_folder_without_a_tokenizer(text, tmp_path):
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer can be read"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_our_special_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(EOS, "<EOT>"))
    with pytest.raises(ConfigError, match="tokenizer = '<EOS_TOKEN>': is missing from the vocabulary"):
        _ = Tokenizer.load(tmp_path).eos_id
