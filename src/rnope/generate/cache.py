"""What layers keep of a sequence: everything (`FullCache`), or the last window (`RingCache`), one sequence each.

Invariants, whatever the chunks were: a full cache of n tokens holds position p in slot p, and allocates whole blocks of
`BLOCK_TOKENS`; a ring holds position p in slot ``p % window`` and never allocates more than `window` slots. Which layer
has which follows from its `LayerSpec` alone. A chunk is attended over [kept ‖ chunk] first and kept after, so that a
chunk longer than the window is as good as any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

from rnope.errors import ConfigError
from rnope.kernels import attend
from rnope.model.spec import LayerSpec, ModelConfig

BLOCK_TOKENS = 256
"""Slots are allocated in blocks of so many tokens: a block's copy is paid once in 256 tokens."""


class Slots:
    """Keys and values [1, kv, slots, d] in memory, and the caches that read them: a fork shares them until it must not."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.readers: WeakSet[LayerCache] = WeakSet()

    @property
    def count(self) -> int:
        return self.keys.shape[2]

    @property
    def bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


class LayerCache(ABC):
    """Keys and values of one layer for one sequence."""

    def __init__(self, spec: LayerSpec, like: Tensor, kv_heads: int, head_size: int) -> None:
        self.spec = spec
        self.tokens = 0
        """Tokens that went through, kept or not."""
        empty = like.new_empty(1, kv_heads, 0, head_size)
        self._use(Slots(empty, empty))

    @property
    def token_bytes(self) -> int:
        """Of one token's key and value."""
        keys = self.slots.keys
        return 2 * keys.shape[1] * keys.shape[3] * keys.element_size()

    @property
    def logical_bytes(self) -> int:
        """Of what later tokens may see."""
        return self.token_bytes * self.spec.visible(self.tokens)

    def _use(self, slots: Slots) -> None:
        self.slots = slots
        slots.readers.add(self)

    def _grow(self, wanted: int) -> None:
        """Memory of `wanted` slots of its own; what is kept moves to the same places."""
        old, kept = self.slots, min(self.tokens, self.slots.count)
        fresh = [x.new_empty(*x.shape[:2], wanted, x.shape[3]) for x in (old.keys, old.values)]
        for new, x in zip(fresh, (old.keys, old.values), strict=True):
            new[:, :, :kept] = x[:, :, :kept]
        old.readers.discard(self)
        self._use(Slots(*fresh))

    @abstractmethod
    def slots_for(self, tokens: int) -> int:
        """How many slots a context of `tokens` takes, in whole blocks."""

    def reserve(self, tokens: int) -> None:
        """Allocate for a context of `tokens` now, instead of block after block."""
        if self.slots_for(tokens) > self.slots.count:
            self._grow(self.slots_for(tokens))

    def overwrites(self) -> bool:
        """Whether the next token would go where another cache, which shares the slots, has one of its own."""
        return any(other.tokens > self.tokens for other in self.slots.readers)

    @abstractmethod
    def extend(self, k: Tensor, v: Tensor) -> None:
        """Keep `k` and `v` [1, kv, t, d], the next t tokens."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        """Attention over what is kept and the chunk; then the chunk is kept.

        Args:
            q: [1, h, tq, d], queries of the last tq tokens of the chunk.
            k, v: [1, kv, t, d], the chunk.
        """

    @abstractmethod
    def fork(self) -> "LayerCache":
        """A cache that goes its own way from here."""

    @abstractmethod
    def least(self) -> int:
        """The smallest number of tokens that `rollback` can go back to."""

    @abstractmethod
    def rollback(self, tokens: int) -> None:
        """Forget all but the first `tokens`, at least `least` of them."""


class FullCache(LayerCache):
    """Position p in slot p. A fork shares the slots; who would write over what another still reads, copies first."""

    def slots_for(self, tokens: int) -> int:
        return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS

    def extend(self, k: Tensor, v: Tensor) -> None:
        end = self.tokens + k.shape[2]
        if self.overwrites():
            self._grow(max(self.slots_for(end), self.slots.count))
        self.reserve(end)
        self.slots.keys[:, :, self.tokens : end] = k
        self.slots.values[:, :, self.tokens : end] = v
        self.tokens = end

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        self.extend(k, v)
        return attend(q, self.slots.keys[:, :, : self.tokens], self.slots.values[:, :, : self.tokens], backend=backend)

    def fork(self) -> "FullCache":
        twin = object.__new__(FullCache)
        twin.spec, twin.tokens = self.spec, self.tokens
        twin._use(self.slots)
        return twin

    def least(self) -> int:
        return 0

    def rollback(self, tokens: int) -> None:
        self.tokens = tokens


class RingCache(LayerCache):
    """The last `window` tokens, position p in slot ``p % window``."""

    def __init__(self, spec: LayerSpec, like: Tensor, kv_heads: int, head_size: int) -> None:
        assert spec.window is not None
        super().__init__(spec, like, kv_heads, head_size)
        self.window = spec.window
        self.first = 0
        """Positions first … tokens - 1 are kept."""

    def slots_for(self, tokens: int) -> int:
        return min(self.window, -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS)

    def extend(self, k: Tensor, v: Tensor) -> None:
        end = self.tokens + k.shape[2]
        self.reserve(end)
        begin = max(self.tokens, end - self.window)
        while begin < end:  # Once, and once more where the ring wraps.
            slot = begin % self.window
            count = min(end - begin, self.window - slot)
            source = slice(begin - self.tokens, begin - self.tokens + count)
            self.slots.keys[:, :, slot : slot + count] = k[:, :, source]
            self.slots.values[:, :, slot : slot + count] = v[:, :, source]
            begin += count
        self.tokens = end
        self.first = max(self.first, end - self.window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        if k.shape[2] == 1 and q.shape[2] == 1:
            # What the new token pushes out it cannot see, and softmax does not ask for the order of the rest.
            self.extend(k, v)
            held = min(self.tokens, self.window)
            return attend(q, self.slots.keys[:, :, :held], self.slots.values[:, :, :held], backend=backend)
        keys, values = (torch.cat((old, new), dim=2) for old, new in zip(self.recent(), (k, v), strict=True))
        mixed = attend(q, keys, values, window=self.window, backend=backend)
        self.extend(k, v)
        return mixed

    def recent(self) -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv, n, d] that the next token sees besides its own, in order of position."""
        begin = max(0, self.tokens - self.window + 1)
        slot, count = begin % self.window, self.tokens - begin
        parts = [slice(slot, min(slot + count, self.window)), slice(0, max(0, slot + count - self.window))]
        keys, values = (
            torch.cat([x[:, :, part] for part in parts], dim=2) for x in (self.slots.keys, self.slots.values)
        )
        return keys, values

    def fork(self) -> "RingCache":
        twin = object.__new__(RingCache)
        twin.spec, twin.tokens, twin.window, twin.first = self.spec, self.tokens, self.window, self.first
        twin._use(Slots(self.slots.keys.clone(), self.slots.values.clone()))
        return twin

    def least(self) -> int:
        # The next token at n sees n - window + 1 … n - 1; a ring that never wrapped can go back all the way.
        return 0 if self.first == 0 else self.first + self.window - 1

    def rollback(self, tokens: int) -> None:
        self.tokens = tokens


