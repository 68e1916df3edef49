"""Samples of one task and length one after the other, as the original makes them: the search for the size that fits, the
samples, and what is drawn in vain between them; and the same again without counting a token, to go on after a stop.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from rnope.errors import ConfigError, UserError
from rnope.evals.frame import Frame
from rnope.evals.ruler.chains import EXAMPLE_TOKENS, ChainDrawing, ExampleDrawing
from rnope.evals.ruler.counting import Counting
from rnope.evals.ruler.draws import Drawing, Drawn, Streams
from rnope.evals.ruler.lists import CodedText

_TRIES = 30
"""At the smallest size; where so many prompts are too long, the original most likely tries for ever."""


class Budget(NamedTuple):
    """Tokens of a prompt and its answer."""

    context_tokens: int
    new_tokens: int
    begin_tokens: int
    """Special ones before the text, for which the original leaves no room."""

    @property
    def room(self) -> int:
        """For the text, as the original counts."""
        return self.context_tokens - self.new_tokens


@dataclass(frozen=True, slots=True)
class Made:
    """A prompt."""

    ids: list[int]
    """Of its text."""
    references: tuple[str, ...]
    units: int
    """Of haystack."""
    facts: dict[str, Any]
    """`tries` and `fit`, which `Source.skip` needs; `repeats`, of the texts; `shortened`, units that were left out to make
    room for special ids."""


class Source(ABC):
    """Samples in order: `begin`, then `make` or `skip` for 0, 1, 2 and so on.

    Raises (`begin`, `make`):
        ConfigError: the length is too short for the task.
    """

    @abstractmethod
    def begin(self, fit: Any) -> None:
        """Search for the size that fits; or, where a sample's facts have one, go through the search that found `fit`."""

    @abstractmethod
    def make(self, index: int) -> Made:
        """The next sample."""

    @abstractmethod
    def skip(self, index: int, facts: Mapping[str, Any]) -> None:
        """Draw what was drawn for the next sample, which is there with these facts."""


