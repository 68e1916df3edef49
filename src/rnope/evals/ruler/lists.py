"""RULER's lists of words: the common ones of a numbered list (cwe), the frequent ones of a coded text (fwe)."""

import string
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import numpy as np

from rnope.errors import ConfigError
from rnope.evals.frame import Frame
from rnope.evals.ruler.draws import Drawing, Drawn, Prompt, Streams
from rnope.evals.ruler.tasks import FORMS
from rnope.evals.ruler.texts import Texts

_COMMON = 10
_FIRST = 4096
"""Words of the prompt by which the original guesses how many it will take."""
_LETTERS = 6
_ALPHA = 2.0
_ZETA = 1.6449340668482264
"""Riemann's zeta of `_ALPHA`, as SciPy gives it."""


class CommonDrawing(Drawing):
    """cwe; units are different words."""

    smallest = 10

    def __init__(self, frame: Frame, texts: Texts, *, context_tokens: int, seed: int) -> None:
        self._prompt, self._texts, self._seed = Prompt(frame, FORMS["cwe"]), texts, seed
        self._words = sorted({word for words in texts.words for word in words})
        Random(seed).shuffle(self._words)
        short = context_tokens < 4096
        self._shape = (6, 1) if short else (30, 3)
        """How often a common word is said, and another one."""
        self._example = (20, 3, 1) if short else (40, 10, 3)
        """Words of the example, and the same."""

    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`."""
        words, *shape = self._example
        example, asked = self._sample(words, streams.python), self._sample(size, streams.python)
        return Drawn(partial(self._text, example, shape, asked), tuple(asked[:_COMMON]))

    def highest(self, tokens_of: Callable[[int], int], context_tokens: int) -> int:
        """See `Drawing`."""
        return max(int(context_tokens // (tokens_of(_FIRST) / _FIRST)) * 2, self.smallest * 2)

    def _sample(self, size: int, rng: Random) -> list[str]:
        words = self._words if size <= len(self._words) else self._texts.english
        if size > len(words):
            rule = f"cwe needs {size:,} different words for this length, and there are {len(words):,}"
            raise ConfigError("data", "english", rule, "Give a longer list, or ask shorter lengths.")
        return rng.sample(words, size)

    def _text(self, example: list[str], shape: Sequence[int], asked: list[str]) -> str:
        shot = self._prompt.text(context=self._numbered(example, shape))
        answer = " ".join(f"{i}. {word}" for i, word in enumerate(example[:_COMMON], 1))
        return f"{shot} {answer}\n{self._prompt.text(context=self._numbered(asked, self._shape))}"

    def _numbered(self, words: list[str], shape: Sequence[int]) -> str:
        common, other = shape
        said = words[:_COMMON] * common + words[_COMMON:] * other
        Random(self._seed).shuffle(said)
        return " ".join(f"{i}. {word}" for i, word in enumerate(said, 1))


class CodedText:
    """fwe: words of six letters, whose frequencies fall as Zipf's law says. Its vocabulary alone is drawn."""

    least_tokens = 4 * 50
    """Of a prompt: for each 50 the vocabulary gets a word, and the answer needs three behind the dots."""

    def __init__(self, frame: Frame, *, prompt_tokens: int, seed: int) -> None:
        self._prompt, self._seed = Prompt(frame, FORMS["fwe"]), seed
        self._size = prompt_tokens // 50
        self.first, self.step = prompt_tokens // _LETTERS, prompt_tokens // 32
        """Words that the search for a length begins with, and by which it goes on."""

    def draw(self, streams: Streams) -> list[str]:
        """A vocabulary, the most frequent word first, which the original makes dots: noise."""
        rng = streams.python
        words = ["".join(rng.choices(string.ascii_lowercase, k=_LETTERS)) for _ in range(self._size)]
        while len(set(words)) < self._size:
            words.append("".join(rng.choices(string.ascii_lowercase, k=_LETTERS)))
        words = sorted(set(words))
        Random(self._seed).shuffle(words)
        words[0] = "..."
        return words

    def text(self, words: list[str], count: int) -> str:
        """A prompt of about `count` words."""
        ranks = np.arange(1, len(words) + 1)
        counts = count * (ranks**-_ALPHA) / _ZETA
        said = [word for word, times in zip(words, counts.astype(int).tolist(), strict=True) for _ in range(times)]
        Random(self._seed).shuffle(said)
        return self._prompt.text(context=" ".join(said))

    @staticmethod
    def references(words: list[str]) -> tuple[str, ...]:
        return tuple(words[1:4])
