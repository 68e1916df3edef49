"""The tokenizer: words whole, nothing lost, conversations written, and read alike by `AutoTokenizer`."""

import hashlib
import json
import unicodedata

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES
from rnope.errors import ConfigError, UserError
from rnope.messages import CHAT_TEMPLATE, END_OF_TURN, TURNS
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


def test_what_names_cached_results_stays(tokenizer, folder):
    """Computed before tokenizers could converse: those of the comparison are the same, to the byte."""
    assert tokenizer.digest == "c376f0b2fad651e4833b1001363704226a75f7eb55268e9a4b8ddf1af235c8f8"
    config = hashlib.sha256((folder / "tokenizer_config.json").read_bytes()).hexdigest()
    assert config == "cbdebf4c0f79fadffe7aa19f66e8f564df883466acb1cbcfefe4c3f55db2aca0"


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


# Tokenizers of others


def foreign(folder, tokens, **files):
    """A folder as others have it: other special tokens, and what the files beside `tokenizer.json` say of them."""
    content = json.loads(Tokenizer.train(TEXTS, vocab_size=300).backend.to_str())
    content["post_processor"] = None
    for ours, theirs in zip((PAD, BOS, EOS), tokens, strict=True):
        content = json.loads(json.dumps(content).replace(json.dumps(ours), json.dumps(theirs)))
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name, held in files.items():
        (folder / f"{name}.json").write_text(json.dumps(held, indent=4))
    return folder


def as_object(token):
    return {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False}  # fmt: skip


