"""Answers while they are written: where a stop text ends one. It knows no model."""

import dataclasses
from collections.abc import Sequence

from rnope.evals.models.model import Answer
from rnope.tokenizer import Tokenizer


class Writing:
    """The answers to some prompts, token by token.

    Args:
        stop_ids: tokens that end an answer.
        stop: texts that do, and that it does not contain.
        count: of prompts.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], stop: Sequence[str], count: int) -> None:
        self._tokenizer, self._stop_ids, self._stop = tokenizer, frozenset(stop_ids), tuple(filter(None, stop))
        self._ids: list[list[int]] = [[] for _ in range(count)]
        self._cut: list[Answer | None] = [None] * count

    def add(self, place: int, token: int) -> None:
        """One more token of an answer; behind a stop text they are let go."""
        if self._cut[place] is not None:
            return
        self._ids[place].append(token)
        if self._stop:
            answer = self._answer(self._ids[place])
            if answer.ended == "stop":
                self._cut[place] = answer

    @property
    def finished(self) -> bool:
        """Whether every answer has its end."""
        return all(
            cut is not None or (ids and ids[-1] in self._stop_ids)
            for cut, ids in zip(self._cut, self._ids, strict=True)
        )

    def answers(self) -> list[Answer]:
        """All of them, as they are now."""
        return [cut or self._answer(ids) for cut, ids in zip(self._cut, self._ids, strict=True)]

    def _answer(self, ids: list[int]) -> Answer:
        text = self._tokenizer.decode_answer(ids)
        answer = Answer(text=text, tokens=len(ids), ended="stop" if ids and ids[-1] in self._stop_ids else "length")
        return cut_at(answer, self._stop)


def cut_at(answer: Answer, stop: Sequence[str]) -> Answer:
    """`answer` up to the first of the texts `stop`."""
    places = [place for text in stop if text and (place := answer.text.find(text)) >= 0]
    return dataclasses.replace(answer, text=answer.text[: min(places)], ended="stop") if places else answer
