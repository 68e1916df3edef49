"""Text as token ids, to read or to hide needles in: documents encoded once, put together anew for each prompt.

Documents meet in token space, so that a haystack of a million tokens costs some copying and no encoding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rnope.data.corpus import digest, read_corpus
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer

Ids = NDArray[np.int32]
_CLOSERS = "\"'’”»)]*_"
_STOPS, _WIDE_STOPS = (".", "!", "?", "…"), ("。", "！", "？")
"""Marks that end a sentence; the wide ones need no space after them."""
_ENCODED_TOGETHER = 1 << 20
"""Characters: what the library keeps for each token while it encodes is much more than its id."""


class Haystack:
    """The documents of a corpus in the tokens of `tokenizer`.

    Args:
        path: a file or folder, of which all documents count; None for the built-in text, of which only those of split
            ``eval`` do.
        field: what errors call `path`.

    Attributes:
        texts: of the documents.
        documents: their ids, a blank line behind each; names of special tokens are plain text in them.
        tokens: of all documents together.
        digest: of the texts.

    Raises:
        ConfigError: as `read_corpus`; or nothing in it is a token.
    """

    def __init__(self, tokenizer: Tokenizer, path: str | None, *, field: str = "haystack") -> None:
        try:
            corpus = read_corpus(path)
        except ConfigError as error:
            raise ConfigError(field, error.value, error.rule, error.remedy) from None
        kept = [document for document in corpus if path is not None or document.split == "eval"]
        self.digest = digest(kept)
        self.texts = [document.text for document in kept]
        encoded = (ids for texts in _together(self.texts) for ids in tokenizer.encode_plain(texts))
        self.documents = [np.array(ids, dtype=np.int32) for ids in encoded if ids]
        self.tokens = sum(map(len, self.documents))
        if not self.tokens:
            raise ConfigError(field, path, "holds nothing that this tokenizer can spell", "Give another text.")
        self._ends, self._complete, self._begins = self._sentence_marks(tokenizer)

    def compose(self, rng: np.random.Generator, tokens: int) -> NDArray[np.int64]:
        """`tokens` tokens: documents in random order, as many as are needed; if all are too few, all again in another
        order.

        Each order begins at a random sentence of its first document, whose beginning comes last, so that one long
        document makes many haystacks too.
        """
        pieces: list[Ids] = []
        left = tokens
        while left > 0:
            for piece in self._once(rng):
                pieces.append(piece[:left])
                left -= len(pieces[-1])
                if left == 0:
                    break
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64)

    def repeats(self, tokens: int) -> float:
        """How often `tokens` tokens go through the corpus: 1.0 where nothing comes twice."""
        return max(1.0, tokens / self.tokens)

    def boundaries(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Places between two tokens of a haystack where a sentence ends, in order; place p is before ``ids[p]``."""
        before, after = ids[:-1], ids[1:]
        return 1 + np.flatnonzero(self._complete[before] | (self._ends[before] & self._begins[after]))

    def _once(self, rng: np.random.Generator) -> Iterator[Ids]:
        order = rng.permutation(len(self.documents))
        first = self.documents[order[0]]
        cut = int(rng.choice(np.append(self.boundaries(first), 0)))
        yield first[cut:]
        for place in order[1:]:
            yield self.documents[place]
        yield first[:cut]

    def _sentence_marks(self, tokenizer: Tokenizer) -> tuple[NDArray[np.bool_], ...]:
        """By token id: whether its text ends in a full stop, ends a sentence whatever comes next, begins with a space."""
        ends, complete, begins = (np.zeros(tokenizer.vocab_size, dtype=bool) for _ in range(3))
        present = np.zeros(tokenizer.vocab_size, dtype=bool)
        for ids in self.documents:
            present[ids] = True
        found = np.flatnonzero(present)
        for token, text in zip(found, _texts_inside(tokenizer, found.tolist()), strict=True):
            bare = text.rstrip().rstrip(_CLOSERS)
            ends[token] = bare.endswith(_STOPS)
            complete[token] = bare.endswith(_WIDE_STOPS) or (ends[token] and text[-1:].isspace())
            begins[token] = text[:1].isspace()
        return ends, complete, begins


def _texts_inside(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """Text of each token in the midst of a line: many decoders drop the space before a first token."""
    anchor = tokenizer.encode("x")
    start = tokenizer.decode(anchor)
    whole = tokenizer.backend.decode_batch([[*anchor, token] for token in ids], skip_special_tokens=False)
    return (text[len(start) :] for text in whole)


def _together(texts: Sequence[str]) -> Iterator[list[str]]:
    """Documents with a blank line behind each, some at a time."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text.strip() + "\n\n")
        characters += len(text)
        if characters > _ENCODED_TOGETHER:
            yield group
            group, characters = [], 0
    if group:
        yield group
