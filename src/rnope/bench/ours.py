"""Our side: models with random weights, shared between layouts, and contestants that run them through the engine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rnope.bench import cost
from rnope.bench.plan import DTYPES, Plan, full_attention
from rnope.bench.timing import Contestant, Sample, sync
from rnope.generate import Engine
from rnope.generate.cache import State
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig

WARM_TOKENS = 2048
"""A warm-up reads at most so many tokens: its job is to load and to compile, not to repeat the work."""


class Models:
    """The models of a run: one set of weights, in as many dtypes and layouts as are asked for.

    Weights are drawn in float32 and rounded on a CPU; elsewhere they are drawn in their dtype, where they lie.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.configs = {"hybrid": plan.config, "full": full_attention(plan.config)}
        self._made: dict[tuple[str, str], Decoder] = {}

    def get(self, layout: str, dtype: str) -> Decoder:
        """The model with `layout` in `dtype`."""
        found = self._made.get((layout, dtype))
        if found is None:
            found = self._make(dtype) if layout == "hybrid" else twin(self.get("hybrid", dtype), self.configs[layout])
            self._made[layout, dtype] = found
        return found

    def _make(self, dtype: str) -> Decoder:
        kind = getattr(torch, DTYPES[dtype])
        if self.device.type == "cpu":
            return Decoder(self.configs["hybrid"], seed=self.plan.seed).to(kind).requires_grad_(False)
        with self.device, default_dtype(kind):
            return Decoder(self.configs["hybrid"], seed=self.plan.seed).requires_grad_(False)

    def ids(self, tokens: int) -> Tensor:
        """The same prompt for everybody, int64 [tokens]."""
        generator = torch.Generator().manual_seed(self.plan.seed + 1)
        return torch.randint(0, self.plan.config.vocab_size, (tokens,), generator=generator)


def twin(model: Decoder, config: ModelConfig) -> Decoder:
    """A model with other layers over the same weights, not copied."""
    with torch.device("meta"):
        other = Decoder(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(False)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class LayerTimes:
    """While it is entered, the time that blocks of each kind take, theirs alone."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.cuda = model.embedding.weight.is_cuda
        self._marks: list[tuple[str, Any, Any]] = []

    def __enter__(self) -> "LayerTimes":
        self._hooks = []
        for spec, block in zip(self.model.config.layers, self.model.blocks, strict=True):
            begun: list[Any] = []
            self._hooks += [
                block.register_forward_pre_hook(lambda *_, begun=begun: begun.append(self._now())),
                block.register_forward_hook(lambda *_, kind=spec.kind, begun=begun: self._end(kind, begun.pop())),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end(self, kind: str, begun: Any) -> None:
        self._marks.append((kind, begun, self._now()))

    def seconds(self) -> dict[str, float]:
        """Layer kind -> seconds; the device must have been waited for."""
        found: dict[str, float] = {}
        for kind, begun, ended in self._marks:
            took = begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
            found[kind] = found.get(kind, 0.0) + took
        return found


class Prefill(Contestant):
    """Reading a prompt in chunks, and writing some tokens behind it."""

    def __init__(self, model: Decoder, ids: Tensor, plan: Plan, new_tokens: int) -> None:
        super().__init__()
        self.engine = Engine(model, prefill_chunk_tokens=plan.chunk_tokens, compiled=plan.compiled)
        self.ids = ids.to(self.engine.device)
        self.new_tokens = new_tokens

    def warm_up(self) -> None:
        state = self.engine.prefill(self.ids[: max(WARM_TOKENS, 2 * self.engine.prefill_chunk_tokens)])
        if self.new_tokens > 1:
            self.engine.step([state], [0])

    def measure(self) -> Sample:
        engine, times = self.engine, LayerTimes(self.engine.model)
        sync(engine.device)
        started = time.perf_counter()
        with times:
            state = engine.prefill(self.ids)
        sync(engine.device)
        read = time.perf_counter()
        assert state.logits is not None
        self.logits = state.logits.float().cpu()
        ours = time.perf_counter()  # Looking at the logits is no part of the work.
        for _ in range(self.new_tokens - 1):
            engine.step([state], [int(state.logits.argmax())])
        sync(engine.device)
        decode = time.perf_counter() - ours if self.new_tokens > 1 else 0.0
        self.facts["layer_flops"] = cost.by_kind(engine.config, len(self.ids))
        self.facts["cache_bytes"] = state.logical_bytes
        self.facts["held_bytes"] = state.held_bytes
        parts = {"prefill": read - started, "decode": decode, "layers": times.seconds()}
        return Sample(read - started + decode, parts)


class Decode(Contestant):
    """Token after token behind a context whose cache is filled with random numbers."""

    def __init__(self, model: Decoder, plan: Plan, tokens: int, *, compiled: bool = False, int8: bool = False) -> None:
        super().__init__()
        self.engine = Engine(model, compiled=compiled, int8=int8)
        self.tokens, self.count = tokens, plan.decoded_tokens
        self.state: State | None = None

    def warm_up(self) -> None:
        self.state = filled(self.engine, self.tokens)
        first = self.engine.step([self.state], [0])[0]
        self.logits = first.float().cpu()
        for _ in range(2):
            self.engine.step([self.state], [1])
        self.facts |= {"compile_seconds": self.engine.compile_seconds, "cache_bytes": self.state.logical_bytes}

    def measure(self) -> Sample:
        assert self.state is not None and self.state.logits is not None
        state, times = self.state, []
        token = 1
        for _ in range(self.count):
            started = time.perf_counter()
            logits = self.engine.step([state], [token])[0]
            token = int(logits.argmax())
            times.append(time.perf_counter() - started)
        return Sample(median(times), {"tokens": times})

    def close(self) -> None:
        self.state = None


@torch.inference_mode()
def filled(engine: Engine, tokens: int) -> State:
    """A state as after `tokens` tokens, with random keys and values."""
    state = engine.new_state()
    state.reserve(tokens)
    with state.reading(tokens):
        for index, layer in enumerate(state.layers):
            layer.extend(*random_keys_values(engine.config, tokens, index, engine.dtype, engine.device))
    return state


def random_keys_values(
    config: ModelConfig, tokens: int, layer: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Keys and values [1, kv, tokens, d] of one layer, the same for everybody."""
    generator = torch.Generator(device).manual_seed(layer)
    shape = (2, 1, config.kv_heads, tokens, config.head_size)
    kind = torch.float32 if device.type == "cpu" else dtype
    keys, values = torch.randn(shape, generator=generator, device=device, dtype=kind).to(dtype)
    return keys, values
