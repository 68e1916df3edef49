"""Whether a text has more tokens than there is room for, without encoding it where that is plain.

Words are counted one by one and remembered, and what tokenizers do across words is learnt from the last text that was
encoded whole. That is a guess, good to some tokens for most tokenizers and to some percent for others; only where the
room is further away than the guess can be wrong does it decide.
"""

import math
from collections import Counter as Tally
from collections.abc import Sequence
from random import Random

from rnope.tokenizer import Tokenizer

ALWAYS = 4096
"""Tokens of room up to which every text is encoded."""
_REMEMBERED = 200_000
"""Words. Needles are new words each time."""
_SAMPLE = 1024
"""Words that stand for all that are new."""


class Counting:
    """Counts tokens of texts that are much alike."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, int] = {}
        self._guessed, self._found = 0.0, 0
        """Of the text that was encoded last."""

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, without special ones."""
        return self._tokenizer.encode_batch([text])[0]

    def count(self, text: str) -> int:
        """Tokens of `text`, exactly."""
        found = len(self.ids(text))
        self._guessed, self._found = self._sum(text, sample=False)[0], found
        return found

    def fits(self, text: str, room: int) -> bool:
        """Whether `text` has at most `room` tokens."""
        guess = self._best_guess(text, room)
        return self.count(text) <= room if guess is None else guess

    def within(self, text: str, room: int) -> list[int] | None:
        """The ids of `text`, or None where they are more than `room`."""
        if self._best_guess(text, room) is False:
            return None
        ids = self.ids(text)
        return ids if len(ids) <= room else None

    def _best_guess(self, text: str, room: int) -> bool | None:
        guess = self._guess(text, room, sample=True)
        return self._guess(text, room, sample=False) if guess is None else guess

    def _guess(self, text: str, room: int, *, sample: bool) -> bool | None:
        if room <= ALWAYS or not self._guessed:
            return None
        summed, unsure = self._sum(text, sample=sample)
        times = summed / self._guessed
        expected = self._found * times
        off = abs(summed - expected)
        # What happens across words is rare events: none seen in the last text may be eight in one as long, and their
        # number varies by its root. A text much longer than the last may be of another kind.
        margin = 32 + 8 * times + 4 * math.sqrt(off) + (0.1 if 0.5 < times < 2 else 1.0) * off + unsure
        return None if abs(expected - room) <= margin else expected < room

    def _sum(self, text: str, *, sample: bool) -> tuple[float, float]:
        """Tokens of the words of `text`, each encoded by itself with the space before it, and how wrong the number may be
        where, with `sample`, only some words that are new have been encoded."""
        first, *others = text.split(" ")
        tally = Tally(others)
        new = [word for word in tally if word not in self._words]
        known = len(self.ids(first)) + sum(
            self._words[word] * times for word, times in tally.items() if word in self._words
        )
        if sample and len(new) > 4 * _SAMPLE:
            # Weighted by how often they occur, so that the mean over the sample is the mean over the text.
            places = [word for word in new for _ in range(tally[word])]
            drawn = self._lengths(Random(0).sample(places, _SAMPLE))
            mean = sum(drawn) / _SAMPLE
            deviation = math.sqrt(sum((count - mean) ** 2 for count in drawn) / _SAMPLE)
            return known + mean * len(places), 6 * (deviation + 0.1) * len(places) / math.sqrt(_SAMPLE)
        if len(self._words) + len(new) > _REMEMBERED:
            self._words, new, known = {}, list(tally), len(self.ids(first))
        counts = dict(zip(new, self._lengths(new), strict=True))
        self._words |= counts
        return known + sum(count * tally[word] for word, count in counts.items()), 0.0

    def _lengths(self, words: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode_batch([f" {word}" for word in words])]
