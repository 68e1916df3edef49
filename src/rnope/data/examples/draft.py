"""What an example is, and how a prompt is filled close to a length in tokens and never above it. It knows no kind.

An example is a function of its task, a seed and its number, so that any one can be made alone. Parts are counted one by
one, each with the white space before it, which is off by little for any tokenizer; then the whole is counted once, and
the example is drafted again with more or less room where that shows a difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol, TypeVar

from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer

T = TypeVar("T")
SPECIAL_TOKENS = 2
"""BOS before the prompt and EOS behind the completion."""
FULL = 0.95
"""Share of the asked length that an example has at least, where the material allows it."""
_ROUNDS = 5
_BLOCK = 128
"""Candidates counted at once."""
_KNOWN = 2**19
"""Texts whose counts are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A prompt and its completion; ``prompt + completion`` is one text.

    The prompt ends with something visible and the completion begins with white space, where a byte-level tokenizer cuts
    anyway: so the two have the same tokens together and apart.
    """

    task: str
    """What is asked for, within the kind."""
    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One line of an example file."""

    kind: str
    task: str
    seed: int
    number: int
    tokens: int
    """Of prompt, completion, BOS and EOS, prompt and completion encoded apart."""
    prompt: str
    completion: str


class Task(Protocol):
    """A kind of examples and the material they are made of."""

    @property
    def kind(self) -> str: ...

    @property
    def digest(self) -> str:
        """Of the material, for provenance."""
        ...

    def draft(self, rng: Random, counter: "Counter", budget_tokens: int) -> Draft:
        """An example that has about `budget_tokens` tokens, and as few more as counting part by part allows.

        Raises:
            ConfigError: the material is too short, or the budget too small for any example.
        """
        ...


class Counter:
    """Counts tokens, and remembers the counts of parts that come again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._known: dict[str, int] = {}

    def each(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        encodings = self._backend.encode_batch_fast(fresh, add_special_tokens=False)
        self._known.update(zip(fresh, map(len, encodings), strict=True))
        return [self._known[text] for text in texts]

    def parts(self, *texts: str) -> int:
        """Tokens of the texts together, each encoded apart."""
        return sum(self.each(texts))

    def exact(self, draft: Draft) -> int:
        """Tokens of the whole example; remembers nothing."""
        encodings = self._backend.encode_batch_fast([draft.prompt, draft.completion], add_special_tokens=False)
        return SPECIAL_TOKENS + sum(map(len, encodings))


def take(
    candidates: Iterable[T], count: Callable[[list[T]], list[int]], budget_tokens: int, *, what: str, misses: int = 0
) -> list[T]:
    """The candidates, in order, that the budget holds.

    Args:
        count: tokens of each of a few candidates that follow each other.
        what: the option that the candidates come from.
        misses: how many candidates too long for what is left are passed over before it ends.

    Raises:
        ConfigError: the budget holds nothing, or all candidates together do not fill it.
    """
    if budget_tokens <= 0:
        rule = "is too short: question, answer and what they ask about leave no room"
        raise ConfigError("tokens", budget_tokens, rule, "Use longer examples.")
    taken: list[T] = []
    left, seen = budget_tokens, 0
    source = iter(candidates)
    while block := list(islice(source, _BLOCK)):
        for candidate, tokens in zip(block, count(block), strict=True):
            seen += tokens
            if tokens <= left:
                taken.append(candidate)
                left -= tokens
            elif misses == 0:
                return taken
            else:
                misses -= 1
        if left * 100 < budget_tokens:
            return taken
    if seen < FULL * budget_tokens:
        rule = f"are all there is to train on, too few to fill {budget_tokens:,}"
        raise ConfigError(what, f"{seen:,} tokens", rule, "Use more material, or shorter examples.")
    return taken


def make(task: Task, counter: Counter, *, seed: int, number: int, tokens: int) -> Example:
    """Example `number` of `seed`, of at most `tokens` tokens with BOS and EOS.

    Raises:
        ConfigError: the material is too short for the length, or the length for any example.
    """
    budget = tokens - SPECIAL_TOKENS
    best: Example | None = None
    for _ in range(_ROUNDS):
        try:
            draft = task.draft(Random(f"{task.kind}/{seed}/{number}"), counter, budget)
        except ConfigError as error:
            if best is not None:
                break
            value = tokens if error.field == "tokens" else error.value
            raise ConfigError(error.field, value, error.rule, error.remedy) from None
        used = counter.exact(draft)
        if used <= tokens:
            if best is not None and used <= best.tokens:
                break  # the gap is one that nothing fits into
            best = Example(kind=task.kind, task=draft.task, seed=seed, number=number, tokens=used,
                           prompt=draft.prompt, completion=draft.completion)  # fmt: skip
            if used >= FULL * tokens:
                break
        budget = budget * tokens // used - (used > tokens) * (1 + tokens // 500)
    if best is None:
        raise ConfigError("tokens", tokens, "is too short for an example of this kind", "Use longer examples.")
    return best
