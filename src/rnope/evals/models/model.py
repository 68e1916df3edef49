"""What an evaluation asks of a model, whatever kind it is. It knows token ids and text, and no task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rnope.evals.results import ModelFacts
from rnope.tokenizer import Tokenizer

Ended = Literal["stop", "length", "error"]
"""How an answer ended: at a stop token or text; cut at its length; there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A continuation."""

    text: str
    """Without special tokens; up to a stop text, which it does not contain."""
    tokens: int
    ended: Ended
    error: str | None = None
    """Why there is no answer: the words for people."""


class Score(NamedTuple):
    """How likely a continuation is."""

    log_probabilities: tuple[float, ...]
    """Natural, float32, of each of its tokens after the ones before."""
    likeliest: tuple[bool, ...]
    """Whether each is the token that greedy decoding would have chosen."""
    error: str | None = None
    """Why there is no score: the words for people."""

    @classmethod
    def of(cls, chances: Sequence[tuple[float, bool]]) -> "Score":
        """From (log-probability, whether it is the likeliest) of each token."""
        logs, likeliest = zip(*chances, strict=True)
        return cls(logs, likeliest)


class EvalModel(ABC):
    """A model that answers.

    Attributes:
        facts: which model it is.
        tokenizer: text to ids; prompts begin with ``facts.begin_ids``.
    """

    facts: ModelFacts
    tokenizer: Tokenizer

    @abstractmethod
    def generate(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, *,
        stop: Sequence[str] = (), progress: Callable[[int], None] = lambda tokens: None,
    ) -> list[Answer]:  # fmt: skip
        """Continue each prompt greedily, ending at the model's stop tokens. What prompts share is read once.

        Args:
            prompts: token ids, int64 [tokens], special tokens included.
            stop: texts that end an answer before them.
            progress: told the tokens read or written since it was told last.

        Raises:
            UserError: the prompts do not fit into memory, or the model cannot be asked at all. What goes wrong with one
                prompt alone is that answer's `error`.
        """

    @abstractmethod
    def scores(
        self,
        requests: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[tuple[int, Score]]:
        """How likely each continuation is after its context. What contexts share is read once.

        Args:
            requests: (context, continuation), token ids, at least one each.

        Yields:
            the request's place and its score, in any order.

        Raises:
            UserError: as `generate`; a server that gives no probabilities. What goes wrong with one request alone is
                its score's `error`.
        """
