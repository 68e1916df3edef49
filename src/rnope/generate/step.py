"""One token of one sequence through the whole model: what decoding spends its time on, and its only job.

The same numbers as `Decoder.hidden` (its slow twin), from the same weights, but with as few operations as a layer can
have: attention is asked for between compiled stretches. On a CPU a matrix times one row is limited by reading the
matrix, and the loops that the compiler writes for it read at the memory's speed, in 16 and 8 bits as well; the
libraries' products for one row do not. What a stretch multiplies matrices with is always one of its arguments, never
computed in it: the compiler would do that again for every row of the matrix.
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

SUMS = 4
"""Rows of a matrix that compiled code multiplies at a time: twice as fast as 1; 8 gain little, 16 lose all."""


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
        self.backends = [block.attention.backend for block in model.blocks]
        self.layers = [_weights(block, make) for block in model.blocks]
        self.norms = [weights.norm for weights in self.layers[1:]] + [model.norm.weight.detach()]
        """What comes behind each layer."""
        self.head = make(model.embedding.weight.detach())
        self.bytes = sum(
            m.weight.nbytes for layer in [*self.layers, (self.head,)] for m in layer if isinstance(m, Matrix)
        )
        """Weights that a step reads, without the norms."""
        self.compile_seconds: float | None = None
        self._compiled = compiled
        self._ahead, self._behind, self._logits = _ahead, _behind, _logits
        if compiled:
            self._ahead, self._behind, self._logits = (_compiled(f) for f in (_ahead, _behind, _logits))

    @torch.inference_mode()
    def __call__(self, state: State, token: int) -> Tensor:
        """Logits [vocab] after `token`, which joins `state`."""
        started = time.perf_counter() if self._compiled and self.compile_seconds is None else None
        model, config, eps = self.model, self.model.config, self.model.config.norm_eps
        with state.reading(1):
            tables = model.rotary_tables(state.positions(1))
            x = model.embedding.weight[token].clone()
            normal = layer_norm(x, self.layers[0].norm, eps)
            for spec, weights, norm, backend, cache in zip(
                config.layers, self.layers, self.norms, self.backends, state.layers, strict=True
            ):
                table = None if spec.theta is None else tables[spec.theta]
                ready = self._ahead(normal, weights, table, eps, config.head_size)
                mixed = cache.attend(ready.q, ready.k, ready.v, backend=backend).flatten()
                x, normal = self._behind(x, mixed, ready.middle, weights, norm, eps)
            logits = self._logits(normal, self.head, config.logit_scale)
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


def _ahead(normal: Tensor, weights: Weights, table: tuple[Tensor, Tensor] | None, eps: float, size: int) -> Ready:
    """From the normed state [width] to attention."""
    q, k, v = (times(matrix, normal) for matrix in (weights.query, weights.key, weights.value))
    middle = F.silu(times(weights.gate, normal)) * times(weights.up, normal)
    q, k = _placed(q, weights.query_norm, table, eps, size), _placed(k, weights.key_norm, table, eps, size)
    return Ready(q, k, v.view(1, -1, 1, size), middle)


def _behind(
    x: Tensor, mixed: Tensor, middle: Tensor, weights: Weights, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """From attention to the next layer's state [width], plain and normed."""
    x = x + times(weights.output, mixed) + times(weights.down, middle)
    return x, layer_norm(x, norm, eps)


def _logits(normal: Tensor, head: Matrix, scale: float) -> Tensor:
    return times(head, normal) * scale


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
        # One loop over the weights, in any dtype, with as many sums at a time: a single one waits for itself.
        product = torch.cat([(rows.float() * x.float()).sum(-1) for rows in weight.chunk(SUMS)])
        return (product if scale is None else product * scale).to(x.dtype)
    if scale is not None:
        return ((weight.float() @ x.float()) * scale).to(x.dtype)
    # On a CPU oneDNN's bfloat16 product of one row is half as fast as the plain one.
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return torch.mv(weight, x) if plain else F.linear(x, weight)
