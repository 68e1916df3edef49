"""A tokenizer in a GGUF file: what is written, and what llama.cpp would not follow. (`test_gguf_llama` asks it for ids.)"""

import gguf
import pytest
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from rnope.errors import ConfigError
from rnope.hf.gguf import export_gguf
from rnope.testing import tiny_model
from rnope.tokenizer import LLAMA3, QWEN2, Tokenizer

TEXT = ["one two three four, it's twenty-one; they'll see what we've done. ", "Zahlen wie 1234, Ökonomie, 東京.\n\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT * 20, vocab_size=400, whole_words=["orange", "table"])


def facts(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def exported(tokenizer, path):
    export_gguf(tiny_model(vocab_size=410), path, tokenizer=tokenizer)
    return facts(path)


def changed(tokenizer, change):
    other = Tokenizer(Backend.from_str(tokenizer.backend.to_str()), tokenizer.companions)
    change(other.backend)
    return other


def test_the_tokenizer_goes_along(tokenizer, tmp_path):
    found = exported(tokenizer, tmp_path / "m.gguf")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    count = tokenizer.vocab_size
    assert tokens[:count] == [tokenizer.backend.id_to_token(i) for i in range(count)]
    assert len(tokens) == len(set(tokens)) == len(types) == 410
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    assert types == [control if i in special else normal if i < count else unused for i in range(410)]
    assert found["tokenizer.ggml.pre"] == "command-r" and found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert found["tokenizer.ggml.padding_token_id"] == tokenizer.pad_id
    assert found["tokenizer.ggml.add_bos_token"] is True and found["tokenizer.ggml.add_eos_token"] is False
    assert "tokenizer.ggml.eot_token_id" not in found and "tokenizer.chat_template" not in found
    with pytest.raises(ConfigError, match="vocab_size = 97: the tokenizer has"):
        export_gguf(tiny_model(), tmp_path / "new" / "m.gguf", tokenizer=tokenizer)


def test_the_chat_template_and_the_end_of_a_turn_go_along(tmp_path):
    chat = Tokenizer.train(TEXT, vocab_size=300, chat=True)
    found = exported(chat, tmp_path / "m.gguf")
    assert found["tokenizer.chat_template"] == chat.chat_template
    assert found["tokenizer.ggml.eos_token_id"] == chat.eos_id
    assert (chat.eos_id, found["tokenizer.ggml.eot_token_id"]) == chat.stop_ids


def test_a_token_that_is_added_and_not_special_is_defined_by_the_user(tokenizer, tmp_path):
    other = changed(tokenizer, lambda backend: backend.add_tokens([AddedToken("<think>", special=False)]))
    found = exported(other, tmp_path / "m.gguf")
    count = tokenizer.vocab_size
    assert found["tokenizer.ggml.tokens"][count] == "<think>"
    assert found["tokenizer.ggml.token_type"][count - 1 : count + 2] == [
        gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED,
    ]  # fmt: skip


def splitting(*steps):
    def change(backend):
        backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]

    return change


def by(regex, behavior="isolated", **options):
    return pre_tokenizers.Split(Regex(regex), behavior, **options)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
NAMES = {
    "command-r": splitting(DIGITS, WORDS), "gpt-2": splitting(WORDS), "smaug-bpe": splitting(by(LLAMA3), BYTES),
    "qwen2": splitting(by(QWEN2), BYTES),
}  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "llama-bpe"])
def test_llama_cpps_name_of_a_split(name, tokenizer, tmp_path):
    def change(backend):
        NAMES["smaug-bpe" if name == "llama-bpe" else name](backend)
        backend.model.ignore_merges = name == "llama-bpe"

    assert exported(changed(tokenizer, change), tmp_path / "m.gguf")["tokenizer.ggml.pre"] == name


def test_bos_is_added_where_the_tokenizer_adds_it(tokenizer, tmp_path):
    def bare(backend):
        backend.post_processor = processors.ByteLevel(trim_offsets=False)

    def two(backend):
        special = [("<BOS_TOKEN>", tokenizer.bos_id), ("<EOS_TOKEN>", tokenizer.eos_id)]
        backend.post_processor = processors.TemplateProcessing(
            single="<BOS_TOKEN> <EOS_TOKEN> $A", special_tokens=special
        )

    assert exported(changed(tokenizer, bare), tmp_path / "m.gguf")["tokenizer.ggml.add_bos_token"] is False
    with pytest.raises(ConfigError, match=r"tokenizer\.post_processor = .* BOS before a text or nothing"):
        exported(changed(tokenizer, two), tmp_path / "new" / "m.gguf")


def _lowercase(backend):
    backend.normalizer = normalizers.Lowercase()


def _dropping(backend):
    backend.model.dropout = 0.1


def _merging_less(backend):
    backend.model.ignore_merges = True


def _other_text(backend):
    backend.decoder = decoders.Metaspace()


REFUSED = {
    "lowercase": (_lowercase, "normalizer"), "dropout": (_dropping, "model"), "decoder": (_other_text, "decoder"),
    "ignore_merges where llama.cpp has it not": (_merging_less, "pre_tokenizer"),
    "a space before a text": (splitting(DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=True)), "pre_tokenizer"),
    "digits as one": (splitting(pre_tokenizers.Digits(individual_digits=False), WORDS), "pre_tokenizer"),
    "no words": (splitting(DIGITS, BYTES), "pre_tokenizer"),
    "another order": (splitting(BYTES, by(QWEN2)), "pre_tokenizer"),
    "another expression": (splitting(by(r"\p{L}+"), BYTES), "pre_tokenizer"),
    "what it removes": (splitting(by(LLAMA3, "removed", invert=True), BYTES), "pre_tokenizer"),
    "a token that takes spaces": (lambda backend: backend.add_tokens([AddedToken("<x>", lstrip=True)]), "added_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(case, tokenizer, tmp_path):
    change, part = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"tokenizer\.{part} = .*without the tokenizer"):
        exported(changed(tokenizer, change), tmp_path / "new" / "m.gguf")
    assert not list(tmp_path.iterdir())
