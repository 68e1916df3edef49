"""Needle in a haystack (SPEC E1): which prompts, and what each is made of. Answers are scored in `scoring`.

Every sample of every cell has its own needle and its own haystack, both functions of the seed, the row, the length, the
depth and the sample's index: no prompt depends on what else is asked.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import numpy as np

from rnope.errors import check
from rnope.evals.frame import Frame
from rnope.evals.niah import needle as forms
from rnope.evals.niah.needle import Needle, Needles
from rnope.evals.niah.scoring import NiahScoring
from rnope.evals.suite import Cell, GenerationSuite, Prediction, Sample, Scoring
from rnope.evals.text import Haystack
from rnope.strict import to_plain
from rnope.tokenizer import Tokenizer

NEAR = 256
"""Tokens. The needle goes to the end of the nearest sentence within so many, and else exactly to its depth."""
MOST_DEPTHS = 101


class Niah(GenerationSuite):
    """Rows: ``standard``, by length and depth; ``no-needle``, the same prompt without it, by length, which no model can
    answer; ``needle-only``, without a haystack, which every model should.

    Args:
        lengths: prompt and answer together, in tokens.
        depths: places of the needle, evenly from 0 to 100 percent of the haystack; a single one is at 50.
        samples: of each cell.
        seed: of the prompts.
        haystack: a file or folder of text; None for the built-in text.
        max_new_tokens: of an answer.

    Raises:
        ConfigError: a number out of range, a haystack without text, a tokenizer that cannot spell the needles.
    """

    name = "niah"
    scoring: ClassVar[Scoring] = NiahScoring()

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, *, lengths: Sequence[int], depths: int, samples: int, seed: int,
        haystack: str | None, max_new_tokens: int,
    ) -> None:  # fmt: skip
        check("lengths", list(lengths), len(lengths) > 0, "are none", "Give at least one.")
        check("depths", depths, 1 <= depths <= MOST_DEPTHS, f"must be 1 to {MOST_DEPTHS}", "The paper's figure has 11.")
        check("samples", samples, samples >= 1, "must be 1 or more", "The paper has 16.")
        check("seed", seed, seed >= 0, "must be 0 or more", "Leave it out for 42.")
        check("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "must be 1 or more", "Leave it out for 64.")
        self._lengths, self._samples, self._seed = sorted(set(lengths)), samples, seed
        self._depths = [50.0] if depths == 1 else [round(100 * i / (depths - 1), 1) for i in range(depths)]
        self._new = max_new_tokens
        self._frame = frame
        self._haystack = Haystack(tokenizer, haystack)
        self._needles = Needles(tokenizer, frame, self._haystack.texts)

    def settings(self) -> dict[str, Any]:
        """See `Suite`."""
        pools = json.dumps(forms.POOLS, sort_keys=True)
        return {
            "seed": self._seed,
            "max_new_tokens": self._new,
            "haystack": self._haystack.digest,
            "haystack_documents": len(self._haystack.documents),
            "haystack_tokens": self._haystack.tokens,
            "frame": to_plain(self._frame),
            "texts": [forms.INSTRUCTION, forms.SENTENCE, forms.QUESTION, forms.ANSWER],
            "facts": hashlib.sha256(pools.encode()).hexdigest()[:16],
            "score": "rule-10",
        }

    def cells(self) -> tuple[Cell, ...]:
        """``needle-only``, then by length ``no-needle`` and the depths of ``standard``.

        Raises:
            ConfigError: a length that cannot hold the question.
        """
        alone = len(self._needles.head) + self._needles.most_tokens + self._needles.most_tail + self._new
        for length in self._lengths:
            rule = f"cannot hold needle, question and {self._new} new tokens, {alone:,} tokens, and a haystack"
            check("lengths", length, length > alone, rule, f"Use {alone + 1:,} or more, or fewer --max-new-tokens.")
        found = [self._cell("needle-only", alone, row="needle-only")]
        for length in self._lengths:
            found.append(self._cell(f"no-needle-{length}", length, row="no-needle"))
            for depth in self._depths:
                percent = f"{depth:03.0f}" if depth == round(depth) else f"{depth:05.1f}"
                found.append(self._cell(f"standard-{length}-d{percent}", length, row="standard", depth=depth))
        return tuple(found)

    def samples(self, cell: Cell, done: Mapping[int, Prediction]) -> Iterator[Sample]:
        """See `GenerationSuite`. Facts of a sample: ``town``; ``needle``, its span [begin, end) in the prompt;
        ``depth``, where it stands in percent of the haystack's tokens; ``haystack_tokens`` and ``haystack_repeats``."""
        return (self._sample(cell, index) for index in range(cell.samples) if index not in done)

    def _cell(self, name: str, tokens: int, **labels: str | float) -> Cell:
        return Cell(name=name, context_tokens=tokens, samples=self._samples, max_new_tokens=self._new, labels=labels)

    def _sample(self, cell: Cell, index: int) -> Sample:
        row, depth = cell.labels["row"], cell.labels.get("depth")
        length = 0 if row == "needle-only" else cell.context_tokens
        rng = Random(f"niah {self._seed} {row} {length} {depth} {index}")
        generator = np.random.default_rng(rng.getrandbits(128))
        needle = self._needles.draw(rng)
        facts: dict[str, Any] = {"town": needle.town}
        if row == "needle-only":
            parts: list[Sequence[int] | np.ndarray] = [self._needles.head, needle.ids, needle.tail]
            facts["needle"] = _span(len(self._needles.head), needle)
        else:
            room = length - self._new - len(self._needles.head) - len(needle.tail)
            tokens = room if row == "no-needle" else room - len(needle.ids)
            text = self._haystack.compose(generator, tokens)
            facts |= {"haystack_tokens": tokens, "haystack_repeats": self._haystack.repeats(tokens)}
            parts = [self._needles.head, text, needle.tail]
            if depth is not None:
                cut = needle_place(self._haystack, text, float(depth))
                parts[1:2] = [text[:cut], needle.ids, text[cut:]]
                facts |= {"needle": _span(len(self._needles.head) + cut, needle), "depth": 100 * cut / tokens}
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        return Sample(index=index, ids=ids, references=needle.facts, facts=facts)


def needle_place(haystack: Haystack, text: np.ndarray, depth: float) -> int:
    """Where a needle of `depth` percent goes in `text`, which `haystack` composed: 0 and 100 are the very ends."""
    exact = round(depth / 100 * len(text))
    near = haystack.boundaries(text)
    if depth in (0, 100) or not len(near):
        return exact
    best = int(near[np.abs(near - exact).argmin()])
    return best if abs(best - exact) <= NEAR else exact


def _span(begin: int, needle: Needle) -> list[int]:
    return [begin, begin + len(needle.ids)]
