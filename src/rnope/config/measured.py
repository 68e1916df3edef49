"""What a comparison measures beside its needles: RULER's tasks, losses by position, times."""

from dataclasses import dataclass
from typing import Literal

from rnope.errors import check

TaskName = Literal["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2", "niah_multiquery"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One of RULER's tasks, said in the words of the needles."""

    needles: int
    """Facts in the context, each of another key, at random depths."""
    asked: int = 1
    """Of them, one after the other with the gold answers in place."""
    noise: bool = False
    """The haystack is one sentence over and over, not text."""

    @property
    def least_tokens(self) -> int:
        """The shortest context that holds the facts, the questions and a token of haystack."""
        return 2 + 4 * (self.needles + self.asked)

    def contexts(self, answers: int) -> int:
        """How many it takes to ask for so many answers."""
        return -(-answers // self.asked)


TASKS: dict[TaskName, Task] = {
    "niah_single_1": Task(needles=1, noise=True),
    "niah_single_2": Task(needles=1),
    "niah_multikey_1": Task(needles=4),
    "niah_multikey_2": Task(needles=32),
    "niah_multiquery": Task(needles=4, asked=4),
}
"""Of niah_multikey_2 the original's haystack is needles and nothing else; here there are as many as there are keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tasks:
    """RULER's tasks that the models can read."""

    names: tuple[TaskName, ...] = tuple(TASKS)
    context_tokens: tuple[int, ...] = ()
    """Lengths; none: no tasks."""
    arms: tuple[str, ...] = ()
    """Arms that are asked; none named: all."""
    answers: int = 100
    """Asked for per task and length, in as many contexts as that takes."""
    far_tokens: tuple[int, ...] = ()
    """Further lengths, at which fewer are asked for."""
    far_answers: int = 16

    def __post_init__(self) -> None:
        distinct = len(set(self.names)) == len(self.names) > 0
        check("names", self.names, distinct, "must be distinct, and some", "Leave the field out for all.")
        least = max(TASKS[name].least_tokens for name in self.names)
        for name in ("context_tokens", "far_tokens"):
            check_lengths(name, getattr(self, name), least, f"the tasks' needles and questions need {least} tokens")
        both = sorted({*self.context_tokens} & {*self.far_tokens})
        check("far_tokens", self.far_tokens, not both, "repeats lengths of context_tokens", "Give each length once.")
        for name in ("answers", "far_answers"):
            value = getattr(self, name)
            check(name, value, 1 <= value < 2**20, "must be at least 1", "RULER asks 500.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Loss on held-out text by position (SPEC T6)."""

    context_tokens: tuple[int, ...] = ()
    """Lengths of windows; none: no losses."""
    windows: int = 16
    """Of each length."""

    def __post_init__(self) -> None:
        check_lengths("context_tokens", self.context_tokens, 32, "a window has 32 tokens or more")
        check("windows", self.windows, 2 <= self.windows < 2**20, "must be at least 2, for an interval", "Use 16.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Times of reading, going on and training, measured when all else is done."""

    context_tokens: tuple[int, ...] = ()
    """Lengths; none: no times."""
    rounds: int = 3
    """In each of which every layout has its turn; the median counts."""

    def __post_init__(self) -> None:
        check_lengths("context_tokens", self.context_tokens, 1, "there must be a token")
        check("rounds", self.rounds, 1 <= self.rounds < 2**10, "must be at least 1", "Use 3.")


def check_lengths(name: str, lengths: tuple[int, ...], least: int, rule: str) -> None:
    """Refuse lengths in tokens that repeat, or that do not lie in `least` … 2^31; `rule` says why so many are needed."""
    check(name, lengths, len(set(lengths)) == len(lengths), "must be distinct", "Leave out the repetition.")
    for value in lengths:
        check(name, value, least <= value < 2**31, f"{rule}, and 2^31 are too many", "Use another length.")
