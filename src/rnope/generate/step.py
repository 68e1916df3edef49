"""One token of one sequence through the whole model: what decoding spends its time on, and its only job.

The same numbers as `Decoder.hidden` (its slow twin), from the same weights, but with as few operations as a layer can
have: attention is asked for between compiled stretches, each from one layer's attention to the next one's. On a CPU a
matrix times one row is limited by reading the matrix, and the loops that the compiler writes for it read at the
memory's speed, in 16 and 8 bits as well; the libraries' products for one row do not.
"""

import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.generate.cache import State
from rnope.model.attention import layer_norm
from rnope.model.decoder import Block, Decoder
from rnope.model.rope import rotate


class Matrix(NamedTuple):
    """A linear map [out, in]; in 8 bits with a factor for each output."""

    weight: Tensor
    scale: Tensor | None = None

    @classmethod
    def int8(cls, weight: Tensor) -> "Matrix":
        """`weight` [out, in] rounded to 8 bits, each row by its own largest value; error at most 1/254 of that."""
        scale = weight.float().abs().amax(-1).clamp_min(1e-30) / 127
        return cls((weight.float() / scale[:, None]).round_().to(torch.int8), scale)


class Weights(NamedTuple):
    """The weights of one block."""

    norm: Tensor
    query: Matrix
    key: Matrix
    value: Matrix
    gate: Matrix
    up: Matrix
    output: Matrix
    down: Matrix
    query_norm: Tensor | None
    key_norm: Tensor | None


class Ready(NamedTuple):
    """What a layer has before its attention: q [1, h, 1, d], k and v [1, kv, 1, d], the feed-forward's middle [ffn]."""

    q: Tensor
    k: Tensor
    v: Tensor
    middle: Tensor


class Step:
    """``step(state, id)``: reads one token and leaves the logits of the next in the state.

    Args:
        model: the decoder whose weights are used as they are now, not copied (but for `int8`).
        int8: multiply with weights rounded to 8 bits, a second copy of a byte per weight.
        compiled: by `torch.compile`; the first call then takes seconds, as `compile_seconds` says afterwards.
    """

    def __init__(self, model: Decoder, *, int8: bool = False, compiled: bool = False) -> None:
        make: Callable[[Tensor], Matrix] = Matrix.int8 if int8 else Matrix
        self.model = model
        self.int8 = int8
        self.attentions = [block.attention for block in model.blocks]
        self.layers = [_weights(block, make) for block in model.blocks]
        self.head = make(model.embedding.weight.detach())
        self.bytes = sum(
            m.weight.nbytes for layer in [*self.layers, (self.head,)] for m in layer if isinstance(m, Matrix)
        )
        """Weights that a step reads, without the norms."""
        self.compile_seconds: float | None = None
        self._compiled = compiled
        self._begin, self._between, self._finish = _begin, _between, _finish
        if compiled:
            self._begin, self._between, self._finish = (_compiled(f) for f in (_begin, _between, _finish))

    @torch.inference_mode()
    def __call__(self, state: State, token: int) -> Tensor:
        """Logits [vocab] after `token`, which joins `state`."""
        started = time.perf_counter() if self._compiled and self.compile_seconds is None else None
        model, eps = self.model, self.model.config.norm_eps
        kv_heads, size = model.config.kv_heads, model.config.head_size
        with state.reading(1):
            tables = model.rotary_tables(state.positions(1))
            places = [
                None if theta is None else tables[theta] for theta in (spec.theta for spec in model.config.layers)
            ]
            x, previous, mixed = model.embedding.weight[token].clone(), self.layers[0], None
            for weights, place, attention, cache in zip(
                self.layers, places, self.attentions, state.layers, strict=True
            ):
                if mixed is None:
                    ready = self._begin(x, weights, place, eps, kv_heads, size)
                else:
                    x, ready = self._between(x, mixed, ready.middle, previous, weights, place, eps, kv_heads, size)
                mixed = cache.attend(ready.q, ready.k, ready.v, backend=attention.backend).flatten()
                previous = weights
            assert mixed is not None
            scale = model.config.logit_scale
            logits = self._finish(x, mixed, ready.middle, previous, model.norm.weight, self.head, eps, scale)
        state.logits = logits
        if started is not None:
            self.compile_seconds = time.perf_counter() - started
        return logits


def _compiled(function: Any) -> Any:
    """`function`, compiled under code of its own: variants are kept by code, and only a few of each."""
    code = function.__code__.replace()
    return torch.compile(FunctionType(code, function.__globals__, function.__name__), dynamic=False)


def _weights(block: Block, make: Callable[[Tensor], Matrix]) -> Weights:
    attention, ffn = block.attention, block.feed_forward
    linears = dict(query=attention.query, key=attention.key, value=attention.value, output=attention.output)
    linears |= dict(gate=ffn.gate, up=ffn.up, down=ffn.down)
    return Weights(
        norm=block.norm.weight.detach(),
        query_norm=None if attention.query_norm is None else attention.query_norm.weight.detach(),
        key_norm=None if attention.key_norm is None else attention.key_norm.weight.detach(),
        **{name: make(linear.weight.detach()) for name, linear in linears.items()},
    )


def _begin(
    x: Tensor, weights: Weights, table: tuple[Tensor, Tensor] | None, eps: float, kv_heads: int, size: int
) -> Ready:
    """From the embedded token `x` [width] to the first attention."""
    normal = layer_norm(x, weights.norm, eps)
    q, k, v = (times(matrix, normal) for matrix in (weights.query, weights.key, weights.value))
    middle = F.silu(times(weights.gate, normal)) * times(weights.up, normal)
    q, k = _placed(q, weights.query_norm, table, eps, size), _placed(k, weights.key_norm, table, eps, size)
    return Ready(q, k, v.view(1, kv_heads, 1, size), middle)


def _between(
    x: Tensor, mixed: Tensor, middle: Tensor, previous: Weights, weights: Weights,
    table: tuple[Tensor, Tensor] | None, eps: float, kv_heads: int, size: int,
) -> tuple[Tensor, Ready]:  # fmt: skip
    """From one layer's attention to the next one's."""
    x = x + times(previous.output, mixed) + times(previous.down, middle)
    return x, _begin(x, weights, table, eps, kv_heads, size)


def _finish(
    x: Tensor, mixed: Tensor, middle: Tensor, previous: Weights, norm: Tensor, head: Matrix, eps: float, scale: float
) -> Tensor:
    """From the last attention to the logits [vocab]."""
    x = x + times(previous.output, mixed) + times(previous.down, middle)
    return times(head, layer_norm(x, norm, eps)) * scale


def _placed(flat: Tensor, norm: Tensor | None, table: tuple[Tensor, Tensor] | None, eps: float, size: int) -> Tensor:
    heads = flat.view(-1, size)  # h d
    if norm is not None:
        heads = layer_norm(heads, norm, eps)
    heads = heads[None, :, None]  # 1 h 1 d
    return heads if table is None else rotate(heads, table)


def times(matrix: Matrix, x: Tensor) -> Tensor:
    """`matrix` times `x` [in], in x's dtype, summed in float32 or better."""
    weight, scale = matrix
    if torch.compiler.is_compiling():
        product = (weight.float() * x.float()).sum(-1)  # One loop over the weights, in any dtype.
        return (product if scale is None else product * scale).to(x.dtype)
    if scale is not None:
        return ((weight.float() @ x.float()) * scale).to(x.dtype)
    # On a CPU oneDNN's bfloat16 product of one row is half as fast as the plain one.
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return torch.mv(weight, x) if plain else F.linear(x, weight)