class State:
    """A sequence as the model remembers it: one cache per layer. Fork it for several questions, and go on from it."""

    def __init__(
        self, config: ModelConfig, layers: Sequence[LayerCache], device: torch.device, family: "WeakSet[State]"
    ) -> None:
        self.config = config
        """Of the model that reads."""
        self.layers = tuple(layers)
        self.device = device
        self.family = family
        """All states that are alive, for who counts their bytes."""
        family.add(self)
        self.logits: Tensor | None = None
        """Of the token that comes next, [vocab]; None where nothing was read yet, or something was rolled back."""
        self.tokens = 0
        """How many tokens were read by all layers; -1 where a pass broke off between them."""

    def check(self) -> None:
        """Refuse to go on from a pass that broke off: some rings have forgotten what others still need.

        Raises:
            ConfigError: it did.
        """
        if self.tokens < 0:
            raise ConfigError("state", "broken off", "an earlier call was interrupted while it read", "Prefill again.")

    def positions(self, tokens: int) -> Tensor:
        """Positions of the next `tokens` tokens, [tokens]."""
        return torch.arange(self.tokens, self.tokens + tokens, device=self.device)

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Around one pass of `tokens` tokens through all layers. A pass that breaks off leaves a state that says so.

        Raises:
            ConfigError: as `check`.
        """
        self.check()
        before, self.logits = self.tokens, None
        try:
            yield
        except BaseException:
            self.tokens = -1
            raise
        self.tokens = before + tokens

    def reserve(self, tokens: int) -> None:
        """Allocate for a context of `tokens` at once."""
        for layer in self.layers:
            layer.reserve(tokens)

    @property
    def logical_bytes(self) -> int:
        """Of the keys and values that later tokens may see: what `Engine.cache_bytes` says for this many tokens."""
        return sum(layer.logical_bytes for layer in self.layers)

    @property
    def held_bytes(self) -> int:
        """Allocated, also where a fork shares it."""
        return sum(layer.slots.bytes for layer in self.layers)

    def held_by_kind(self) -> dict[str, int]:
        """`held_bytes` of the layers of each `LayerSpec.kind`."""
        held: dict[str, int] = {}
        for layer in self.layers:
            held[layer.spec.kind] = held.get(layer.spec.kind, 0) + layer.slots.bytes
        return held

    def fork(self) -> "State":
        """A second state that goes on from here on its own. Full layers share memory until both have gone on."""
        twin = State(self.config, [layer.fork() for layer in self.layers], self.device, self.family)
        twin.logits, twin.tokens = self.logits, self.tokens
        return twin

    def rollback(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens.

        Raises:
            ConfigError: a ring no longer holds what the token after these has to see; or as `check`.
        """
        self.check()
        least, now = max(layer.least() for layer in self.layers), self.tokens
        if type(tokens) is not int or not min(least, now) <= tokens <= now:
            raise ConfigError(
                "tokens",
                tokens,
                f"of {now:,} tokens read, the sliding windows still hold what {least:,} to {now:,} need",
                "Fork the state before going on, and return to the fork.",
            )
        if tokens < now:
            for layer in self.layers:
                layer.rollback(tokens)
            self.logits, self.tokens = None, tokens


class Batch:
    """Several states as the memory of one batch; each row attends on its own, as long as it is."""

    class Layer:
        """One layer of all states."""

        def __init__(self, rows: Sequence[LayerCache]) -> None:
            self.rows = rows

        def extend(self, k: Tensor, v: Tensor) -> None:
            for i, row in enumerate(self.rows):
                row.extend(k[i : i + 1], v[i : i + 1])

        def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
            return torch.cat(
                [
                    row.attend(q[i : i + 1], k[i : i + 1], v[i : i + 1], backend=backend)
                    for i, row in enumerate(self.rows)
                ]
            )

    def __init__(self, states: Sequence[State]) -> None:
        self.states = states
        self.layers = [Batch.Layer(rows) for rows in zip(*(state.layers for state in states), strict=True)]

    def positions(self, tokens: int) -> Tensor:
        """Positions of the next `tokens` tokens of each state, [b, tokens]."""
        return torch.stack([state.positions(tokens) for state in self.states])
