"""Facts hidden in text, and questions about them: rows to train on and contexts to be judged by.

A fact is " secret VALUE KEY." and its question " recall KEY VALUE.", every word one token. The value stands before the
key, so that a question can be answered by matching the key and reading what came before it. Pairs whose numbers meet
`held_out` occur in evaluation only. All of it in token space, from a generator that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer

Ids = NDArray[np.int64]
MARKERS = ("secret", "recall")
WORDS = (*MARKERS, *KEYS, *UNSEEN_KEYS, *VALUES)
UNIT_TOKENS = 4
"""Tokens of a fact, and of a question with its answer."""
_ASKED = 1
"""Offset of the key inside a question: the row that must predict the value."""


def held_out(key: NDArray[np.int64], value: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which (key, value) numbers are kept for evaluation: a tenth of all pairs, some of every key and value."""
    return (31 * key + 17 * value) % 10 == 0


def for_choosing(key: NDArray[np.int64], value: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which held-out pairs serve development alone, about a third of every key's: evaluation never sees them."""
    return (key + value // 10) % 3 == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """A batch of rows [n, t] and the positions whose next token is an answer [n, t]."""

    ids: Ids
    answers: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One evaluation prompt: a needle per depth, each asked once at the end, gold answers in place (teacher-forced)."""

    ids: Ids
    """[t]"""
    rows: Ids
    """[d] positions whose next token is the answer, by depth."""
    answers: Ids
    """[d] the values, by depth."""
    spans: tuple[tuple[int, int], ...]
    """Token span of each needle, by depth; empty spans where the needles were left out."""
    haystack_tokens: int


class NeedleTask:
    """Facts and questions in the tokens of `tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        def ids(words: Sequence[str]) -> Ids:
            return np.array([tokenizer.word(word) for word in words], dtype=np.int64)

        self.keys, self.unseen_keys, self.values = ids(KEYS), ids(UNSEEN_KEYS), ids(VALUES)
        self.secret, self.recall = (tokenizer.word(word) for word in MARKERS)
        self.stop = tokenizer.encode(".")[0]
        self.bos = tokenizer.bos_id

    def training_rows(
        self,
        rng: np.random.Generator,
        text: Ids,
        *,
        rows: int,
        row_tokens: int,
        facts: tuple[int, int],
        dense: bool,
    ) -> TrainingRows:
        """Rows of `row_tokens` tokens, BOS first.

        Half of them ask every fact at the end. The other half ask at random places: with `dense`, facts fill most of
        the row and come again and again, which is what teaches retrieval in minutes; without, each fact is asked once.

        Args:
            text: training tokens to fill the rows with.
            facts: fewest and most facts per row.
        """
        ids = np.empty((rows, row_tokens), dtype=np.int64)
        answers = np.zeros((rows, row_tokens), dtype=bool)
        most = min(facts[1], len(self.keys), (row_tokens - 1) // (2 * UNIT_TOKENS))
        for row in range(rows):
            count = int(rng.integers(min(facts[0], most), most + 1))
            keys, values = self._training_pairs(rng, count)
            if row % 2 == 0:
                order = np.concatenate((rng.permutation(count), rng.permutation(count)))
                slots = count  # text goes before and between the statements
            elif dense:
                order = rng.integers(0, count, size=int((row_tokens - 1) * 0.85) // UNIT_TOKENS)
                slots = len(order)
            else:
                order = rng.permutation(np.repeat(np.arange(count), 2))
                slots = len(order)
            first = np.zeros(len(order), dtype=bool)
            first[np.unique(order, return_index=True)[1]] = True
            units = self._units(self.keys[keys[order]], self.values[values[order]], first)
            filler = row_tokens - 1 - units.size
            gaps = np.zeros(len(order), dtype=np.int64)
            gaps[:slots] = np.bincount(rng.integers(0, slots, size=filler), minlength=slots)
            starts = 1 + np.arange(len(order)) * UNIT_TOKENS + np.cumsum(gaps)
            taken = (starts[:, None] + np.arange(UNIT_TOKENS)).ravel()
            offset = int(rng.integers(0, len(text) - filler))
            line = ids[row]
            free = np.ones(row_tokens, dtype=bool)
            free[taken] = False
            free[0] = False
            line[0] = self.bos
            line[free] = text[offset : offset + filler]
            line[taken] = units.ravel()
            answers[row, starts[~first] + _ASKED] = True
        return TrainingRows(ids=ids, answers=answers)

    def context(
        self,
        rng: np.random.Generator,
        haystack: "Haystack",
        *,
        context_tokens: int,
        depths: Sequence[float],
        development: bool = False,
        unseen_keys: bool = False,
        leave_out: Literal["needles", "haystack"] | None = None,
    ) -> Context:
        """An evaluation prompt of exactly `context_tokens` tokens (fewer when the haystack is left out).

        Args:
            development: of the pairs that choices are made by, instead of those of the evaluation.

        Raises:
            ConfigError: the needles and their questions do not fit.
        """
        count = len(depths)
        filler = context_tokens - 1 - 2 * count * UNIT_TOKENS
        if filler < 0:
            raise ConfigError(
                "context_tokens",
                context_tokens,
                f"cannot hold {count} needles and their questions, {1 + 2 * count * UNIT_TOKENS} tokens",
                "Use fewer depths or longer contexts.",
            )
        keys, values = self._evaluation_pairs(rng, count, unseen_keys, development)
        key_ids = (self.unseen_keys if unseen_keys else self.keys)[keys]
        value_ids = self.values[values]
        statements = self._units(key_ids, value_ids, np.ones(count, dtype=bool))
        asked = rng.permutation(count)
        questions = self._units(key_ids[asked], value_ids[asked], np.zeros(count, dtype=bool))
        if leave_out == "needles":
            filler += statements.size
        text = np.empty(0, dtype=np.int64) if leave_out == "haystack" else haystack.draw(rng, filler)
        parts: list[Ids] = [np.array([self.bos])]
        spans, at, length = [], 0, 1
        for depth, statement in zip(depths, statements, strict=True):
            cut = round(depth * len(text))
            parts.append(text[at:cut])
            length += cut - at
            at = cut
            if leave_out != "needles":
                parts.append(statement)
                spans.append((length, length + UNIT_TOKENS))
                length += UNIT_TOKENS
            else:
                spans.append((length, length))
        parts += [text[at:], questions.ravel()]
        length += len(text) - at
        rows = np.empty(count, dtype=np.int64)
        rows[asked] = length + np.arange(count) * UNIT_TOKENS + _ASKED
        return Context(
            ids=np.concatenate(parts),
            rows=rows,
            answers=value_ids,
            spans=tuple(spans),
            haystack_tokens=len(text),
        )

    def _units(self, keys: Ids, values: Ids, stated: NDArray[np.bool_]) -> Ids:
        """[n, 4]: "secret VALUE KEY ." where stated, else "recall KEY VALUE ."."""
        return np.stack(
            (
                np.where(stated, self.secret, self.recall),
                np.where(stated, values, keys),
                np.where(stated, keys, values),
                np.full(len(keys), self.stop),
            ),
            axis=1,
        )

    def _training_pairs(self, rng: np.random.Generator, count: int) -> tuple[Ids, Ids]:
        keys = rng.permutation(len(self.keys))[:count]
        values = rng.permutation(len(self.values))[:count]
        while (bad := held_out(keys, values)).any():
            values[bad] = rng.integers(0, len(self.values), size=int(bad.sum()))
        return keys, values

    def _evaluation_pairs(
        self, rng: np.random.Generator, count: int, unseen_keys: bool, development: bool
    ) -> tuple[Ids, Ids]:
        pool = len(self.unseen_keys if unseen_keys else self.keys)
        if count > pool:
            raise ConfigError("depths", count, f"more needles than the {pool} keys there are", f"Use at most {pool}.")
        keys = rng.permutation(pool)[:count]
        values = np.empty(count, dtype=np.int64)
        used: set[int] = set()
        for i, key in enumerate(keys):
            every = np.arange(len(self.values))
            allowed = np.flatnonzero(held_out(key, every) & (for_choosing(key, every) == development))
            fresh = [int(v) for v in allowed if int(v) not in used]
            values[i] = fresh[int(rng.integers(0, len(fresh)))]
            used.add(int(values[i]))
        return keys, values


class Haystack:
    """Documents that evaluation never shares with training, composed afresh for every context."""

    def __init__(self, documents: Sequence[Ids]) -> None:
        self.documents = [d for d in documents if len(d)]
        self.tokens = sum(map(len, self.documents))

    def draw(self, rng: np.random.Generator, tokens: int) -> Ids:
        """`tokens` tokens of whole documents in a random order, the last one cut; again from the start if they run out."""
        parts: list[Ids] = []
        have = 0
        while have < tokens:
            for index in rng.permutation(len(self.documents)):
                parts.append(self.documents[index])
                have += len(parts[-1])
                if have >= tokens:
                    break
        return np.concatenate(parts)[:tokens] if parts else np.empty(0, dtype=np.int64)
