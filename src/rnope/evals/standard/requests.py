"""What the harness asks of a model, answered by an `EvalModel`: text to token ids, cuts, stops. It knows no task.

The rules are those of the harness's own Hugging Face model, so that figures are too; where they are not, it says so here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnope.errors import ConfigError, UserError
from rnope.evals.models.model import Ended, EvalModel

DEFAULT_NEW_TOKENS = 256
"""Of an answer whose task does not say: the harness's own default."""
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SLICE = 512
"""Continuations that are handed over together: enough to share prefixes, few enough to hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """The answer to one request."""

    value: Any
    """What the harness expects: (log-likelihood, is greedy), a log-likelihood, or a text."""
    ids: np.ndarray
    """What the model was given, int64 [tokens]: the context, and what was scored after it."""
    context_tokens: int
    new_tokens: int
    """Scored or written."""
    cut_tokens: int = 0
    """Left out at the beginning, since the model reads no more."""
    ended: Ended = "stop"
    error: str | None = None


class Responder:
    """Answers requests.

    Args:
        max_tokens: what the model can read and write in all [default: what it says it was trained on]; longer contexts
            lose their beginning, and each such cut is in its response. No limit if the model does not say.
        batch: prompts that are continued together.
    """

    def __init__(self, model: EvalModel, *, max_tokens: int | None = None, batch: int = 1) -> None:
        self.model, self.batch = model, batch
        self.max_tokens = model.facts.trained_tokens if max_tokens is None else max_tokens
        self._begin = list(model.tokenizer.begin_ids)
        # Something must stand before the first token of a text: as in the harness, BOS or else EOS.
        self._prefix = self._begin or [model.tokenizer.eos_id]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context, special tokens included, and of what follows it; spaces between go to what follows.

        Both texts are tokenised as one, since a token may reach from one into the other. Where nothing of the whole is
        left for the continuation, its last token counts as that (the harness gives up there).
        """
        encode = self.model.tokenizer.encode
        bare = context.rstrip()
        if not bare:
            return self._prefix, encode(context + continuation)
        whole = self._begin + encode(context + continuation)
        place = min(len(self._begin) + len(encode(bare)), len(whole) - 1)
        return whole[:place], whole[place:]

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[tuple[int, Response]]:
        """How likely each continuation is after its context: the place of the pair, and the response.

        Yields:
            in an order that lets contexts share what they have in common.
        """
        order = sorted(range(len(pairs)), key=lambda place: pairs[place])
        for begin in range(0, len(order), _SLICE):
            places = order[begin : begin + _SLICE]
            yield from self._scored(places, [self.encode_pair(*pairs[place]) for place in places], progress)

    def rolling(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[tuple[int, Response]]:
        """The log-likelihood of each text in full: in windows of `max_tokens`, each token predicted once."""
        for place, text in enumerate(texts):
            ids = self.model.tokenizer.encode(text)
            windows = list(rolling_windows(ids, self._prefix[-1], self.max_tokens or len(ids)))
            parts = dict(self._scored(range(len(windows)), windows, progress))
            failed = next((part.error for part in parts.values() if part.error is not None), None)
            yield (
                place,
                Response(
                    value=sum(parts[i].value[0] for i in range(len(windows))),
                    ids=np.array([*self._prefix[-1:], *ids], dtype=np.int64),
                    context_tokens=1,
                    new_tokens=len(ids),
                    error=failed,
                ),
            )

    def generate(
        self, prompts: Sequence[tuple[str, Mapping[str, Any]]], progress: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[tuple[int, Response]]:
        """Greedy continuations of (context, the harness's generation arguments), up to the stop texts.

        Raises:
            UserError: the arguments ask for sampling, or for more new tokens than the model has room for.
        """
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for place, (_, arguments) in enumerate(prompts):
            alike.setdefault((stop_texts(arguments), new_tokens(arguments)), []).append(place)
        for (stop, length), places in alike.items():
            for begin in range(0, len(places), self.batch):
                group = places[begin : begin + self.batch]
                contexts = [self._context(prompts[place][0], length) for place in group]
                answers = self.model.generate([ids for ids, _ in contexts], length, stop=stop, progress=progress)
                for place, (ids, cut), answer in zip(group, contexts, answers, strict=True):
                    yield (
                        place,
                        Response(
                            value=answer.text,
                            ids=ids,
                            context_tokens=len(ids),
                            new_tokens=answer.tokens,
                            cut_tokens=cut,
                            ended=answer.ended,
                            error=answer.error,
                        ),
                    )

    def _scored(
        self, places: Sequence[int], pairs: Sequence[tuple[list[int], list[int]]], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, Response]]:
        cuts = [self._cut(context, continuation) for context, continuation in pairs]
        requests = [
            (np.array(context[cut:], dtype=np.int64), np.array(continuation, dtype=np.int64))
            for (context, continuation), cut in zip(pairs, cuts, strict=True)
        ]
        for i, score in self.model.scores(requests, progress=progress):
            context, continuation = requests[i]
            yield (
                places[i],
                Response(
                    value=(float(np.sum(score.log_probabilities, dtype=np.float64)), all(score.likeliest)),
                    ids=np.concatenate([context, continuation]),
                    context_tokens=len(context),
                    new_tokens=len(continuation),
                    cut_tokens=cuts[i],
                    error=score.error,
                ),
            )

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> int:
        """Tokens to leave out: the last one that is scored is never read, as in the harness."""
        if self.max_tokens is None:
            return 0
        if len(continuation) > self.max_tokens:
            raise self._no_room(f"a continuation of {len(continuation):,} tokens")
        return max(0, len(context) + len(continuation) - 1 - self.max_tokens)

    def _context(self, text: str, length: int) -> tuple[np.ndarray, int]:
        ids = (self._begin + self.model.tokenizer.encode(text)) or self._prefix
        cut = 0
        if self.max_tokens is not None:
            if length >= self.max_tokens:
                raise self._no_room(f"an answer of {length:,} tokens")
            cut = max(0, len(ids) - (self.max_tokens - length))
        return np.array(ids[cut:], dtype=np.int64), cut

    def _no_room(self, what: str) -> UserError:
        return UserError(
            f"{self.model.facts.name}: has no room for {what}: it was trained on {self.max_tokens:,}. "
            "Leave the benchmark out (--tasks), or evaluate a model of longer context."
        )


def rolling_windows(ids: Sequence[int], prefix: int, max_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, what is predicted) of windows that read at most `max_tokens`, each token predicted once.

    The last window reaches back as far as it can.
    """
    whole = [prefix, *ids]
    for begin in range(0, len(ids), max_tokens):
        end = min(begin + max_tokens, len(ids))
        first = max(0, end - max_tokens)  # of the window, among `whole`, which is one ahead of `ids`
        yield whole[first : begin + 1], whole[begin + 1 : end + 1]


def stop_texts(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts that end an answer."""
    until = arguments.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def new_tokens(arguments: Mapping[str, Any]) -> int:
    """Tokens of an answer, at most.

    Raises:
        ConfigError: the arguments ask for sampling.
    """
    if arguments.get("do_sample"):
        raise ConfigError("do_sample", True, "asks for sampling; answers here are greedy", "Leave the task out.")
    given = [int(arguments[name]) for name in _LENGTH_NAMES if arguments.get(name) is not None]
    return given[0] if given else DEFAULT_NEW_TOKENS
