"""Text to token ids and back, through Hugging Face `tokenizers` files; and training a small byte-level BPE.

Tokenizers trained here have Command R's normaliser and pre-tokeniser (NFC, single digits, byte level) and explicit
special ids, so that `AutoTokenizer` reads them alike; those for conversations also its tokens of turns. Others keep
their own names of the special tokens, and their own chat template.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rnope.errors import ConfigError, UserError
from rnope.files import write_text
from rnope.messages import CHAT_TEMPLATE, END_OF_TURN, TURNS, Message, checked, mark, pieces, render

BOS, EOS, PAD = "<BOS_TOKEN>", "<EOS_TOKEN>", "<PAD>"
CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_MAP = "special_tokens_map.json"
COMPANIONS = (CONFIG, _MAP, TEMPLATE)
"""Files that belong to a tokenizer, beside ``tokenizer.json``."""
_CONTRACTIONS, _WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
"""The regular expressions by which the tokenizers of Llama 3 and Qwen 2 split text; GPT-2's comes with the byte level."""
_OURS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "add_bos_token": True,
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its special ids.

    One rule for BOS (SPEC R): one at the start of every row, prompt and packed document; `encode` adds none. A tokenizer
    that has no BOS of its own is given its EOS in that place, and one without a PAD its EOS too.
    """

    backend: Backend
    companions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The files beside ``tokenizer.json``, name -> text, which `save` writes back as they were."""

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, whole_words: Sequence[str] = (), chat: bool = False
    ) -> "Tokenizer":
        """A BPE of `vocab_size` tokens in which each of `whole_words`, a space before it, is one token.

        Args:
            texts: what to learn the other merges from.
            vocab_size: 256 bytes, 3 special tokens (8 with `chat`), and as many merges as are left.
            whole_words: their merges come first, since they are shown to the trainer most often.
            chat: for conversations: five tokens of turns, and `CHAT_TEMPLATE`.

        Raises:
            ConfigError: `vocab_size` is too small to hold the bytes and the words.
        """
        special = [PAD, BOS, EOS]
        if chat:
            special += TURNS
        least = 256 + len(special)
        if vocab_size < least:
            raise ConfigError(
                "vocab_size", vocab_size, f"bytes and special tokens alone are {least}", "Use at least 1024."
            )
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        corpus = list(texts)
        often = 1 + sum(map(len, corpus)) // 200
        corpus += ["".join(f" {word}" for word in whole_words)] * often
        backend.train_from_iterator(corpus, trainer)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
        tokenizer = cls(backend, {TEMPLATE: CHAT_TEMPLATE} if chat else {})
        split = [word for word in whole_words if len(tokenizer.encode(f" {word}")) != 1]
        if split:
            raise ConfigError(
                "vocab_size",
                vocab_size,
                f"is too small to keep {len(split)} of {len(whole_words)} needle words whole (such as {split[0]!r})",
                "Use at least 1024.",
            )
        return tokenizer

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder, ours or any that Hugging Face's `tokenizers` reads.

        Raises:
            UserError: there is no readable ``tokenizer.json``, or a file beside it cannot be read.
        """
        path = folder / "tokenizer.json"
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{path}: no tokenizer can be read ({error}). Give a folder with a tokenizer.json."
            ) from None
        backend.no_truncation()  # what a file may ask for, and what would cut documents short without a word
        backend.no_padding()
        companions = {name: _read(folder / name) for name in COMPANIONS if (folder / name).exists()}
        for name in (CONFIG, _MAP):
            _table(folder / name, companions.get(name, "{}"))
        return cls(backend, companions)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, and whatever came beside them."""
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        names = {f"{role}_token": token for role, token in self._named.items()}
        ours = names.items() <= _OURS.items()
        config = _OURS if ours else {"tokenizer_class": _OURS["tokenizer_class"], **names}
        for name, text in {CONFIG: json.dumps(config, indent=2), **self.companions}.items():
            write_text(folder / name, text)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of `text` as a model is given it: with the special tokens that the tokenizer's file adds (BOS)."""
        return list(self.backend.encode(text).ids)

    @functools.cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """What `encode_prompt` puts before a text: BOS for most tokenizers, nothing for some."""
        whole, bare = self.encode_prompt("a"), self.encode("a")
        places = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        return tuple(whole[: places[0]]) if places else ()

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` as they come, without special tokens; a character of several tokens comes with its last."""
        decoder = decoders.DecodeStream(skip_special_tokens=True)
        for token in ids:
            piece = decoder.step(self.backend, token)
            if piece:
                yield piece

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, the names of special tokens in it being text like any other: no EOS from outside."""
        self.backend.encode_special_tokens = True
        try:
            return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            self.backend.encode_special_tokens = False

    @functools.cached_property
    def chat_template(self) -> str | None:
        """How this tokenizer writes a conversation, a program in Jinja; None where it has no way of its own.

        Raises:
            UserError: there is one, and it is no text.
        """
        found: Any = self.companions.get(TEMPLATE)
        if found is None:
            found = json.loads(self.companions.get(CONFIG, "{}")).get("chat_template")
            if isinstance(found, list):  # older files have several, by name
                found = {held.get("name"): held.get("template") for held in found if isinstance(held, dict)}
            if isinstance(found, dict):
                found = found.get("default")
        if found is not None and not isinstance(found, str):
            raise UserError(f"{CONFIG}: its chat_template is no text. Mend it, or take it away.")
        return found

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> str:
        """`messages` as the chat template writes them; with a generation prompt, the model's answer comes next.

        Raises:
            UserError: there is no chat template, it refuses the messages, or they are no messages.
        """
        return self._rendered(checked(messages), add_generation_prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
        """Token ids of `render_chat`, in which what a message says is text: no special token, whatever it spells.

        They are those of transformers' ``apply_chat_template(..., sanitize_control_tokens=True)``, and of its default
        wherever no message spells a special token.

        Raises:
            UserError: as `render_chat`.
        """
        return self._encode_marked(self._rendered(self._marked(messages), add_generation_prompt))

    def encode_example(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation to learn from: up to where the last answer begins, and from there to the end.

        The two are encoded alone, as a model meets them: the answer is its own continuation of the prompt's tokens.

        Raises:
            UserError: as `render_chat`; the last message is not an answer to others, or the template writes an answer
                other than behind its generation prompt.
        """
        marked = self._marked(messages)
        if len(marked) < 2 or marked[-1]["role"] != "assistant":
            raise UserError("The last message is no answer of the assistant to others. Let the messages end with one.")
        whole, prompt = self._rendered(marked, False), self._rendered(marked[:-1], True)
        if not whole.startswith(prompt):
            rule = "the chat template writes an answer other than behind its generation prompt"
            raise UserError(f"{self._template_file}: {rule}. Use a tokenizer with another template.")
        return self._encode_marked(prompt), self._encode_marked(whole[len(prompt) :])

    @property
    def _template_file(self) -> str:
        return TEMPLATE if TEMPLATE in self.companions else CONFIG

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if self.chat_template is None:
            remedy = "Use a model that was trained to converse, or write its template to chat_template.jinja."
            raise UserError(f"The tokenizer has no chat template, so it cannot write a conversation. {remedy}")
        tokens = {f"{role}_token": token for role, token in self._named.items()}
        return render(
            self.chat_template, messages, tokens=tokens, add_generation_prompt=add_generation_prompt,
            where=self._template_file,
        )  # fmt: skip

    def _marked(self, messages: Sequence[Mapping[str, str]]) -> list[Message]:
        return mark(checked(messages), self._special_names)

    def _encode_marked(self, text: str) -> list[int]:
        """Ids of a text with marks around what is no special token."""
        ids: list[int] = []
        for piece, plain in pieces(text, self._special_names):
            ids += self.encode_plain([piece])[0] if plain else self.encode(piece)
        return ids

    @functools.cached_property
    def _special_names(self) -> re.Pattern[str]:
        names = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def word(self, word: str) -> int:
        """Id of `word` with a space before it.

        Raises:
            ConfigError: it is not one token here.
        """
        ids = self.encode(f" {word}")
        if len(ids) != 1:
            raise ConfigError("word", word, "is not one token of this tokenizer", "Train one with it in `whole_words`.")
        return ids[0]

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: what an embedding must hold."""
        return 1 + max(self.backend.get_vocab().values())

    @functools.cached_property
    def digest(self) -> str:
        """Of all that decides which ids a text becomes: two tokenizers that agree in it are the same."""
        content = json.loads(self.backend.to_str())
        del content["truncation"], content["padding"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _named(self) -> dict[str, str]:
        """Role -> token, as the files beside ``tokenizer.json`` say; without them, as tokenizers trained here have it."""
        found: dict[str, str] = {}
        config, older = (json.loads(self.companions.get(name, "{}")) for name in (CONFIG, _MAP))
        # As `AutoTokenizer` reads them: the map counts where the configuration is of its time.
        for table in (config, older) if "added_tokens_decoder" in config else (older, config):
            for role in ("bos", "eos", "pad", "unk"):
                token = table.get(f"{role}_token")
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    found.setdefault(role, token)
        ours = {"bos": BOS, "eos": EOS, "pad": PAD}
        return {role: token for role, token in ours.items() if self.backend.token_to_id(token) is not None} | found

    def _special(self, role: str) -> int:
        token = self._named.get(role) or self._named.get("eos", EOS)
        found = self.backend.token_to_id(token)
        if found is None:
            remedy = f"Name its special tokens in {CONFIG}, or use a tokenizer trained by rnope."
            raise ConfigError("tokenizer", token, "is missing from the vocabulary", remedy)
        return int(found)

    @property
    def bos_id(self) -> int:
        return self._special("bos")

    @property
    def eos_id(self) -> int:
        return self._special("eos")

    @property
    def pad_id(self) -> int:
        return self._special("pad")

    @property
    def end_of_turn_id(self) -> int | None:
        """Of the token that ends a turn by our own chat template; others say themselves what ends an answer."""
        return self.backend.token_to_id(END_OF_TURN) if self.chat_template == CHAT_TEMPLATE else None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends a text: EOS, and behind it the end of a turn where the chat template is ours."""
        turn = self.end_of_turn_id
        return (self.eos_id,) if turn is None else (self.eos_id, turn)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Mend it, or take it away.") from None


def _table(path: Path, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UserError(f"{path}: is no JSON object. Mend it, or take it away.")
    return table
