"""A corpus made ready once and kept: its tokenizer, and the tokens of each split."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rnope.data.corpus import Split, digest, read_corpus
from rnope.data.needles import WORDS, Ids
from rnope.errors import ConfigError
from rnope.files import beside, write_text
from rnope.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "dev", "eval")


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
            flat, lengths = arrays["ids"].astype(np.int64), arrays["lengths"]
        return np.split(flat, np.cumsum(lengths)[:-1])

    def text(self, split: Split) -> Ids:
        """All tokens of a split in one line."""
        return np.concatenate(self.documents(split))


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
        tokenizer = Tokenizer.train(texts["train"], vocab_size=vocab_size, whole_words=WORDS)
        with beside(place) as fresh:
            fresh.mkdir()
            counts = {}
            for split, held in texts.items():
                encoded = tokenizer.encode_batch(held)
                lengths = [len(ids) for ids in encoded]
                flat = np.array([i for ids in encoded for i in ids], dtype=np.int32)
                np.savez(fresh / f"{split}.npz", ids=flat, lengths=np.array(lengths))
                counts[split] = sum(lengths)
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
