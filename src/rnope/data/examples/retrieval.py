"""Retrieval: facts hidden in text, or among nothing but their like, and a question about some of them at the end.

Nothing of it may teach an evaluation's needles by heart. RULER's are "special magic numbers" of adjective-noun keys with
values of seven digits, adjective-noun words or whole UUIDs, Kamradt's is a sandwich in San Francisco, and this project's
own task has one-word keys. Here the sentences are others; keys are invented names, the buildings of invented places and
locker numbers; values have five or six digits, are invented words, or three groups of four hexadecimal digits.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from rnope.data.corpus import Document
from rnope.data.examples.draft import Counter, Draft, take
from rnope.data.examples.invented import Inventor
from rnope.data.examples.material import digest_of, running_text

TASKS = ("single", "multi-key", "multi-value", "multi-query", "facts-only")
TEMPLATES = (
    ("According to the harbour log, the mooring code of {key} is {value}.", "the mooring code of {key}"),
    ("The archivist filed {key} under the mark {value}.", "the mark that the archivist filed {key} under"),
    ("Whoever calls at {key} has to give the watchword {value}.", "the watchword to give at {key}"),
    ("In the survey of the uplands, {key} is entered as {value}.", "the entry of {key} in the survey of the uplands"),
    ("A pencilled note assigns the label {value} to {key}.", "the label that a pencilled note assigns to {key}"),
)
"""A fact, and what a question calls its value. An example has facts of one template."""
BUILDINGS = "lighthouse granary cloister boathouse tollhouse observatory brickworks almshouse foundry quayside".split()
_INTRODUCTION = "Read the text below closely. The question at its end asks for something that it says in passing."
_FACT_TOKENS = 512
"""There is at most one distracting fact in so many tokens, or a few in short texts."""

Fact = tuple[str, str]
"""A key and a value."""


class Retrieval:
    """Facts in the documents of a corpus."""

    kind = "retrieval"

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self.digest = digest_of(document.text for document in documents)

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""
        task = rng.choice(TASKS)
        statement, value_of = rng.choice(TEMPLATES)
        key, value = _makers(rng)
        queries = rng.randint(2, 4) if task == "multi-query" else 1
        values = rng.randint(2, 4) if task == "multi-value" else 1
        keys = [key() for _ in range(queries)]
        asked = [(k, value()) for k in keys for _ in range(values)]
        others = 0 if task in ("single", "facts-only") else rng.randint(1, max(4, budget_tokens // _FACT_TOKENS))
        facts = asked + [(key(), value()) for _ in range(others)]
        rng.shuffle(facts)
        told = [" " + statement.format(key=k, value=v) for k, v in facts]

        question = _question(value_of, keys, values)
        # Values of one key are wanted as the text has them, keys as the question has them.
        answers = [v for k in keys for other, v in facts if k == other]
        completion = " " + ", ".join(answers)
        fixed = counter.parts(_INTRODUCTION, question, completion, *told)
        alone = task == "facts-only"
        source = _endless(statement, key, value) if alone else running_text(rng, self._documents)
        text = take(source, counter.each, budget_tokens - fixed, what="corpus")
        places = sorted(rng.randint(1, max(1, len(text))) for _ in told)
        for place, fact in zip(reversed(places), reversed(told), strict=True):
            text.insert(place, fact)
        return Draft(task=task, prompt="".join([_INTRODUCTION, *text, question]), completion=completion)


def _makers(rng: Random) -> tuple[Callable[[], str], Callable[[], str]]:
    """How the keys and the values of an example are made; no two alike."""
    inventor = Inventor(rng)
    used: set[str] = set()

    def fresh(make: Callable[[], str]) -> str:
        while (found := make()) in used:
            pass
        used.add(found)
        return found

    def locker() -> str:
        return f"locker {''.join(rng.choices('BCDFGHJKLMNPQRSTVWXZ', k=2))}-{rng.randint(1000, 9999)}"

    keys = (inventor.name, lambda: f"the {rng.choice(BUILDINGS)} of {inventor.name()}", locker)
    values = (
        lambda: str(rng.randint(10_000, 999_999)),
        inventor.word,
        lambda: "-".join(f"{rng.randrange(2**16):04x}" for _ in range(3)),
    )
    key, value = rng.choice(keys), rng.choice(values)
    return lambda: fresh(key), lambda: fresh(value)


def _endless(statement: str, key: Callable[[], str], value: Callable[[], str]) -> Iterator[str]:
    yield "\n\n" + statement.format(key=key(), value=value())
    while True:
        yield " " + statement.format(key=key(), value=value())


def _question(value_of: str, keys: Sequence[str], values: int) -> str:
    if len(keys) > 1:
        listed = f"{value_of.format(key='each of the following')}: {', '.join(keys)}"
        how = f"What is {listed}? Give the values in this order, with commas between."
    elif values > 1:
        what = value_of.format(key=keys[0])
        how = f"What is {what}? There are {values} answers. Give them in the order of the text, with commas between."
    else:
        how = f"What is {value_of.format(key=keys[0])}? Give the value alone."
    return f"\n\nQuestion: {how}\nAnswer:"