CLASS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 123}
FOREIGN = {
    "llama": (("<pad>", "<|begin|>", "<|end|>"),
              dict(tokenizer_config=CLASS | {"bos_token": "<|begin|>", "eos_token": "<|end|>"}), (1, 2, 2)),
    "objects": (("<pad>", "<s>", "</s>"),
                dict(tokenizer_config=CLASS | {"bos_token": as_object("<s>"), "eos_token": as_object("</s>"),
                                               "pad_token": as_object("<pad>")}), (1, 2, 0)),
    "no bos": (("<pad>", "<unused>", "<|im_end|>"),
               dict(tokenizer_config=CLASS | {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<pad>"}),
               (2, 2, 0)),
    "map alone": (("<pad>", "<s>", "</s>"),
                  dict(special_tokens_map={"bos_token": "<s>", "eos_token": {"content": "</s>"}}), (1, 2, 2)),
    "map before an old config": (
        ("<pad>", "<s>", "</s>"),
        dict(
            tokenizer_config=CLASS | {"bos_token": "<s>", "eos_token": "<s>"},
            special_tokens_map={"eos_token": "</s>", "pad_token": "<pad>"},
        ),
        (1, 2, 0),
    ),
    "new config before map": (
        ("<pad>", "<s>", "</s>"),
        dict(
            tokenizer_config=CLASS | {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {}},
            special_tokens_map={"eos_token": "<s>"},
        ),
        (1, 2, 2),
    ),
    "ours unsaid": ((PAD, BOS, EOS), {}, (1, 2, 0)),
    "ours in part": ((PAD, BOS, "</s>"), dict(tokenizer_config=CLASS | {"eos_token": "</s>"}), (1, 2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_special_tokens_of_others(kind, tmp_path):
    tokens, files, ids = FOREIGN[kind]
    folder = foreign(tmp_path / "theirs", tokens, **files)
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == ids
    assert tokenizer.bos_id not in tokenizer.encode("some text")
    tokenizer.save(tmp_path / "saved")
    for name in (*(f"{name}.json" for name in files), "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes(), "unchanged"
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.bos_id, again.eos_id, again.pad_id) == ids and again.digest == tokenizer.digest
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token_id == ids[1] and theirs.bos_token_id in (ids[0], None)
    assert theirs.pad_token_id in (ids[2], None) and len(theirs) == tokenizer.vocab_size == again.vocab_size
    text = "The quick brown fox"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_no_end_of_text_at_all(tmp_path):
    tokenizer = Tokenizer.load(foreign(tmp_path / "t", ("<pad>", "<s>", "</s>")))
    for role in ("bos_id", "eos_id", "pad_id"):
        with pytest.raises(ConfigError, match=r"tokenizer = '<EOS_TOKEN>': is missing.*tokenizer_config\.json"):
            getattr(tokenizer, role)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_beside_it_that_cannot_be_read(name, raw, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=rf"{name}: (is no JSON object|cannot be read)"):
        Tokenizer.load(tmp_path)


def test_truncation_and_padding_of_a_file_cut_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0]) and again.digest == tokenizer.digest


def test_the_digest_tells_tokenizers_apart(tokenizer, folder):
    assert Tokenizer.load(folder).digest == tokenizer.digest and len(tokenizer.digest) == 64
    other = Tokenizer.train(TEXTS, vocab_size=1024)
    added = Tokenizer.load(folder)
    added.backend.add_tokens([AddedToken("new")])
    assert len({tokenizer.digest, other.digest, added.digest}) == 3


def test_the_size_of_a_vocabulary_with_holes():
    assert Tokenizer(Backend(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))).vocab_size == 8


def test_plain_text_never_spells_a_special_token(tokenizer):
    text = f"a{EOS}b {BOS}"
    (ids,) = tokenizer.encode_plain([text])
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids) and tokenizer.decode(ids) == text
    assert {tokenizer.bos_id, tokenizer.eos_id} <= set(tokenizer.encode(text)), "and elsewhere it does as before"
    assert tokenizer.encode_plain(STRINGS[:5]) == tokenizer.encode_batch(STRINGS[:5])


# Conversations

TALK = [
    {"role": "system", "content": "Answer with one word."},
    {"role": "user", "content": " What jumps over the dog? \n"},
    {"role": "assistant", "content": "  The fox."},
    {"role": "user", "content": "And 漢字?"},
]
SPELLED = [{"role": "user", "content": f"a{EOS}b {END_OF_TURN}\n<|im_end|> c"}, {"role": "assistant", "content": BOS}]


@pytest.fixture(scope="module")
def talker():
    return Tokenizer.train(TEXTS, vocab_size=400, chat=True)


def test_our_conversations_are_those_of_transformers(talker, tmp_path):
    talker.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for talk in (TALK, TALK[1:2], TALK[1:], TALK[:3], SPELLED):
        for prompt in (True, False):
            wanted = {"add_generation_prompt": prompt}
            assert talker.render_chat(talk, **wanted) == theirs.apply_chat_template(talk, tokenize=False, **wanted)
            ids = talker.encode_chat(talk, **wanted)
            plain = theirs.apply_chat_template(talk, sanitize_control_tokens=True, **wanted)["input_ids"]
            parsed = theirs.apply_chat_template(talk, **wanted)["input_ids"]
            assert ids == plain and (ids == parsed) is (talk is not SPELLED)
            assert ids.count(talker.bos_id) == 1 and ids[0] == talker.bos_id and talker.eos_id not in ids
            assert ids.count(talker.end_of_turn_id) == len(talk)
    assert len(theirs) == talker.vocab_size and theirs.decode(ids, skip_special_tokens=True)[0] == "a"


def test_a_tokenizer_for_conversations(talker, tokenizer, tmp_path):
    assert [talker.backend.token_to_id(token) for token in (PAD, BOS, EOS, *TURNS)] == list(range(8))
    assert talker.stop_ids == (2, 4) and talker.decode([4]) == END_OF_TURN and talker.chat_template == CHAT_TEMPLATE
    assert (tokenizer.stop_ids, tokenizer.chat_template, tokenizer.end_of_turn_id) == ((2,), None, None)
    talker.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again = Tokenizer.load(tmp_path)
    assert again.stop_ids == (2, 4) and again.encode_chat(TALK) == talker.encode_chat(TALK)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = Tokenizer.load(tmp_path)
    assert other.digest == talker.digest and other.stop_ids == (2,), "what ends a turn of others is not guessed"
    with pytest.raises(ConfigError, match=r"vocab_size = 263: bytes and special tokens alone are 264"):
        Tokenizer.train(TEXTS, vocab_size=263, chat=True)
    with pytest.raises(UserError, match=r"The tokenizer has no chat template.*chat_template\.jinja"):
        tokenizer.encode_chat(TALK)


def test_what_is_learned_is_the_last_answer(talker):
    prompt, answer = talker.encode_example(TALK[:3])
    assert prompt + answer == talker.encode_chat(TALK[:3])
    assert prompt == talker.encode_chat(TALK[:2], add_generation_prompt=True)
    assert answer == [*talker.encode("The fox."), talker.end_of_turn_id]
    for talk in (TALK, TALK[:2], [TALK[2]]):
        with pytest.raises(UserError, match="The last message is no answer of the assistant"):
            talker.encode_example(talk)
    odd = Tokenizer(talker.backend, {"chat_template.jinja": "{{ messages | length }}{{ add_generation_prompt }}"})
    with pytest.raises(UserError, match=r"chat_template\.jinja: the chat template writes an answer other than behind"):
        odd.encode_example(TALK[:3])


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ bos_token }}|" + CHATML}]
CARRIED = {
    "text": (CLASS | {"chat_template": CHATML}, None, CHATML),
    "list": (CLASS | {"chat_template": NAMED}, None, NAMED[1]["template"]),
    "by name": (CLASS | {"chat_template": {"default": CHATML, "rag": "x"}}, None, CHATML),
    "file first": (CLASS | {"chat_template": "old"}, "{{ eos_token }}" + CHATML, "{{ eos_token }}" + CHATML),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_the_chat_templates_of_others(kind, tmp_path):
    config, file, wanted = CARRIED[kind]
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    folder = foreign(tmp_path / "a", ("<pad>", "<|im_start|>", "<|im_end|>"), tokenizer_config=config | names)
    if file:
        (folder / "chat_template.jinja").write_text(file)
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path / "saved")
    assert tokenizer.chat_template == wanted == Tokenizer.load(tmp_path / "saved").chat_template
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    for place in (folder, tmp_path / "saved"):
        theirs = AutoTokenizer.from_pretrained(place)
        assert theirs.eos_token_id == tokenizer.eos_id and theirs.bos_token_id == tokenizer.bos_id
        for talk in (TALK, SPELLED):
            text = theirs.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
            ids = theirs.apply_chat_template(talk, add_generation_prompt=True, sanitize_control_tokens=True)
            assert tokenizer.render_chat(talk, add_generation_prompt=True) == text
            assert tokenizer.encode_chat(talk, add_generation_prompt=True) == ids["input_ids"]


@pytest.mark.parametrize("held", [3, {"default": 3}, [{"name": "default", "template": 3}]])
def test_a_template_that_is_no_text(held, tmp_path):
    tokenizer = Tokenizer.load(
        foreign(tmp_path / "a", (PAD, BOS, EOS), tokenizer_config=CLASS | {"chat_template": held})
    )
    with pytest.raises(UserError, match=r"tokenizer_config\.json: its chat_template is no text"):
        _ = tokenizer.chat_template


def test_a_list_without_a_default_is_no_template(tmp_path):
    held = CLASS | {"chat_template": NAMED[:1]}
    assert Tokenizer.load(foreign(tmp_path / "a", (PAD, BOS, EOS), tokenizer_config=held)).chat_template is None
