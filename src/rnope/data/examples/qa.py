"""Questions over retrieved documents: the one or two that hold the answer stand among many that do not.

The documents are the user's (pairs of question and answer, each with its context), or fact sheets about invented towns and
people, asked about directly or by way of another ("the town where so-and-so was born").
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rnope.data.examples.draft import Counter, Draft, take
from rnope.data.examples.invented import Inventor
from rnope.data.examples.material import digest_of, training_pairs

_INTRODUCTION = "Here are documents that a search has found. Answer the question below them from what they say."
_CRAFTS = (
    "bell founding;glass blowing;lace making;boat building;paper making;bee keeping;clock making;basket weaving;"
    "sail making;tile firing;salt panning;rope walking;dyeing wool;carving spoons;pressing oil;grinding lenses"
).split(";")
_PROFESSIONS = (
    "surveyor;midwife;notary;stonemason;translator;botanist;ferryman;cartographer;bookbinder;shipwright;typesetter;"
    "veterinarian;locksmith;chronicler;gardener;pharmacist;tanner;weaver"
).split(";")
_INSTRUMENTS = "oboe;cello;zither;bassoon;accordion;dulcimer;trombone;harpsichord;mandolin;viola;piccolo;tuba".split(
    ";"
)
_COLLECTIONS = (
    "ship models;pressed flowers;old keys;postage stamps;door handles;theatre bills;sea shells;railway maps;thimbles;"
    "barometers;chess sets;walking sticks;fossils of ferns;playing cards;weather diaries;songs of sailors"
).split(";")


def _document(number: int, text: str) -> str:
    return f"\n\nDocument {number}: {text}"


def _question(question: str) -> str:
    return f"\n\nQuestion: {question}\nGive the answer alone.\nAnswer:"


class PairQA:
    """The user's questions, each over its own context among those of others."""

    kind = "qa"
    keys = ("question", "answer", "context")

    def __init__(self, pairs: Sequence[Mapping[str, str]]) -> None:
        self._pairs = pairs
        self._contexts = list(dict.fromkeys(pair["context"].strip() for pair in pairs))
        self.digest = digest_of(pair[key] for pair in pairs for key in self.keys)

    @classmethod
    def read(cls, path: Path) -> "PairQA":
        """The pairs whose context is to train on.

        Raises:
            ConfigError: see `training_pairs`.
        """
        return cls(training_pairs(path, cls.keys, by="context"))

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""
        pair = rng.choice(self._pairs)
        gold = pair["context"].strip()
        question, completion = _question(pair["question"].strip()), f" {pair['answer'].strip()}"
        fixed = counter.parts(_INTRODUCTION, question, completion, _document(1, gold))
        shuffled = rng.sample(range(len(self._contexts)), len(self._contexts))
        others = (text for index in shuffled if (text := self._contexts[index]) != gold)
        texts = _fill(others, 2, counter, budget_tokens - fixed, "pairs")
        texts.insert(rng.randint(0, len(texts)), gold)
        return Draft(task="pairs", prompt=_prompt(texts, question), completion=completion)


def _fill(texts: Iterable[str], first: int, counter: Counter, budget_tokens: int, what: str) -> list[str]:
    """As many of the texts as fit, as documents of numbers from `first` on."""

    def tokens(block: list[tuple[int, str]]) -> list[int]:
        return counter.each([_document(number, text) for number, text in block])

    return [text for _, text in take(enumerate(texts, first), tokens, budget_tokens, what=what, misses=32)]


