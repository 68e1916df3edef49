"""Perplexity of plain text: which windows of it, and what is kept of their log-probabilities."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from rnope.errors import check
from rnope.evals.frame import Frame
from rnope.evals.models.model import EvalModel, Score
from rnope.evals.perplexity.buckets import FIRST, summed
from rnope.evals.perplexity.scoring import PerplexityScoring
from rnope.evals.suite import Cell, Prediction, Scoring, Suite, prompt_digest
from rnope.evals.text import Haystack
from rnope.tokenizer import Tokenizer

LEAST = 2 * FIRST
"""Tokens of the shortest window."""


class Perplexity(Suite):
    """Windows of a text, each read once from its beginning; a cell is a length.

    Args:
        lengths: of windows in tokens, the special ids that they begin with included.
        samples: windows of each length.
        seed: of the order of documents and the places of windows.
        corpus: a file or folder of text; None for the built-in text.

    Raises:
        ConfigError: a number out of range, or a corpus without text.
    """

    name = "perplexity"
    scoring: ClassVar[Scoring] = PerplexityScoring()
    every_token_scored = True

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, *, lengths: Sequence[int], samples: int, seed: int, corpus: str | None
    ) -> None:
        check("lengths", list(lengths), len(lengths) > 0, "are none", "Give at least one.")
        check("samples", samples, samples >= 1, "must be 1 or more", "Leave it out for 16.")
        check("seed", seed, seed >= 0, "must be 0 or more", "Leave it out for 42.")
        least = LEAST + len(frame.begin_ids)
        for length in lengths:
            check("lengths", length, length >= least, "is too short a window", f"Use {least} or more.")
        self._lengths, self._samples, self._seed = sorted(set(lengths)), samples, seed
        self._tokenizer, self._begin = tokenizer, np.array(frame.begin_ids, dtype=np.int64)
        text = Haystack(tokenizer, corpus, field="corpus")
        self._digest, self._documents = text.digest, len(text.documents)
        order = np.random.default_rng([seed, 0]).permutation(len(text.documents))
        self._ids = np.concatenate([text.documents[place] for place in order])

    def settings(self) -> dict[str, Any]:
        """See `Suite`."""
        return {
            "seed": self._seed,
            "corpus": self._digest,
            "corpus_documents": self._documents,
            "corpus_tokens": len(self._ids),
            "begin_ids": self._begin.tolist(),
        }

    def cells(self) -> tuple[Cell, ...]:
        """By length.

        Raises:
            ConfigError: the corpus has not so many different windows of a length.
        """
        for length in self._lengths:
            tokens = length - len(self._begin)
            rule = f"is more than the corpus has, {len(self._ids):,} tokens; repeated text would be foreseen too well"
            check("lengths", length, tokens <= len(self._ids), rule, "Use shorter windows or give more text: --corpus.")
            windows = len(self._ids) - tokens + 1
            rule = f"is more than the {windows:,} windows of {length:,} tokens that the corpus has"
            check("samples", self._samples, self._samples <= windows, rule, "Use fewer, or give more text: --corpus.")
        return tuple(
            Cell(name=f"window-{length}", context_tokens=length, samples=self._samples, max_new_tokens=0)
            for length in self._lengths
        )

    def window(self, length: int, index: int) -> tuple[np.ndarray, bool]:
        """The `index`-th window of a length, int64 [length], and whether it shares text with an earlier one.

        As long as the corpus lasts windows share nothing; then they begin anywhere. A window does not depend on how many
        are asked.
        """
        tokens = length - len(self._begin)
        rng = np.random.default_rng([self._seed, 1, length])
        apart = len(self._ids) // tokens
        offset = int(rng.integers(len(self._ids) - apart * tokens + 1))
        first = offset + tokens * rng.permutation(apart)
        if index < apart:
            start = first[index]
        else:
            others = np.setdiff1d(np.arange(len(self._ids) - tokens + 1), first)
            start = rng.permutation(others)[index - apart]
        return np.concatenate([self._begin, self._ids[start : start + tokens]]), index >= apart

    def ask(
        self, model: EvalModel, cell: Cell, done: Mapping[int, Prediction], *,
        batch: int, progress: Callable[[int], None],
    ) -> Iterator[list[Prediction]]:  # fmt: skip
        """See `Suite`."""
        missing = (index for index in range(cell.samples) if index not in done)
        for _, group in groupby(missing, lambda index: index // batch):
            indices = list(group)
            windows = [self.window(cell.context_tokens, index) for index in indices]
            given = max(1, len(self._begin))  # without special ids the first token of the text is given
            requests = [(ids[:given], ids[given:]) for ids, _ in windows]
            found = dict(model.scores(requests, progress=progress))
            yield [self._prediction(cell, index, *windows[place], found[place]) for place, index in enumerate(indices)]

    def _prediction(self, cell: Cell, index: int, ids: np.ndarray, overlaps: bool, score: Score) -> Prediction:
        scored = ids[len(ids) - len(score.log_probabilities) :]
        facts = {
            "buckets": summed([-value for value in score.log_probabilities], len(ids)),
            # Of the text that the scored tokens stand for; half a character at either end may count as three bytes.
            "bytes": len(self._tokenizer.decode(scored.tolist()).encode()),
            "overlaps": int(overlaps),
        }
        return Prediction(
            cell=cell.name,
            index=index,
            prompt_sha256=prompt_digest(ids),
            prompt_tokens=len(ids),
            answer="",
            new_tokens=0,
            ended="stop" if score.error is None else "error",
            error=score.error,
            facts=facts if score.error is None else {},
        )
