"""A conversation with a model, turn after turn: each goes on from what the last has read.

It knows neither the command line nor templates; the messages are the truth, and what is held of them only saves time.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import torch

from rnope.complete.completer import Completer, Cost
from rnope.errors import UserError, check
from rnope.generate.cache import State
from rnope.generate.room import check_room
from rnope.generate.sampling import Sampling
from rnope.messages import Message, checked


def read_messages(text: str, system: str | None = None) -> list[Message]:
    """What `text` is in a conversation: the messages that it spells in JSON, or else what the user says.

    Raises:
        UserError: there is no text, the messages are not as they must be, or they and `system` have a system message.
    """
    if not text:
        raise UserError("The prompt is empty. Give some text to answer.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    spelled = (
        isinstance(found, list) and bool(found) and all(isinstance(each, dict) and "role" in each for each in found)
    )
    messages = checked(found) if spelled else [{"role": "user", "content": text}]
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise UserError("The messages begin with a system message, and --system gives another. Leave one out.")
    return [{"role": "system", "content": system}, *messages]


class Conversation:
    """Messages, and the states of the model that has read them.

    Behind each prompt a fork of the state stays, for an answer that reads otherwise once it is part of a conversation:
    cut by its template, or spelled in other tokens than the model chose.

    Args:
        completer: the model.
        messages: what was said before, each with ``role`` and ``content``.

    Raises:
        UserError: as `ask`, before anything is asked.
    """

    def __init__(self, completer: Completer, messages: Sequence[Mapping[str, str]] = ()) -> None:
        self.completer = completer
        self.messages = [dict(message) for message in messages]
        self._held: list[tuple[State, list[int]]] = []
        """States and the ids that each has read, the longest first."""
        self.ask("a")

    def ask(self, text: str) -> list[int]:
        """Token ids of the conversation once the user has said `text`, up to where the answer begins.

        Raises:
            UserError: as `Completer.encode_chat`.
        """
        return self.completer.encode_chat([*self.messages, {"role": "user", "content": text}])

    def answer(
        self, text: str, *, max_new_tokens: int, sampling: Sampling, ignore_stop: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Generator[str, None, None], Cost]:  # fmt: skip
        """The model's answer to `text`, piece by piece, and its cost, which is complete when the answer is.

        An answer that is no longer read (the iterator is closed) stands in the conversation as far as it came.

        Args:
            progress: told how many tokens of the whole conversation are read.

        Raises:
            UserError: as `ask`; there is no room for so many tokens. The conversation stays as it was then.
        """
        whole = type(max_new_tokens) is int and max_new_tokens >= 1
        check("max_new_tokens", max_new_tokens, whole, "must be a whole number, 1 or more", "128 is the default.")
        ids = self.ask(text)
        engine = self.completer.engine
        state, read = self._resume(ids)
        check_room(engine, [(state, len(ids) + max_new_tokens)])
        cost = Cost(before_tokens=read, prompt_tokens=len(ids) - read)
        tell = None if progress is None else lambda done: progress(read + done)
        tokens = self._tokens(
            state, ids, max_new_tokens, sampling, () if ignore_stop else self.completer.stop_ids, tell
        )
        return self._pieces(text, self.completer.timed(tokens, cost)), cost

    def _resume(self, ids: list[int]) -> tuple[State, int]:
        """The state that has read most of `ids` from their beginning, and how many; others are let go."""
        # A state that was interrupted has read another number of tokens than was written down.
        whole = [(state, read) for state, read in self._held if state.tokens == len(read) < len(ids)]
        self._held = [(state, read) for state, read in whole if ids[: len(read)] == read][:1]
        return (self._held[0][0], len(self._held[0][1])) if self._held else (self.completer.engine.new_state(), 0)

    def _tokens(
        self, state: State, ids: list[int], max_new_tokens: int, sampling: Sampling, stop_ids: Sequence[int],
        progress: Callable[[int], None] | None,
    ) -> Iterator[int]:  # fmt: skip
        engine = self.completer.engine
        self._held = []
        state.reserve(len(ids) + max_new_tokens)  # Now, so that the fork need not be copied for the answer to grow.
        engine.prefill(ids[state.tokens :], after=state, progress=progress)
        chances = sampling.generators(1, engine.device)
        self._held = [(state.fork(), list(ids))]
        made: list[int] = []
        try:
            for left in reversed(range(max_new_tokens)):
                assert state.logits is not None
                token = int(sampling.choose(torch.stack([state.logits]), chances)[0])
                yield token
                if token in stop_ids or not left:
                    return
                engine.step([state], [token])
                made.append(token)
        finally:
            self._held.insert(0, (state, [*ids, *made]))

    def _pieces(self, text: str, tokens: Iterator[int]) -> Generator[str, None, None]:
        said: list[str] = []
        try:
            for piece in self.completer.tokenizer.stream(tokens):
                said.append(piece)
                yield piece
        finally:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(said)}]
