"""Translation of long passages: the user's parallel texts, or text of a corpus in a language made up for each example.

A made-up language is English word for word by a glossary that the prompt gives, with the words of each line in another
order: it can be translated without a fault in both directions, and by nothing but the prompt.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from rnope.data.corpus import Document
from rnope.data.examples.draft import Counter, Draft, take
from rnope.data.examples.invented import Inventor
from rnope.data.examples.material import digest_of, running_text, training_pairs

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class PairTranslation:
    """The user's passages, in the order of the file, one pair of languages a file.

    The first pair is shown with its translation: so no language needs a name.
    """

    kind = "translation"
    keys = ("source", "target")

    def __init__(self, pairs: Sequence[Mapping[str, str]]) -> None:
        self._pairs = pairs
        self.digest = digest_of(pair[key] for pair in pairs for key in self.keys)

    @classmethod
    def read(cls, path: Path) -> "PairTranslation":
        """The pairs whose source is to train on.

        Raises:
            ConfigError: see `training_pairs`.
        """
        return cls(training_pairs(path, cls.keys, by="source"))

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""
        start = rng.randrange(len(self._pairs))
        (shown, *pairs) = ((p["source"].strip(), p["target"].strip()) for p in _from(self._pairs, start))
        head = f"A passage and its translation:\n\n{shown[0]}\n\n{shown[1]}\n\n"
        head += "Translate this text in the same way, all of it, one passage after another:"
        tail = "\n\nTranslation:"

        def tokens(block: list[tuple[str, str]]) -> list[int]:
            sides = counter.each([f"\n\n{text}" for pair in block for text in pair])
            return [a + b for a, b in zip(sides[::2], sides[1::2], strict=True)]

        taken = take(pairs, tokens, budget_tokens - counter.parts(head, tail), what="pairs", misses=8)
        prompt = "".join([head, *(f"\n\n{source}" for source, _ in taken), tail])
        return Draft(task="pairs", prompt=prompt, completion="".join(f"\n\n{target}" for _, target in taken))


def _from(items: Sequence[Mapping[str, str]], start: int) -> Iterator[Mapping[str, str]]:
    yield from items[start:]
    yield from items[:start]


def _reversed(words: list[str]) -> list[str]:
    return words[::-1]


def _rotated(words: list[str]) -> list[str]:
    return words[-1:] + words[:-1]


def _swapped(words: list[str]) -> list[str]:
    pairs = [words[i : i + 2][::-1] for i in range(0, len(words), 2)]
    return [word for pair in pairs for word in pair]


ORDERS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "reversed": (_reversed, "stand in reverse order"),
    "rotated": (_rotated, "move up by one place, and the last comes first"),
    "swapped": (_swapped, "change places two by two, the first with the second, the third with the fourth and so on, "
                "and a last one without a partner stays"),
}  # fmt: skip
"""How the words of a line stand in a made-up language, and how a prompt says it."""


@dataclass(frozen=True)
class Language:
    """A language made from English: words of a line are replaced by the glossary, then put in another order."""

    order: str
    glossary: dict[str, str]
    """English word -> its word, both in lower case; those that are missing stay as they are."""

    def line(self, english: str) -> str:
        """One line of English in this language. Whatever is no word keeps its place."""
        words = ORDERS[self.order][0]([self._word(word) for word in WORD.findall(english)])
        following = iter(words)
        return WORD.sub(lambda _: next(following), english)

    def _word(self, word: str) -> str:
        shape, found = shape_of(word), self.glossary.get(word.lower())
        return word if shape is None or found is None else shape(found)


def shape_of(word: str) -> Callable[[str], str] | None:
    """How `word` is written: in small letters, with a capital first, in capitals; None: in no such way."""
    for shape in (str.lower, _titled, str.upper):
        if shape(word.lower()) == word:
            return shape
    return None


def _titled(word: str) -> str:
    return word[:1].upper() + word[1:]


class InventedTranslation:
    """Documents of an English corpus, into a language made up for the example or out of it."""

    kind = "translation"

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self.digest = digest_of(document.text for document in documents)

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""
        inventor = Inventor(rng)
        name, order, into = inventor.name(), rng.choice(list(ORDERS)), rng.random() < 0.5
        head = (
            f"{name} is a language made from English line by line. Each word is replaced by that of the glossary, a word "
            f"that is not in the glossary by itself; then the words of the line {ORDERS[order][1]}. A word keeps its "
            "capitals. Numbers, marks and spaces between words stay where they are.\n\nGlossary, English first:\n"
        )
        ask = f"\n\nTranslate this text {'into' if into else 'from'} {name}, line by line:\n"
        tail = "\n\nTranslation:"
        met = Language(order, {})

        def tokens(block: list[str]) -> list[int]:
            entries = [[_entry(word, inventor, met.glossary) for word in _new(line, met.glossary)] for line in block]
            told = iter(counter.each([entry for of_line in entries for entry in of_line]))
            sides = iter(counter.each([f"\n{text}" for line in block for text in (line, met.line(line))]))
            return [next(sides) + next(sides) + sum(islice(told, len(of_line))) for of_line in entries]

        # A line that is passed over has its words counted, and a later one with the same words has not: by little.
        budget = budget_tokens - counter.parts(head, ask, tail)
        lines = take(_lines(running_text(rng, self._documents)), tokens, budget, what="corpus", misses=8)
        needed = _new("\n".join(lines), {})
        language = Language(order, {word: met.glossary[word] for word in needed})
        english, foreign = "\n".join(lines), "\n".join(language.line(line) for line in lines)
        glossary = "".join(f"\n{a} = {b}" for a, b in sorted(language.glossary.items()))
        source, target = (english, foreign) if into else (foreign, english)
        prompt = "".join([head, glossary, ask, "\n", source, tail])
        return Draft(task=f"{'into' if into else 'from'}-{order}", prompt=prompt, completion=f"\n{target}")


def _new(line: str, glossary: Mapping[str, str]) -> list[str]:
    words = (word.lower() for word in WORD.findall(line) if shape_of(word) is not None)
    return [word for word in dict.fromkeys(words) if word not in glossary]


def _entry(word: str, inventor: Inventor, glossary: dict[str, str]) -> str:
    glossary[word] = inventor.word()
    return f"\n{word} = {glossary[word]}"


def _lines(text: Iterable[str]) -> Iterator[str]:
    """Pieces of text that are prose, white space made one space each."""
    for piece in text:
        line = " ".join(piece.split())
        letters = sum(map(len, WORD.findall(line)))
        if letters >= 12 and 1.5 * letters >= len(line):
            yield line
