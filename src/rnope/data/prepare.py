"""A corpus made ready once and kept: its tokenizer, and the tokens of each split."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from rnope.data.corpus import Split, digest, read_corpus
from rnope.data.needles import WORDS, Ids
from rnope.errors import ConfigError
from rnope.files import beside, write_text
from rnope.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "dev", "eval")
TOKENIZER_CHARACTERS = 2**24
"""Of text that a tokenizer is trained on: of larger corpora every second document, or third, and so on."""
_ENCODED_CHARACTERS = 2**22
"""Of text that is tokenised at a time: what the library holds of a text is a hundred times as large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Tokens of a corpus, by split and document."""

    folder: Path
    digest: str
    """Of the corpus and the vocabulary."""
    tokens: dict[str, int] = field(hash=False)
    """Split -> tokens."""

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    def documents(self, split: Split) -> list[Ids]:
        """Token ids of each document."""
        with np.load(self.folder / f"{split}.npz") as arrays:
            lengths = arrays["lengths"]
        return np.split(self.text(split), np.cumsum(lengths)[:-1])

    def text(self, split: Split) -> Ids:
        """All tokens of a split in one line."""
        with np.load(self.folder / f"{split}.npz") as arrays:
            return cast(Ids, arrays["ids"].astype(np.int64))


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each text."""
    waiting: list[str] = []
    characters = 0
    for text in texts:
        waiting.append(text)
        characters += len(text)
        if characters >= _ENCODED_CHARACTERS:
            yield from tokenizer.encode_batch(waiting)
            waiting, characters = [], 0
    yield from tokenizer.encode_batch(waiting)


def prepare(corpus: str | None, *, vocab_size: int, folder: Path, least_tokens: int) -> Prepared:
    """Read and tokenise `corpus` into a subfolder of `folder`, or find it there.

    The tokenizer is trained on the training split (and the needle words) alone.

    Args:
        least_tokens: the longest row that is to be filled from the training split.

    Raises:
        ConfigError: the corpus is missing, empty, or too small for the context.
    """
    documents = read_corpus(corpus)
    name = digest(documents)
    place = folder / f"{name}-{vocab_size}"
    if not (place / "data.json").exists():
        texts = {split: [d.text for d in documents if d.split == split] for split in SPLITS}
        for split, held in texts.items():
            if not held:
                raise ConfigError(
                    "corpus",
                    corpus,
                    f"its {len(documents)} documents leave none for the {split!r} split",
                    "Use more documents: one file, or one line of .jsonl, is one document.",
                )
        every = -(-sum(map(len, texts["train"])) // TOKENIZER_CHARACTERS)
        tokenizer = Tokenizer.train(texts["train"][::every], vocab_size=vocab_size, whole_words=WORDS)
        with beside(place) as fresh:
            fresh.mkdir()
            counts = {}
            for split, held in texts.items():
                encoded = [np.array(ids, dtype=np.int32) for ids in _encoded(tokenizer, held)]
                lengths = np.array([len(ids) for ids in encoded])
                np.savez(fresh / f"{split}.npz", ids=np.concatenate(encoded), lengths=lengths)
                counts[split] = int(lengths.sum())
            tokenizer.save(fresh)
            write_text(fresh / "data.json", json.dumps(counts))
    tokens = json.loads((place / "data.json").read_text(encoding="utf-8"))
    for split in ("train", "dev"):
        if tokens[split] <= least_tokens:
            raise ConfigError(
                "corpus",
                corpus,
                f"its {split!r} split has {tokens[split]:,} tokens, too few for rows of {least_tokens:,}",
                "Use a larger corpus, or shorter contexts.",
            )
    return Prepared(folder=place, digest=place.name, tokens=tokens)
