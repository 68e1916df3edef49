"""RULER's needles: which are hidden, in what, and where, drawn as the original draws them."""

import itertools
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import numpy as np

from rnope.evals.frame import Frame
from rnope.evals.ruler.draws import Drawing, Drawn, Prompt, Streams, fine
from rnope.evals.ruler.sentences import gaps
from rnope.evals.ruler.tasks import NOISE, Task, Word
from rnope.evals.ruler.texts import Texts

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_DEPTHS = np.round(np.linspace(0, 100, num=40, endpoint=True)).astype(int).tolist()
"""In percent of the sentences."""


class Pairs:
    """Every "adjective-noun" in order, each once, as ``sorted({...})`` has them: millions, which are not kept."""

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        nouns = sorted(set(nouns))
        # The pairs of an adjective stand together, unless its beginning begins another's too ("a-" and "a-b-"): such
        # adjectives, which are few, are merged.
        groups: list[list[str]] = []
        for head in sorted({f"{adjective}-" for adjective in adjectives}):
            if groups and head.startswith(groups[-1][0]):
                groups[-1].append(head)
            else:
                groups.append([head])
        self._blocks: list[tuple[str, list[str]]] = [
            (heads[0], nouns) if len(heads) == 1 else ("", sorted({head + noun for head in heads for noun in nouns}))
            for heads in groups
        ]
        self._begins = [0, *np.cumsum([len(block) for _, block in self._blocks]).tolist()]

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, index: int) -> str:
        block = bisect_right(self._begins, index) - 1
        head, tails = self._blocks[block]
        return head + tails[index - self._begins[block]]


class Essays:
    """Running text whose first words are a haystack, gone through as often as it takes."""

    def __init__(self, text: str) -> None:
        self.words = " ".join(text.split()).split(" ")
        # The original splits at single spaces: text that begins or ends with one has an empty word there.
        self.words = ["", *self.words] if text[:1].isspace() else self.words
        self.words = [*self.words, ""] if text[-1:].isspace() else self.words
        self._times = 0

    def sentences(self, size: int) -> list[str]:
        """Of the first `size` words."""
        times = -(-size // len(self.words))
        if times > self._times:
            words = self.words * times
            self._text, self._times = " ".join(words), times
            self._word_ends = np.cumsum([len(word) + 1 for word in words]) - 1
            spans = np.array(gaps(self._text), dtype=np.int64).reshape(-1, 2)
            self._ends, self._begins = spans[:, 0], spans[:, 1]
        text = self._text[: self._word_ends[size - 1]].rstrip()
        inner = int(np.searchsorted(self._begins, len(text)))
        begins = [len(text) - len(text.lstrip()), *self._begins[:inner].tolist()]
        ends = [*self._ends[:inner].tolist(), len(text)]
        return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]


class NeedleDrawing(Drawing):
    """One of the eight retrieval tasks; units of haystack are words of essays, or lines."""

    def __init__(self, task: Task, frame: Frame, texts: Texts, *, context_tokens: int, seed: int) -> None:
        self._task, self._seed = task, seed
        self._essays = Essays(texts.essays) if task.haystack == "essay" else None
        self._pairs = Pairs(texts.words[1], texts.words[0]) if "words" in (task.keys, task.values) else None
        self.smallest = 500 if task.haystack == "essay" else fine(context_tokens, 25)
        form, self._kind = task.form, str(task.values)
        if task.num_queries * task.num_values == 1:
            # Only the form: in the original it also befalls a model's own template ("You is a helpful assistant").
            form = replace(form, template=_singular(form.template), answer_prefix=_singular(form.answer_prefix))
            self._kind = self._kind[:-1]
        self._prompt = Prompt(frame, form)

    def repeats(self, size: int) -> float | None:
        """See `Drawing`."""
        return None if self._essays is None else max(1.0, size / len(self._essays.words))

    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`."""
        task, rng = self._task, streams.python
        keys, values, needles = [], [], []
        for _ in range(task.num_keys):
            keys.append(self._spelled(task.keys, self._number(task.keys, rng)))
            values.append([self._spelled(task.values, self._number(task.values, rng)) for _ in range(task.num_values)])
            needles += [self._needle(keys[-1], value) for value in values[-1]]
        Random(self._seed).shuffle(needles)
        distractors = []
        if task.haystack == "needle":
            distractors = [(self._number(task.keys, rng), self._number(task.values, rng)) for _ in range(size)]
        places = (
            rng.sample(_DEPTHS, len(needles)) if task.haystack == "essay" else rng.sample(range(size), len(needles))
        )
        asked = rng.sample(range(task.num_keys), task.num_queries)
        queries = [keys[i] for i in asked]
        query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
        references = tuple(value for i in asked for value in values[i])
        return Drawn(partial(self._text, size, needles, places, distractors, query), references)

    def _text(
        self, size: int, needles: list[str], places: list[int], distractors: list[tuple[int, int]], query: str
    ) -> str:
        if self._essays is not None:
            context = _among(self._essays.sentences(size), needles, places)
        else:
            lines = [NOISE] * size
            if self._task.haystack == "needle":
                keys, values = self._task.keys, self._task.values
                lines = [self._needle(self._spelled(keys, k), self._spelled(values, v)) for k, v in distractors]
            for place, needle in zip(sorted(places, reverse=True), needles, strict=False):
                lines.insert(place, needle)
            context = "\n".join(lines)
        return self._prompt.text(type_needle_v=self._kind, context=context, query=query)

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self._task.values, key=key, value=value)

    def _number(self, kind: Word, rng: Random) -> int:
        """What a key or value is spelled from."""
        if kind == "numbers":
            return rng.randint(10**6, 10**7 - 1)
        if kind == "uuids":
            return rng.getrandbits(128)
        assert self._pairs is not None
        return rng.choice(range(len(self._pairs)))

    def _spelled(self, kind: Word, number: int) -> str:
        if kind == "numbers":
            return str(number)
        if kind == "uuids":
            return str(uuid.UUID(int=number, version=4))
        assert self._pairs is not None
        return self._pairs[number]


def _singular(text: str) -> str:
    return text.replace("Some", "A").replace("are all", "is").replace("are", "is").replace("answers", "answer")


def _among(sentences: list[str], needles: list[str], depths: list[int]) -> str:
    """`needles` between `sentences`. Where two stand at one place, the original leaves an empty text between them."""
    places = [0, *sorted(int(len(sentences) * (depth / 100)) for depth in depths), len(sentences)]
    parts: list[Any] = []
    for i, (begin, end) in enumerate(itertools.pairwise(places)):
        parts.append(" ".join(sentences[begin:end]))
        parts += needles[i : i + 1]
    return " ".join(parts)
