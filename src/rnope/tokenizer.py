"""Text to token ids and back, through Hugging Face `tokenizers` files; and training a small byte-level BPE.

Tokenizers trained here have Command R's normaliser and pre-tokeniser (NFC, single digits, byte level) and explicit
special ids, so that `AutoTokenizer` reads them alike.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rnope.errors import ConfigError, UserError
from rnope.files import write_text

BOS, EOS, PAD = "<BOS_TOKEN>", "<EOS_TOKEN>", "<PAD>"


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE with its special ids.

    One rule for BOS (SPEC R): one at the start of every row, prompt and packed document; `encode` adds none.
    """

    backend: Backend

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, whole_words: Sequence[str] = ()) -> "Tokenizer":
        """A BPE of `vocab_size` tokens in which each of `whole_words`, a space before it, is one token.

        Args:
            texts: what to learn the other merges from.
            vocab_size: 256 bytes, 3 special tokens, and as many merges as are left.
            whole_words: their merges come first, since they are shown to the trainer most often.

        Raises:
            ConfigError: `vocab_size` is too small to hold the bytes and the words.
        """
        least = 256 + len((PAD, BOS, EOS))
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
            special_tokens=[PAD, BOS, EOS],
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
        tokenizer = cls(backend)
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
        """The tokenizer of a model folder.

        Raises:
            UserError: there is no readable ``tokenizer.json``.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{path}: no tokenizer can be read ({error}). Give a folder with a tokenizer.json."
            ) from None

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of `text` as a model is given it: with the special tokens that the tokenizer's file adds (BOS)."""
        return list(self.backend.encode(text).ids)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` as they come, without special tokens; a character of several tokens comes with its last."""
        decoder = decoders.DecodeStream(skip_special_tokens=True)
        for token in ids:
            piece = decoder.step(self.backend, token)
            if piece:
                yield piece

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [list(e.ids) for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

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

    @property
    def vocab_size(self) -> int:
        return int(self.backend.get_vocab_size())

    def _special(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ConfigError("tokenizer", token, "is missing from the vocabulary", "Use a tokenizer trained by rnope.")
        return int(found)

    @property
    def bos_id(self) -> int:
        return self._special(BOS)

    @property
    def eos_id(self) -> int:
        return self._special(EOS)

    @property
    def pad_id(self) -> int:
        return self._special(PAD)
