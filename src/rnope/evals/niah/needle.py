"""Needles: sentences in the manner of Kamradt's, their facts drawn anew for each prompt, and the question about them.

The town is invented, so that no model knows it; the facts are pairs of common words, so that every model can spell them,
and a pair that the haystack holds is never drawn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random

from rnope.data.examples.invented import Inventor
from rnope.errors import ConfigError
from rnope.evals.frame import Frame
from rnope.evals.niah.scoring import normalised
from rnope.tokenizer import Tokenizer

INSTRUCTION = "Read the text below. A question about it stands at its end.\n\n"
SENTENCE = "\nThe best thing to do in {town} is to eat {food} in {place} and watch the {sight}.\n"
QUESTION = (
    "\n\nAnswer the question from the text above, in one sentence.\nQuestion: What is the best thing to do in {town}?"
)
ANSWER = "The best thing to do in {town} is"
"""First words of the answer: base models go on from them, and chat models find them at the start of their turn."""

POOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "food": (
        tuple(
            "almond apricot barley cabbage carrot celery cherry chestnut coconut garlic ginger honey lemon lentil mushroom "
            "onion pear pepper plum potato pumpkin raspberry rhubarb spinach turnip walnut".split()
        ),
        tuple("biscuits bread cake curry dumplings noodles pancakes pie pudding salad soup stew waffles".split()),
    ),
    "place": (
        tuple(
            "Anchor Badger Beacon Castle Chapel Copper Crystal Dolphin Eagle Falcon Garnet Harbor Heron Juniper Lantern "
            "Maple Marble Meadow Orchid Oyster Pigeon Saddle Timber Tulip Willow".split()
        ),
        tuple("Alley Arcade Court Crescent Gardens Hall Lane Market Park Plaza Square Street".split()),
    ),
    "sight": (
        tuple(
            "amber clever crimson dancing emerald floating giant gleaming golden noisy painted patient purple scarlet "
            "silver sleepy spotted striped tiny wooden yellow".split()
        ),
        tuple(
            "acrobats balloons boats butterflies camels ducks elephants fountains horses jugglers kites lanterns monkeys "
            "parrots ponies puppets swans trains".split()
        ),
    ),
}
"""Fact -> first and second words. Every pair of them is a fact that may be drawn."""
_LETTERS = "abdefghiklmnoprstuvzBDFGHKLMNPRSTVZ"
"""Of invented towns."""
_PROBES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """A needle and its question, in tokens."""

    town: str
    facts: tuple[str, ...]
    """In the order of `POOLS`."""
    text: str
    """The sentence, without the line breaks around it."""
    ids: tuple[int, ...]
    """Of the sentence and the line breaks around it."""
    tail: tuple[int, ...]
    """All that follows the haystack: the question, what the frame has behind it, and the answer's first words."""


class Needles:
    """Draws needles that occur in none of `texts`.

    Attributes:
        head: ids before the haystack.
        most_tokens, most_tail: no needle and no tail is longer.

    Raises:
        ConfigError: the tokenizer cannot spell them, or `texts` hold all facts of a kind.
    """

    def __init__(self, tokenizer: Tokenizer, frame: Frame, texts: Iterable[str]) -> None:
        self._tokenizer, self._frame = tokenizer, frame
        _check_spelling(tokenizer)
        self.head = (*frame.begin_ids, *tokenizer.encode(frame.before + INSTRUCTION))
        pools = {kind: [" ".join(pair) for pair in product(*words)] for kind, words in POOLS.items()}
        pairs = {tuple(normalised(phrase).split()) for phrases in pools.values() for phrase in phrases}
        self._words: set[str] = set()
        taken: set[tuple[str, ...]] = set()
        for text in (*texts, frame.before, frame.after):
            words = normalised(text).split()
            self._words.update(words)
            taken |= pairs.intersection(pairwise(words))
        self._pools = {
            kind: [phrase for phrase in phrases if tuple(normalised(phrase).split()) not in taken]
            for kind, phrases in pools.items()
        }
        for kind, phrases in self._pools.items():
            if not phrases:
                rule = f"holds every {kind} that a needle could name, so that none can be told from it"
                raise ConfigError("haystack", f"{len(self._words):,} words", rule, "Give another text.")
        # Fixed probes, not the samples asked: how much room a needle is given must not depend on how many there are.
        probes = [self._any(Random(i)) for i in range(_PROBES)]
        self.most_tokens = max(len(needle.ids) for needle in probes)
        self.most_tail = max(len(needle.tail) for needle in probes)

    def draw(self, rng: Random) -> Needle:
        """A needle within the room that there is for one."""
        while True:
            needle = self._any(rng)
            if len(needle.ids) <= self.most_tokens and len(needle.tail) <= self.most_tail:
                return needle

    def _any(self, rng: Random) -> Needle:
        inventor = Inventor(rng)
        while normalised(town := inventor.name()) in self._words:
            pass
        facts = {kind: rng.choice(phrases) for kind, phrases in self._pools.items()}
        sentence = SENTENCE.format(town=town, **facts)
        between = self._frame.after if self._frame.chat else "\nAnswer: "
        tail = QUESTION.format(town=town) + between + ANSWER.format(town=town)
        return Needle(
            town=town,
            facts=tuple(facts.values()),
            text=sentence.strip(),
            ids=tuple(self._tokenizer.encode(sentence)),
            tail=tuple(self._tokenizer.encode(tail)),
        )


def _check_spelling(tokenizer: Tokenizer) -> None:
    """Raise where a word of a needle does not survive being encoded, but for case."""

    def letters(text: str) -> str:
        return normalised(text).replace(" ", "")

    def lost(text: str) -> bool:
        return letters(tokenizer.decode_answer(tokenizer.encode(text))) != letters(text)

    words = [word for pool in POOLS.values() for part in pool for word in part]
    failed = [word for word in (*words, *_LETTERS) if lost(word)]
    if failed:
        characters = "".join(sorted({c for word in failed for c in word if lost(c)}))
        rule = f"cannot spell {len(failed)} words of the needles"
        rule += f": it has no {' '.join(characters)}" if characters else f", such as {failed[0]!r}"
        raise ConfigError("tokenizer", failed[0], rule, "Evaluate with a tokenizer that covers English letters.")
