"""The probe through rnope's engine: every layer's cache is watched while the last tokens are read.

What stands before them is prefilled as ever; then the caches themselves say which keys a layer has, so that nothing is
collected twice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnope.analysis.probe import Layer, Take
from rnope.analysis.rows import Captured
from rnope.generate import Engine
from rnope.generate.cache import LayerCache, RingCache, State
from rnope.generate.ids import token_ids
from rnope.generate.room import check_room
from rnope.model.decoder import Decoder


class EngineProbed:
    """A decoder of ours as `rnope.analysis.probe.Probed`.

    Args:
        model: a decoder with its weights, on its device and in its dtype.
        chunk: tokens are read in chunks of so many, and handed over in pieces of as many rows.

    Raises:
        ConfigError: a chunk below 1, a model without weights.
    """

    def __init__(self, model: Decoder, *, chunk: int = 2048) -> None:
        self.engine = Engine(model, prefill_chunk_tokens=chunk)
        config = model.config
        self.layers = [
            Layer(index=i, position=spec.position, window=spec.window, heads=config.heads, kv_heads=config.kv_heads)
            for i, spec in enumerate(config.layers)
        ]

    @torch.inference_mode()
    def read(self, ids: Sequence[int], *, rows_from: int, take: Take, new_tokens: int = 0) -> list[int]:
        """As `Probed.read`; new tokens are those of ``Engine.generate`` without stop ids.

        Raises:
            ConfigError: as `Engine.prefill`.
        """
        engine = self.engine
        tokens = token_ids(ids, "ids", engine.config.vocab_size).to(engine.device)
        total = len(tokens) + max(new_tokens - 1, 0)
        state = engine.new_state()
        check_room(engine, [(state, total)])
        state.reserve(total)
        if rows_from > 0:
            engine.prefill(tokens[:rows_from], after=state)
        for piece in tokens[rows_from:].split(engine.prefill_chunk_tokens):
            self._watched(state, piece, take)
        new: list[int] = []
        while len(new) < new_tokens:
            assert state.logits is not None
            new.append(int(state.logits.argmax()))
            if len(new) < new_tokens:
                self._watched(state, tokens.new_tensor(new[-1:]), take)
        return new

    def _watched(self, state: State, ids: Tensor, take: Take) -> None:
        """Read `ids` [t] after `state`, every layer computing and handing over all of their rows."""
        with state.reading(len(ids)):
            hidden = self.engine.model.hidden(ids[None], memory=_Watched(state, take))
        state.logits = self.engine.model.logits(hidden[0, -1])


class _Watched:
    """The memory `state`, whose layers also hand over what they attend to."""

    def __init__(self, state: State, take: Take) -> None:
        self.positions = state.positions
        self.layers = [_WatchedLayer(i, cache, take) for i, cache in enumerate(state.layers)]


class _WatchedLayer:
    def __init__(self, index: int, cache: LayerCache, take: Take) -> None:
        self.index, self.cache, self.take = index, cache, take
        self.extend = cache.extend

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        cache = self.cache
        before = cache.recent()[0] if isinstance(cache, RingCache) else None  # the ring is about to lose them
        mixed = cache.attend(q, k, v, backend=backend)
        keys = cache.slots.keys[:, :, : cache.tokens] if before is None else torch.cat((before, k), dim=2)
        self.take(
            Captured(
                layer=self.index,
                queries=q[0],
                keys=keys[0],
                positions=torch.arange(cache.tokens - q.shape[2], cache.tokens, device=q.device),
                first_key=cache.tokens - keys.shape[2],
                scale=q.shape[-1] ** -0.5,
                window=cache.spec.window,
            )
        )
        return mixed