class Sampler:
    """The search and the retries of the original.

    Args:
        room: tokens that a text may have.
        error: where no prompt fits.
    """

    def __init__(self, drawing: Drawing, counting: Counting, room: int, error: ConfigError) -> None:
        self.drawing, self._counting, self._room, self._error = drawing, counting, room, error

    def search(self, streams: Streams, context_tokens: int, taken: int = 0) -> list[int]:
        """Where the search began from above, and the largest size that was found to fit; one less than the smallest
        where there was none.

        Args:
            taken: tokens of the room that another text will take.
        """
        highest = self.drawing.highest(
            lambda size: self._counting.count(self._draw(size, streams).text()), context_tokens
        )
        return [
            highest,
            self._halve(highest, streams, lambda _, drawn: self._counting.fits(drawn.text(), self._room - taken)),
        ]

    def search_again(self, streams: Streams, fit: list[int]) -> None:
        """The same draws: of the sizes that were looked at, those up to the one found did fit, and no other."""
        highest, found = fit
        self.drawing.highest(lambda size: len(self._draw(size, streams).references), 1)
        self._halve(highest, streams, lambda size, _: size <= found)

    def make(self, streams: Streams, index: int, fit: list[int], begin_tokens: int = 0) -> tuple[Made, Drawn]:
        """A sample."""
        smallest = self.drawing.smallest
        attempts = self._attempts(streams, index, max(fit[1], smallest), smallest)
        tries, size, drawn, ids = self._first(attempts, self._room)
        facts: dict[str, Any] = {"tries": tries, "fit": fit}
        if len(ids) + begin_tokens > self._room:
            # The original would exceed the length by the special ids. Its streams stay as they are for the samples after
            # this one, which is drawn anew, and smaller, from a copy.
            step = max(1, smallest // 20)
            attempts = self._attempts(streams.copy(), index, size - step, step)
            _, less, drawn, ids = self._first(attempts, self._room - begin_tokens)
            size, facts["shortened"] = less, size - less
        repeats = self.drawing.repeats(size)
        if repeats is not None:
            facts["repeats"] = repeats
        return Made(ids, drawn.references, size, facts), drawn

    def again(self, streams: Streams, index: int, facts: Mapping[str, Any]) -> Drawn:
        """The draws of a sample with these facts; what was drawn last."""
        smallest = self.drawing.smallest
        attempts = self._attempts(streams, index, max(facts["fit"][1], smallest), smallest)
        *_, (_, drawn) = islice(attempts, facts["tries"])
        assert drawn is not None, "the last try was drawn"
        return drawn

    def _halve(self, highest: int, streams: Streams, fits: Callable[[int, Drawn], bool]) -> int:
        low, high = self.drawing.smallest, highest
        while low <= high:
            size = (low + high) // 2
            if fits(size, self._draw(size, streams)):
                low = size + 1
            else:
                high = size - 1
        return low - 1

    def _draw(self, size: int, streams: Streams) -> Drawn:
        for _ in range(_TRIES):
            try:
                return self.drawing.draw(size, 0, streams)
            except UserError:
                raise
            except ValueError:  # where the original, in its search, fails
                continue
        raise self._error

    def _attempts(self, streams: Streams, index: int, size: int, step: int) -> Iterator[tuple[int, Drawn | None]]:
        """Sizes and what is drawn for them, None where nothing can be, until somebody is content."""
        left = _TRIES
        while left:
            try:
                yield size, self.drawing.ask(size, index, streams)
            except UserError:
                raise
            except ValueError:
                yield size, None
            if size > self.drawing.smallest:
                size -= step
            else:
                left -= 1
        raise self._error

    def _first(self, attempts: Iterator[tuple[int, Drawn | None]], room: int) -> tuple[int, int, Drawn, list[int]]:
        """How many attempts it took to stay within `room`; the size, what was drawn, and its ids."""
        for tries, (size, drawn) in enumerate(attempts, 1):
            ids = None if drawn is None else self._counting.within(drawn.text(), room)
            if drawn is not None and ids is not None:
                return tries, size, drawn, ids
        raise AssertionError("attempts end with an error only")


class Searched(Source):
    """Samples of a `Drawing`."""

    def __init__(
        self, drawing: Drawing, streams: Streams, counting: Counting, budget: Budget, error: ConfigError
    ) -> None:
        self._streams, self._budget = streams, budget
        self._sampler = Sampler(drawing, counting, budget.room, error)
        self._fit: list[int] = []

    def begin(self, fit: Any) -> None:
        """See `Source`."""
        if fit is None:
            self._fit = self._sampler.search(self._streams, self._budget.context_tokens)
        else:
            self._sampler.search_again(self._streams, fit)
            self._fit = fit

    def make(self, index: int) -> Made:
        """See `Source`."""
        return self._sampler.make(self._streams, index, self._fit, self._budget.begin_tokens)[0]

    def skip(self, index: int, facts: Mapping[str, Any]) -> None:
        """See `Source`."""
        self._sampler.again(self._streams, index, facts)


class Chained(Source):
    """Samples of vt: an example is searched for and made first, then they are."""

    def __init__(self, frame: Frame, streams: Streams, counting: Counting, budget: Budget, error: ConfigError) -> None:
        self._frame, self._streams, self._counting, self._budget, self._error = frame, streams, counting, budget, error
        self._facts: dict[str, Any] = {}

    def begin(self, fit: Any) -> None:
        """See `Source`."""
        remedy = "Leave vt out: RULER itself would search without end."
        error = ConfigError("tasks", "vt", "has an example of at most 500 tokens, and it takes more here", remedy)
        sampler = Sampler(ExampleDrawing(), self._counting, EXAMPLE_TOKENS, error)
        if fit is None:
            made, example = sampler.make(self._streams, 0, sampler.search(self._streams, EXAMPLE_TOKENS))
            facts = made.facts
        else:
            facts = fit["example"]
            sampler.search_again(self._streams, facts["fit"])
            example = sampler.again(self._streams, 0, facts)
        drawing = ChainDrawing(self._frame, example, context_tokens=self._budget.context_tokens)
        self._sampler = Sampler(drawing, self._counting, self._budget.room, self._error)
        if fit is None:
            taken = self._counting.count(drawing.example)
            found = self._sampler.search(self._streams, self._budget.context_tokens, taken)
        else:
            found = fit["lines"]
            self._sampler.search_again(self._streams, found)
        self._found, self._facts = found, {"fit": {"example": facts, "lines": found}}

    def make(self, index: int) -> Made:
        """See `Source`."""
        made, _ = self._sampler.make(self._streams, index, self._found, self._budget.begin_tokens)
        return replace(made, facts={**made.facts, **self._facts})

    def skip(self, index: int, facts: Mapping[str, Any]) -> None:
        """See `Source`."""
        self._sampler.again(self._streams, index, {**facts, "fit": self._found})


class Coded(Source):
    """Samples of fwe: the number of words grows until the length is exceeded, and falls where a sample exceeds it."""

    def __init__(
        self, frame: Frame, streams: Streams, counting: Counting, budget: Budget, error: ConfigError, seed: int
    ) -> None:
        self._coded = CodedText(frame, prompt_tokens=budget.room, seed=seed)
        self._streams, self._counting, self._budget, self._error = streams, counting, budget, error
        self._count = 0

    def begin(self, fit: Any) -> None:
        """See `Source`."""
        words = self._coded.draw(self._streams)
        if fit is not None:
            self._count = fit
            return
        self._count = self._coded.first
        while self._counting.fits(self._coded.text(words, self._count), self._budget.room - 1):
            self._count += self._coded.step
        self._count -= self._coded.step

    def make(self, index: int) -> Made:
        """See `Source`."""
        words = self._coded.draw(self._streams)
        count, ids = self._within(words, self._count, self._coded.step, self._budget.room)
        facts: dict[str, Any] = {"fit": self._count}
        room = self._budget.room - self._budget.begin_tokens
        if len(ids) > room:
            less, ids = self._within(words, count, max(1, self._coded.step // 20), room)
            count, facts["shortened"] = less, count - less
        return Made(ids, self._coded.references(words), count, facts)

    def skip(self, index: int, facts: Mapping[str, Any]) -> None:
        """See `Source`."""
        self._coded.draw(self._streams)

    def _within(self, words: list[str], count: int, step: int, room: int) -> tuple[int, list[int]]:
        while count > 0:
            ids = self._counting.within(self._coded.text(words, count), room)
            if ids is not None:
                return count, ids
            count -= step
        raise self._error
