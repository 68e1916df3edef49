"""What an evaluation is: cells of samples, what is kept of each answer, and how it is scored. It asks no model itself.

A suite is a function of its settings: the same settings and tokenizer give the same prompts, whatever the model.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rnope.errors import check
from rnope.evals.models.model import Ended, EvalModel
from rnope.evals.results import CellResult, Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Samples that are reported together, and that a run finishes together."""

    name: str
    """Unique within the suite; its predictions are kept in a file of this name."""
    context_tokens: int
    """Prompt and answer together, at most."""
    samples: int
    max_new_tokens: int
    labels: dict[str, Any] = field(default_factory=dict)
    """What the cell varies by, for example task and depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question."""

    index: int
    """Within its cell."""
    ids: np.ndarray
    """The prompt, int64 [tokens], special tokens included."""
    references: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain data that is kept beside the answer: where the needle stands, how often the haystack repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model answered, with all that scoring needs: one line of a predictions file."""

    cell: str
    index: int
    prompt_sha256: str
    """Of the prompt's token ids, little-endian int64."""
    prompt_tokens: int
    answer: str
    new_tokens: int
    ended: Ended
    """``stop``: by a stop token or text. ``length``: cut at the cell's ``max_new_tokens``. ``error``: there is no answer."""
    error: str | None = None
    references: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Scoring(ABC):
    """How the answers of a suite become figures. It needs the kept lines and nothing else: no model, no tokenizer, no
    texts."""

    @abstractmethod
    def score(self, prediction: Prediction) -> dict[str, float]:
        """Metric -> value of one answer. Never called for errors."""

    @abstractmethod
    def summary(self, cells: Sequence[CellResult]) -> tuple[Figure, ...]:
        """Figures over cells, such as the mean over tasks; of whatever cells are there."""


class Suite(ABC):
    """One evaluation, for one tokenizer."""

    name: ClassVar[str]
    scoring: ClassVar[Scoring]
    every_token_scored: ClassVar[bool] = False
    """Whether prompts are scored in full, which costs more than reading them to go on from their end."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts, a sentence or two each."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain data that decides prompts and scores: seed, digests of texts, forms. Not which cells are asked: a
        folder may gain lengths and tasks, but holds one kind of prompt."""

    @abstractmethod
    def cells(self) -> tuple[Cell, ...]:
        """What is to be asked, without making any prompt.

        Raises:
            ConfigError: a length that cannot hold the question.
        """

    def check(self) -> None:  # noqa: B027, most suites have nothing to add
        """See that the cells can be asked, as far as that is quick and `cells` did not.

        Raises:
            ConfigError: one cannot.
        """

    @abstractmethod
    def ask(
        self, model: EvalModel, cell: Cell, done: Mapping[int, Prediction], *,
        batch: int, progress: Callable[[int], None],
    ) -> Iterator[list[Prediction]]:  # fmt: skip
        """Ask what is not in `done`, some samples at a time; each list is kept as soon as it comes.

        Args:
            done: index -> what an earlier run of the same cell left.
            batch: samples that may be asked together. Which samples share a list must not depend on `done` being empty.
            progress: told the tokens read or written since it was told last.
        """


class GenerationSuite(Suite):
    """A suite whose samples are prompts to be continued greedily."""

    @abstractmethod
    def samples(self, cell: Cell, done: Mapping[int, Prediction]) -> Iterator[Sample]:
        """The samples that are not in `done`, in the order of their indices."""

    def ask(
        self, model: EvalModel, cell: Cell, done: Mapping[int, Prediction], *,
        batch: int, progress: Callable[[int], None],
    ) -> Iterator[list[Prediction]]:  # fmt: skip
        """See `Suite`. Samples are asked in the same company whatever was done: how sums are rounded may depend on it."""
        groups = {index: index // batch for index in range(cell.samples)}
        torn = set() if model.facts.kind == "server" else {groups[i] for i in groups if i not in done}
        group: list[Sample] = []
        for sample in self.samples(cell, {i: line for i, line in done.items() if groups.get(i) not in torn}):
            if group and groups[sample.index] != groups[group[0].index]:
                yield self._asked(model, cell, group, done, progress)
                group = []
            group.append(sample)
        if group:
            yield self._asked(model, cell, group, done, progress)

    def _asked(
        self, model: EvalModel, cell: Cell, group: Sequence[Sample], done: Mapping[int, Prediction],
        progress: Callable[[int], None],
    ) -> list[Prediction]:  # fmt: skip
        for sample in group:
            total, room = len(sample.ids) + cell.max_new_tokens, cell.context_tokens
            check(cell.name, total, total <= room, f"is more than the {room} tokens of the cell", "This is a fault.")
        answers = model.generate([sample.ids for sample in group], cell.max_new_tokens, progress=progress)
        return [
            Prediction(
                cell=cell.name,
                index=sample.index,
                prompt_sha256=prompt_digest(sample.ids),
                prompt_tokens=len(sample.ids),
                answer=answer.text,
                new_tokens=answer.tokens,
                ended=answer.ended,
                error=answer.error,
                references=sample.references,
                facts=dict(sample.facts),
            )
            for sample, answer in zip(group, answers, strict=True)
            if sample.index not in done
        ]


def prompt_digest(ids: np.ndarray) -> str:
    """SHA-256 of token ids as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()
