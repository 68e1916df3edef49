"""The engine: prompts in chunks, then token after token, over caches of the size that each layer needs.

Token ids in, token ids out: it knows no text. Each sequence has a `State` of its own, so that what a sequence gets does
not depend on its company, and no memory goes into padding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from rnope.errors import ConfigError, check
from rnope.generate.cache import Batch, FullCache, RingCache, Slots, State
from rnope.generate.ids import Ids, token_ids
from rnope.generate.room import check_room
from rnope.generate.sampling import Greedy, Sampling
from rnope.generate.step import Step
from rnope.model import accounting
from rnope.model.decoder import Decoder

_LOGIT_ROWS = 256
"""Rows put through the head at once when scoring: all of a long text's logits would not fit."""


class Token(NamedTuple):
    """One generated token."""

    sequence: int
    """Which of the prompts it continues."""
    id: int


class Chance(NamedTuple):
    """How likely one given token is."""

    log_probability: float
    """Natural, float32."""
    likeliest: bool
    """Whether greedy decoding would have chosen it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What `Engine.generate` returns, in the order of the prompts."""

    tokens: list[list[int]]
    """New tokens of each sequence; a stop id that ended it is the last."""
    stopped: list[bool]
    """Whether a stop id ended it, and not `max_new_tokens`."""
    states: list[State]
    """To go on from: everything was read but the last new token. Let them go to free their memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindBytes:
    """Cache of the layers of one kind, for one sequence."""

    kind: str
    """`LayerSpec.kind`."""
    layers: int
    logical_bytes: int
    """Keys and values that later tokens may see."""
    full_bytes: int
    """What the same layers would hold with full attention."""


class Engine:
    """Inference with `model`, on its device and in its dtype.

    Args:
        model: a decoder with its weights.
        prefill_chunk_tokens: prompts are read in chunks of so many tokens; what a chunk holds besides the cache is
            proportional to it.
        compiled: decode through `torch.compile`: on a CPU up to twice as fast, after some seconds at the first token
            (`compile_seconds`).
        int8: decode with weights rounded to 8 bits (prompts are read with the weights as they are). It costs a byte per
            weight beside them, and pays where compiled.
        backend: of `rnope.kernels.attend`; None leaves the model's.

    Raises:
        ConfigError: a chunk below 1, a model without weights or with matrices of several types, an unknown backend.
    """

    def __init__(
        self, model: Decoder, *, prefill_chunk_tokens: int = 2048,
        compiled: bool = False, int8: bool = False, backend: str | None = None,
    ) -> None:  # fmt: skip
        whole = type(prefill_chunk_tokens) is int and prefill_chunk_tokens >= 1
        rule = "must be a whole number, 1 or more"
        check("prefill_chunk_tokens", prefill_chunk_tokens, whole, rule, "2048 is the default.")
        if model.embedding.weight.is_meta:
            raise ConfigError("model", "meta", "has no weights", "Load or initialise it first.")
        types = {weight.dtype for name, weight in model.named_parameters() if not name.endswith("norm.weight")}
        if len(types) > 1:
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
            raise ConfigError("dtype", found, "the model has matrices of several types", "Load it as one of them.")
        self.model = model
        self.config = model.config
        self.prefill_chunk_tokens = prefill_chunk_tokens
        if backend is not None:
            model.use_backend(backend)
        self._step = Step(model, int8=int8, compiled=compiled)
        self._states: WeakSet[State] = WeakSet()

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embedding.weight.dtype

    @property
    def compile_seconds(self) -> float | None:
        """What compiling took, the first token included; None before that, and where nothing is compiled."""
        return self._step.compile_seconds

    # ---- caches

    def new_state(self) -> State:
        """An empty state: nothing read, nothing allocated."""
        like, kv, d = self.model.embedding.weight, self.config.kv_heads, self.config.head_size
        kinds = (FullCache if spec.window is None else RingCache for spec in self.config.layers)
        layers = [kind(spec, like, kv, d) for kind, spec in zip(kinds, self.config.layers, strict=True)]
        return State(self.config, layers, self.device, self._states)

    def cache_bytes(self, context_tokens: int) -> int:
        """Keys and values of one sequence of `context_tokens` tokens that later ones may see, exactly (SPEC I1)."""
        return accounting.cache_bytes(self.config, context_tokens, bytes_per_value=self.dtype.itemsize)

    def held_bytes(self) -> int:
        """Allocated for the caches of all states that are alive; what forks share counts once."""
        slots: set[Slots] = {layer.slots for state in self._states for layer in state.layers}
        return sum(each.bytes for each in slots)

    def cache_table(self, context_tokens: int) -> list[KindBytes]:
        """`cache_bytes` by layer kind, beside what full attention would hold."""
        token = 2 * self.config.kv_heads * self.config.head_size * self.dtype.itemsize
        return [
            KindBytes(
                kind=kind,
                layers=count,
                logical_bytes=token * sum(s.visible(context_tokens) for s in self.config.layers if s.kind == kind),
                full_bytes=token * count * context_tokens,
            )
            for kind, count in self.config.kinds().items()
        ]

    # ---- reading

    def prefill(self, ids: Ids, *, after: State | None = None, progress: Callable[[int], None] | None = None) -> State:
        """Read a prompt.

        Args:
            ids: its token ids.
            after: read on from here; this state is changed, so fork it to keep it.
            progress: called after each chunk with how many of `ids` were read.

        Returns:
            the state behind the prompt, with the logits of the next token.

        Raises:
            ConfigError: no ids, an id outside the vocabulary, or more than memory allows.
        """
        tokens = self._tokens(ids, "ids")
        state = self.new_state() if after is None else self._own(after)
        check_room(self, [(state, state.tokens + len(tokens))])
        return self._read(state, tokens, progress)

    def step(self, states: Sequence[State], ids: Sequence[int]) -> Tensor:
        """Read one more token of each state, all at once.

        Returns:
            logits of the tokens that come next, [states, vocab]; each state keeps its own.
        """
        tokens = self._tokens(ids, "ids")
        check(
            "ids", len(tokens), len(states) == len(tokens), f"there are {len(states)} states", "Give one id for each."
        )
        twice = len(set(map(id, states))) < len(states)
        check(
            "states",
            len(states),
            not twice,
            "one of them is given twice",
            "Fork it: a state takes one token at a time.",
        )
        return self._advance([self._own(state) for state in states], tokens.tolist())

    def _own(self, state: State) -> State:
        """`state`, if this model can go on from it.

        Raises:
            ConfigError: another model read it, or a pass broke off in it.
        """
        state.check()
        like = state.layers[0].slots.keys
        fits = (state.config is self.config or state.config == self.config) and like.dtype == self.dtype
        check(
            "state",
            str(like.dtype),
            fits,
            "was read by another model, or in another dtype",
            "Prefill with this engine.",
        )
        return state

    @torch.inference_mode()
    def _read(self, state: State, ids: Tensor, progress: Callable[[int], None] | None = None) -> State:
        """Only the last token's state is finished: of the others the last layer keeps keys and values, no more."""
        state.reserve(state.tokens + len(ids))
        done = 0
        for chunk in ids.split(self.prefill_chunk_tokens):
            done += len(chunk)
            hidden = self._pass(state, chunk, rows=int(done == len(ids)))
            if progress is not None:
                progress(done)
        state.logits = self.model.logits(hidden[0, 0])
        return state

    def _pass(self, state: State, chunk: Tensor, rows: int) -> Tensor:
        with state.reading(len(chunk)):
            return self.model.hidden(chunk[None], rows=rows, memory=state)

    @torch.inference_mode()
    def _advance(self, states: Sequence[State], ids: Sequence[int]) -> Tensor:
        if len(states) == 1 or self._step.int8:
            return torch.stack([self._step(state, token) for state, token in zip(states, ids, strict=True)])
        with ExitStack() as passes:
            for state in states:
                passes.enter_context(state.reading(1))
            tokens = torch.tensor(ids, device=self.device)[:, None]  # b 1
            logits = self.model.logits(self.model.hidden(tokens, memory=Batch(states))[:, 0])  # b v
        for state, row in zip(states, logits, strict=True):
            state.logits = row
        return logits

    # ---- answering

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int = 64, sampling: Sampling | None = None, *,
        stop_ids: Sequence[int] = (), after: State | None = None, progress: Callable[[int], None] | None = None,
    ) -> Generation:  # fmt: skip
        """Continue each of `prompts`.

        Args:
            prompts: token ids, as long as each is.
            max_new_tokens: at most so many new tokens each.
            sampling: `Greedy` (the default) or `Sample`.
            stop_ids: a sequence ends with the first of these.
            after: what all prompts have before them; each goes on from a fork of it, and it stays as it is.
            progress: called while prompts are read, with how many tokens of all of them were.

        Raises:
            ConfigError: as `prefill`, and for `max_new_tokens` below 1. Memory is checked for all before any is read.
        """
        states, tokens = self._begun(prompts, max_new_tokens, after)
        made: list[list[int]] = [[] for _ in states]
        for token in self._run(states, tokens, max_new_tokens, sampling, stop_ids, progress):
            made[token.sequence].append(token.id)
        return Generation(tokens=made, stopped=[bool(row) and row[-1] in stop_ids for row in made], states=states)

    def stream(
        self, prompts: Sequence[Ids], max_new_tokens: int = 64, sampling: Sampling | None = None, *,
        stop_ids: Sequence[int] = (), after: State | None = None, progress: Callable[[int], None] | None = None,
    ) -> Iterator[Token]:  # fmt: skip
        """`generate`, token by token: one of each unfinished sequence in turn. What is wrong is said at once."""
        states, tokens = self._begun(prompts, max_new_tokens, after)
        return self._run(states, tokens, max_new_tokens, sampling, stop_ids, progress)

    def _begun(
        self, prompts: Sequence[Ids], max_new_tokens: int, after: State | None
    ) -> tuple[list[State], list[Tensor]]:
        whole = type(max_new_tokens) is int and max_new_tokens >= 1
        rule = "must be a whole number, 1 or more"
        check("max_new_tokens", max_new_tokens, whole, rule, "`prefill` reads without writing.")
        if not len(prompts):
            raise ConfigError("prompts", "[]", "there is nothing to continue", "Give one list of token ids or more.")
        tokens = [self._tokens(ids, f"prompts[{i}]") for i, ids in enumerate(prompts)]
        states = [self.new_state() if after is None else self._own(after).fork() for _ in prompts]
        ends = [state.tokens + len(ids) + max_new_tokens for state, ids in zip(states, tokens, strict=True)]
        check_room(self, list(zip(states, ends, strict=True)))
        return states, tokens

    def _run(
        self, states: list[State], prompts: list[Tensor], max_new_tokens: int, sampling: Sampling | None,
        stop_ids: Sequence[int], progress: Callable[[int], None] | None,
    ) -> Iterator[Token]:  # fmt: skip
        rule = sampling or Greedy()
        chances = rule.generators(len(states), self.device)
        return self._tokens_of(states, prompts, max_new_tokens, rule, chances, stop_ids, progress)

    def _tokens_of(
        self, states: list[State], prompts: list[Tensor], max_new_tokens: int, sampling: Sampling,
        chances: list[torch.Generator | None], stop_ids: Sequence[int], progress: Callable[[int], None] | None,
    ) -> Iterator[Token]:  # fmt: skip
        before = 0
        for state, ids in zip(states, prompts, strict=True):
            self._read(state, ids, None if progress is None else _offset(progress, before))
            before += len(ids)
        active = list(range(len(states)))
        for left in reversed(range(max_new_tokens)):
            logits = torch.stack([_logits(states[i]) for i in active])
            chosen = sampling.choose(logits, [chances[i] for i in active]).tolist()
            yield from (Token(i, token) for i, token in zip(active, chosen, strict=True))
            going = [(i, token) for i, token in zip(active, chosen, strict=True) if token not in stop_ids]
            if not left or not going:
                return
            active = [i for i, _ in going]
            self._advance([states[i] for i in active], [token for _, token in going])

    def score(self, ids: Ids | State, targets: Ids | Sequence[Ids]) -> list[float] | list[list[float]]:
        """Log-probabilities (natural, float32) of continuations, token by token.

        Args:
            ids: what comes before: token ids, read once, or a state, which stays as it is.
            targets: one continuation, or several.

        Returns:
            for each target token its log-probability after `ids` and the target's tokens before it; a list for one
            continuation, a list of lists for several.

        Raises:
            ConfigError: as `prefill`; an empty target.
        """
        one = not len(targets) or np.ndim(targets[0]) == 0
        given: Any = [targets] if one else targets
        scores = [[chance.log_probability for chance in row] for row in self.chances(ids, given)]
        return scores[0] if one else scores

    def chances(self, ids: Ids | State, targets: Sequence[Ids]) -> list[list[Chance]]:
        """`score` of several continuations, and whether greedy decoding would have chosen their tokens."""
        rows = [self._tokens(row, f"targets[{i}]") for i, row in enumerate(targets)]
        longest = max((len(row) for row in rows), default=0)
        if isinstance(ids, State):
            state = self._own(ids)
            check_room(self, [(state, state.tokens + longest)])
        else:
            prompt = self._tokens(ids, "ids")
            state = self.new_state()
            check_room(self, [(state, len(prompt) + longest)])
            state.reserve(len(prompt) + longest)  # Now, so that no fork has to copy it to grow.
            self._read(state, prompt)
        return [self._follow(state.fork(), row) for row in rows]

    @torch.inference_mode()
    def _follow(self, state: State, target: Tensor) -> list[Chance]:
        """Chances of `target` after `state`, which is changed."""
        found = [chances_of(_logits(state)[None], target[:1])]
        for begin in range(0, len(target) - 1, self.prefill_chunk_tokens):  # The last token is scored, not read.
            chunk = target[begin:-1][: self.prefill_chunk_tokens]
            follow = target[begin + 1 :][: len(chunk)]
            hidden = self._pass(state, chunk, rows=len(chunk))[0]  # t w
            for part, wanted in zip(hidden.split(_LOGIT_ROWS), follow.split(_LOGIT_ROWS), strict=True):
                found.append(chances_of(self.model.logits(part), wanted))
        return [chance for part in found for chance in part]

    def _tokens(self, ids: Ids, field: str) -> Tensor:
        return token_ids(ids, field, self.config.vocab_size).to(self.device)


def _offset(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _logits(state: State) -> Tensor:
    if state.logits is None:
        raise ConfigError("state", state.tokens, "its next logits are not known", "Prefill at least one more token.")
    return state.logits


def chances_of(logits: Tensor, targets: Tensor) -> list[Chance]:
    """Chances of each of `targets` [n] under its row of `logits` [n, vocab]."""
    logs = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    likeliest = logits.argmax(-1) == targets
    return [Chance(*pair) for pair in zip(logs.tolist(), likeliest.tolist(), strict=True)]
