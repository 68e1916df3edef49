"""A model behind a server that speaks OpenAI's completions protocol.

The key comes from the environment, goes to the one address that was given, and stands in no fact, message or file.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rnope.errors import ConfigError, UserError
from rnope.evals.models.answers import cut_at
from rnope.evals.models.model import Answer, EvalModel, Score
from rnope.evals.models.opening import ModelOptions
from rnope.evals.models.transport import Address, Failure, Post, Refusal, Unanswered
from rnope.evals.results import ModelFacts
from rnope.tokenizer import Tokenizer

KEY = "OPENAI_API_KEY"
GREEDY: dict[str, float] = {"temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
PENALTIES = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""None, as vLLM and llama.cpp call it: some servers have another default, or take one from the model's folder."""
STOPS = 4
"""Stop texts that the protocol allows; answers are cut at the others here."""
RETOKENISED = 2
"""Of a prompt that was sent as text a server may count so many tokens less: another rule for its first space, no BOS."""


class ServerModel(EvalModel):
    """The model that `given` names: ``http(s)://HOST[:PORT]/v1#MODEL``.

    Without ``#MODEL`` the server is asked which models it has. One token is asked for at once, so that what cannot be
    asked at all is said before anything else is done.

    Args:
        name: what reports call it.
        options: `tokenizer`, `timeout_seconds`, `send_text` and `concurrency` of them.
        sleep: waits so many seconds before a request is tried again.

    Raises:
        UserError: no tokenizer, an address with secrets in it, a server that does not answer, or no such model there.
    """

    def __init__(
        self, given: str, *, name: str, options: ModelOptions, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if options.tokenizer is None:
            remedy = "Give --tokenizer FOLDER with the tokenizer.json of the served model."
            raise ConfigError("--tokenizer", None, "prompts for a server are made with its model's tokenizer", remedy)
        self.tokenizer = Tokenizer.load(options.tokenizer)
        self._address = Address.parse(given, key=os.environ.get(KEY, "").strip())
        self._post = Post(self._address, timeout_seconds=options.timeout_seconds, sleep=sleep)
        self._send_text, self._concurrency = options.send_text, options.concurrency
        self._model = self._address.model or self._only_model()
        self._sampling: dict[str, float] = GREEDY | PENALTIES
        counted = self._first_answer()
        self.facts = ModelFacts(
            name=name,
            kind="server",
            sha256=f"unknown: {self._model} at {self._address.host}" + ("" if counted else _UNCOUNTED),
            tokenizer_sha256=self.tokenizer.digest,
            begin_ids=self.tokenizer.begin_ids,
            dtype="unknown",
            device="server",
        )

    def generate(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, *,
        stop: Sequence[str] = (), progress: Callable[[int], None] = lambda tokens: None,
    ) -> list[Answer]:  # fmt: skip
        def ask(place: int) -> Answer:
            try:
                return self._answer(prompts[place], max_new_tokens, stop, place)
            except Failure as failure:
                return Answer(text="", tokens=0, ended="error", error=str(failure))

        answers: dict[int, Answer] = {}
        for place, answer in _at_once(ask, len(prompts), self._concurrency):
            progress(len(prompts[place]) + answer.tokens)
            answers[place] = answer
        return [answers[place] for place in range(len(prompts))]

    def scores(
        self,
        requests: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[tuple[int, Score]]:
        def ask(place: int) -> Score:
            try:
                return self._score(*requests[place], place)
            except Unanswered as failure:
                return Score((), (), str(failure))
            except Failure as failure:
                tokens = sum(map(len, requests[place]))
                raise UserError(f"{self.facts.name} could not score {tokens:,} tokens: {failure}. {_NO_ECHO}") from None

        for place, score in _at_once(ask, len(requests), self._concurrency):
            progress(sum(map(len, requests[place])))
            yield place, score

    # ---- requests

    def _answer(self, ids: np.ndarray, max_new_tokens: int, stop: Sequence[str], place: int) -> Answer:
        stops = [text for text in stop if text]
        body = {"max_tokens": max_new_tokens} | ({"stop": stops[:STOPS]} if stops else {})
        reply = self._completion(ids, body, place)
        choice = reply["choices"][0]
        text, ended = choice["text"], choice.get("finish_reason")
        if ended not in ("stop", "length"):
            raise Failure(f"the server ended the answer with {ended!r:.40}")
        tokens = _count(reply, "completion_tokens")
        tokens = len(self.tokenizer.encode(text)) if tokens is None else tokens
        return cut_at(Answer(text=text, tokens=tokens, ended=ended), stops)

    def _score(self, context: np.ndarray, target: np.ndarray, place: int) -> Score:
        ids, first = np.concatenate((context, target)), len(context)
        # One token, which is let go: some servers refuse to write none.
        reply = self._completion(ids, {"max_tokens": 1, "echo": True, "logprobs": 1}, place, as_ids=True)
        table = reply["choices"][0].get("logprobs")
        own = table.get("token_logprobs") if isinstance(table, dict) else None
        best = table.get("top_logprobs") if isinstance(table, dict) else None
        if not (isinstance(own, list) and isinstance(best, list) and len(own) == len(best)):
            raise Failure("it left them out")
        if not len(ids) <= len(own) <= len(ids) + 1:
            raise Failure(f"it gave {len(own):,} for {len(ids):,} tokens")
        found = []
        for chance, others in zip(own[first : len(ids)], best[first : len(ids)], strict=True):
            if not (_number(chance) and isinstance(others, dict) and others and all(map(_number, others.values()))):
                raise Failure("it left some of them out")
            found.append((float(np.float32(chance)), chance >= max(others.values())))
        return Score.of(found)

    def _completion(
        self, ids: np.ndarray, more: Mapping[str, Any], place: int, *, as_ids: bool = False
    ) -> dict[str, Any]:
        prompt: str | list[int] = [int(token) for token in ids]
        least = len(ids)
        if self._send_text and not as_ids:
            begin = len(self.tokenizer.begin_ids)
            # The server puts BOS before a text itself.
            bare = ids[begin:] if tuple(ids[:begin]) == self.tokenizer.begin_ids else ids
            prompt = self.tokenizer.decode([int(token) for token in bare])
            least = len(self.tokenizer.encode(prompt)) - RETOKENISED
        body = {"model": self._model, "prompt": prompt, **self._sampling, **more}
        reply = self._post("/completions", body, place, _is_completion)
        read = _count(reply, "prompt_tokens")
        if read is not None and read < least:
            raise Unanswered(f"the server read {read:,} of {len(ids):,} tokens: it cut the prompt")
        return reply

    def _first_answer(self) -> bool:
        """Whether the server says how much of a prompt it read; whether it answers at all."""
        ids = np.array([*self.tokenizer.begin_ids, *self.tokenizer.encode("a")])
        try:
            try:
                reply = self._completion(ids, {"max_tokens": 1}, 0)
            except Refusal:  # OpenAI's own server, for one, takes no names that it does not know
                self._sampling = GREEDY
                reply = self._completion(ids, {"max_tokens": 1}, 0)
        except Failure as failure:
            remedy = "See that it runs, has this model, and takes token ids (else --send-text)."
            raise UserError(f"{self._address.shown} does not answer: {failure}. {remedy}") from None
        return _count(reply, "prompt_tokens") is not None

    def _only_model(self) -> str:
        try:
            reply = self._post("/models", None, 0, _is_listing)
        except Failure as failure:
            raise UserError(
                f"{self._address.shown} does not say which models it has: {failure}. See that it runs, or name one behind "
                "the address: #MODEL."
            ) from None
        names = [str(each["id"]) for each in reply["data"]]
        if len(names) != 1:
            listed = f"has {len(names)} models: {', '.join(names[:20])}" if names else "has no model"
            raise ConfigError("--model", self._address.shown, listed, "Name one behind the address: #MODEL.")
        return names[0]


_UNCOUNTED = " (it does not say how many tokens of a prompt it reads: a cut prompt would go unseen)"
_NO_ECHO = "Probabilities need a server with echo and logprobs for prompts: vLLM has them, llama.cpp's server has not."


def _at_once(ask: Callable[[int], Any], count: int, threads: int) -> Iterator[tuple[int, Any]]:
    """``ask(0)`` … ``ask(count - 1)``, some at the same time, as they come; what one raises is raised here.

    Threads are daemons: an interrupt need not wait for answers that are still out.
    """
    left, done = iter(range(count)), queue.SimpleQueue[tuple[int, Any, BaseException | None]]()
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                place = next(left, None)
            if place is None:
                return
            try:
                done.put((place, ask(place), None))
            except BaseException as error:  # raised again where it is seen
                done.put((place, None, error))

    for _ in range(min(threads, count)):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(count):
            place, result, error = done.get()
            if error is not None:
                raise error
            yield place, result
    finally:
        with turn:
            left = iter(())


def _count(reply: Mapping[str, Any], name: str) -> int | None:
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int else None


def _number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _is_completion(reply: Any) -> bool:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("text"), str)


def _is_listing(reply: Any) -> bool:
    data = reply.get("data") if isinstance(reply, dict) else None
    return isinstance(data, list) and all(isinstance(each, dict) and "id" in each for each in data)