def _prompt(texts: Sequence[str], question: str) -> str:
    return "".join([_INTRODUCTION, *(_document(number, text) for number, text in enumerate(texts, 1)), question])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A document about one town or person, and what it answers."""

    text: str
    questions: tuple[tuple[str, str], ...]
    """Question and answer."""
    second: tuple[tuple[str, str], ...] = ()
    """Of a person: questions whose answer is on the sheet of the town of birth."""


class InventedQA:
    """Questions over fact sheets that are made up for each example."""

    kind = "qa"
    digest = "invented"

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""

        inventor = Inventor(rng)
        town, facts = inventor.name(), _town(rng, inventor)
        gold = [_town_sheet(rng, town, facts), _person_sheet(rng, _full_name(inventor), town, facts)]
        two_hops = rng.random() < 0.5
        asked, answer = rng.choice([pair for sheet in gold for pair in (sheet.second if two_hops else sheet.questions)])
        question, completion = _question(asked), f" {answer}"
        told = [_document(number, sheet.text) for number, sheet in enumerate(gold, 1)]
        fixed = counter.parts(_INTRODUCTION, question, completion, *told)
        others = (sheet.text for sheet in _sheets(rng, inventor))
        texts = [sheet.text for sheet in gold] + _fill(others, 3, counter, budget_tokens - fixed, "tokens")
        rng.shuffle(texts)
        task = "two-hop" if two_hops else "one-hop"
        return Draft(task=task, prompt=_prompt(texts, question), completion=completion)


def _sheets(rng: Random, inventor: Inventor) -> Iterator[Sheet]:
    """Towns and people without end; a person was born in a town that has come before."""
    towns: list[tuple[str, dict[str, str]]] = []
    while True:
        if not towns or rng.random() < 0.35:
            towns.append((inventor.name(), _town(rng, inventor)))
            yield _town_sheet(rng, *towns[-1])
        else:
            yield _person_sheet(rng, _full_name(inventor), *rng.choice(towns))


def _full_name(inventor: Inventor) -> str:
    return f"{inventor.name()} {inventor.name()}"


def _town(rng: Random, inventor: Inventor) -> dict[str, str]:
    return {
        "river": inventor.name(),
        "year": str(rng.randint(1050, 1890)),
        "people": f"{rng.randint(1, 98)},{rng.randint(0, 999):03d}",
        "craft": rng.choice(_CRAFTS),
    }


_TOWN_QUESTIONS = {
    "river": "On which river lies {town}?",
    "year": "In what year was {town} founded?",
    "people": "How many people live in {town}?",
    "craft": "What craft is {town} known for?",
}


def _town_sheet(rng: Random, town: str, facts: Mapping[str, str]) -> Sheet:
    river, year, people, craft = facts["river"], facts["year"], facts["people"], facts["craft"]
    sentences = [
        rng.choice((f"{town} lies on the river {river}.", f"The river {river} flows through {town}.")),
        rng.choice((f"The town was founded in {year}.", f"Its charter of foundation is of the year {year}.")),
        rng.choice((f"It has {people} inhabitants.", f"At the last count, {people} people lived there.")),
        rng.choice((f"It is known for {craft}.", f"Travellers come for its old craft of {craft}.")),
    ]
    return Sheet(text=_written(rng, town, sentences), questions=_asked(_TOWN_QUESTIONS, facts, town=town))


_PERSON_QUESTIONS = {
    "town": "Where was {person} born?",
    "year": "In what year was {person} born?",
    "profession": "What was the profession of {person}?",
    "instrument": "What instrument did {person} play?",
    "collection": "What did {person} collect?",
}


def _person_sheet(rng: Random, person: str, town: str, facts: Mapping[str, str]) -> Sheet:
    own = {
        "town": town,
        "year": str(rng.randint(1700, 1985)),
        "profession": rng.choice(_PROFESSIONS),
        "instrument": rng.choice(_INSTRUMENTS),
        "collection": rng.choice(_COLLECTIONS),
    }
    year, profession, instrument, collection = (own[k] for k in ("year", "profession", "instrument", "collection"))
    sentences = [
        rng.choice((f"{person} was born in {town} in {year}.", f"In {year}, {person} was born in {town}.")),
        rng.choice((f"{person} was a {profession}.", f"The days went by in the work of a {profession}.")),
        rng.choice((f"{person} played the {instrument}.", f"Evenings were for playing the {instrument}.")),
        rng.choice((f"A collection of {collection} filled two rooms.", f"{person} collected {collection}.")),
    ]
    born = f"the town where {person} was born"
    second = _asked(_TOWN_QUESTIONS, facts, town=born)
    return Sheet(text=_written(rng, person, sentences), questions=_asked(_PERSON_QUESTIONS, own, person=person),
                 second=second)  # fmt: skip


def _written(rng: Random, title: str, sentences: list[str]) -> str:
    """The first sentence names its subject; the others come in any order."""
    rest = sentences[1:]
    rng.shuffle(rest)
    return " ".join([f"{title}.", sentences[0], *rest])


def _asked(questions: Mapping[str, str], facts: Mapping[str, str], **subject: str) -> tuple[tuple[str, str], ...]:
    return tuple((questions[name].format(**subject), facts[name]) for name in questions)
