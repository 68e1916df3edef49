"""The tokenizer of a GGUF file: tokens, merges, special ids, chat template, and the name that llama.cpp has for its splits.

llama.cpp splits text by code of its own, chosen by a name. What cannot be told to do the same is refused: another split
would give other ids and not say so. The table was read in llama.cpp's src/llama-vocab.cpp and is checked by running it.
"""

import json
from typing import TYPE_CHECKING, Any

from rnope.errors import check
from rnope.tokenizer import LLAMA3, QWEN2, Tokenizer

if TYPE_CHECKING:
    import gguf

_NAMES = {
    (("digits", "words"), False): "command-r",
    (("words",), False): "gpt-2",
    ((LLAMA3, "bytes"), True): "llama-bpe",
    ((LLAMA3, "bytes"), False): "smaug-bpe",
    ((QWEN2, "bytes"), False): "qwen2",
}
"""Steps of the pre-tokeniser, and whether a whole word counts before merges -> llama.cpp's name.

Left out are those whose regular expression llama.cpp only comes near: GPT-4o's and Tiny Aya's tell capital letters apart.
"""


def add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write `tokenizer` into a file's metadata, filled up with unused tokens to `vocab_size`.

    Raises:
        ConfigError: names the part of tokenizer.json that llama.cpp would not follow, or more tokens than `vocab_size`.
    """
    from gguf import TokenType

    said = json.loads(tokenizer.backend.to_str())
    name = _name(said)
    bpe, added = said["model"], said["added_tokens"]
    ids = bpe["vocab"] | {token["content"]: token["id"] for token in added}
    rule = f"the tokenizer has {max(ids.values()) + 1} tokens"
    remedy = "Export the tokenizer that the model was trained with."
    check("vocab_size", vocab_size, max(ids.values()) < vocab_size, rule, remedy)
    begin = tokenizer.begin_ids
    rule = "llama.cpp puts BOS before a text or nothing"
    check("tokenizer.post_processor", begin, begin in ((), (tokenizer.bos_id,)), rule, _WITHOUT)
    tokens, types = [f"[UNUSED_{i}]" for i in range(vocab_size)], [TokenType.UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for token in added:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.end_of_turn_id is not None:  # llama.cpp stops at both
        writer.add_eot_token_id(tokenizer.end_of_turn_id)
    writer.add_add_bos_token(bool(begin))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


_WITHOUT = "Export without the tokenizer and give llama.cpp token ids."


def _name(said: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer of this ``tokenizer.json`` splits text."""
    bpe, split = said["model"], said["pre_tokenizer"] or {}
    steps = tuple(_step(step) for step in split.get("pretokenizers", [split]))
    name = _NAMES.get((steps, bool(bpe.get("ignore_merges"))))
    holds = {
        "normalizer": said["normalizer"] in (None, {"type": "NFC"}),
        "pre_tokenizer": name is not None,
        "model": bpe["type"] == "BPE"
        and bool(bpe["merges"])
        and not any(
            bpe.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        ),
        "decoder": (said["decoder"] or {}).get("type") == "ByteLevel",
        "added_tokens": not any(
            token[name] for token in said["added_tokens"] for name in ("single_word", "lstrip", "rstrip")
        ),
    }
    names = ", ".join(sorted(_NAMES.values()))
    rule = f"llama.cpp is told of byte-level BPE with the splits that it calls {names}, and no normaliser but NFC"
    for part, fits in holds.items():
        check(f"tokenizer.{part}", said[part], fits, rule, _WITHOUT)
    assert name is not None
    return name


def _step(step: dict[str, Any]) -> str:
    """One step of a pre-tokeniser: a word of `_NAMES`, a regular expression, or nothing where it is neither."""
    if step.get("type") == "Digits" and step["individual_digits"]:
        return "digits"
    if step.get("type") == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step["use_regex"] else "bytes"
    if step.get("type") == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex", ""))
    return ""
