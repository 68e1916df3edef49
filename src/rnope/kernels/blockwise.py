"""Attention that never holds all scores: windows cost time and memory linear in length, forward and backward.

Four ways, by the shape of the request, the same numbers from each (`reference` is the twin):

- full span, every position a query: torch's own fused kernel;
- short rows: `banded`, one batch of blocks;
- a window over long rows, on the CPU: `windowed`, many blocks at a time;
- everything else: tile after tile, weights computed again in the backward pass, gradients written in place.

A tile holds whole rows of scores, so softmax needs no running sums. This knows nothing of layers or caches, and its
gradients cannot be differentiated again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rnope.errors import ConfigError
from rnope.kernels import tile
from rnope.kernels.banded import Band, Banded
from rnope.kernels.reference import softmax_dtype, visible
from rnope.kernels.request import Request, refused
from rnope.kernels.windowed import Windowed

TILE_QUERIES = 128
"""Queries of a tile: thinner matrix products are slow, taller ones waste work outside the window."""
TILE_SCORES = 2**18
"""Scores of a tile in the backward pass: they should stay in a core's second-level cache (1 MB in float32)."""
TILE_MASK = 2**22
"""Entries of a tile's mask (16 MB in float32), and scores of a tile that has to be larger than `TILE_SCORES`."""
KEPT_SCORES = 2**21
"""Scores that a layer may keep for its backward pass instead of computing them again."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` in blocks."""
    b, h, tq, _ = q.shape
    tk = k.shape[2]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # As torch's kernels take for granted.
    if window is not None and window >= tk:
        window = None
    if tq == tk and rows is None:
        if window is None and starts is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != k.shape[1])
        band = Band.over(tq, window or tk)
        if band.blocks == 1 and starts is None:
            seen = torch.ones(tq, tk, dtype=torch.bool, device=q.device).tril().triu_(1 - (window or tk))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=h != k.shape[1])
        if b * h * band.scores_per_head <= KEPT_SCORES:
            return Banded.apply(q, k, v, starts, band)
    if tq == 1 and rows is None and starts is None:
        near = slice(None if window is None else -window, None)  # All of them are seen: no mask.
        return F.scaled_dot_product_attention(_folded(q, k), k[:, :, near], v[:, :, near]).reshape(q.shape)
    if window is not None and rows is None and q.device.type == "cpu":
        return Windowed.apply(q, k, v, starts, window)
    return Tiled.apply(q, k, v, window, starts, rows)


def refusal(request: Request) -> ConfigError | None:
    """Starts and rows are read, to find which keys a tile needs."""
    if request.device.type == "meta" and (request.starts or request.rows):
        rule = "'blockwise' reads the values of starts and rows, which meta tensors lack"
        return refused("blockwise", rule, "Use 'reference' or 'auto'.")
    return None


class Tile(NamedTuple):
    """Some queries, the keys that any of them may see, and which see which."""

    batch: slice
    queries: slice
    keys: slice
    bias: Tensor
    """[b|1, 1, g·r, l], zeros and minus infinities; the heads of a group are rows of one matrix."""
    blind: Tensor | None
    """bool [b, 1, g·r, 1], true where a query sees nothing; None where that cannot be."""


class Tiled(torch.autograd.Function):
    """``Tiled.apply(q, k, v, window, starts, rows)``: [b, h, tq, d]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        b, h, tq, d = q.shape
        ctx.window = window
        ctx.save_for_backward(q, k, v, starts, rows)
        if q.device.type == "cpu" and window is None and starts is None and rows is None and tq < k.shape[2]:
            return _continued(q, k, v)
        out = q.new_empty(b, tq, h, d).transpose(1, 2)  # The layout that an output projection reads without a copy.
        queries, outs = _grouped(q, k), _grouped(out, k)
        for batch, span, keys, bias, blind in _tiles(q, k, window, starts, rows, scores=TILE_MASK):
            at, to = (batch, slice(None), slice(None), span), (batch, slice(None), keys)
            # The fused kernel keeps no scores, so that one tile takes all heads.
            mixed = F.scaled_dot_product_attention(queries[at].flatten(2, 3), k[to], v[to], attn_mask=bias)
            outs[at] = (mixed if blind is None else mixed.masked_fill(blind, 0.0)).view(outs[at].shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, rows = ctx.saved_tensors
        # With a window a key is in a few tiles; without, in so many that 16 bits cannot hold the sum.
        precise = softmax_dtype(k.dtype) if ctx.window is None else k.dtype
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=precise), torch.zeros_like(v, dtype=precise)
        queries, grads, dqueries = _grouped(q, k), _grouped(grad, k), _grouped(dq, k)
        for batch, span, keys, bias, blind in _tiles(q, k, ctx.window, starts, rows, scores=TILE_SCORES):
            step = max(1, TILE_SCORES // (batch.stop - batch.start) // bias[0].numel())
            for heads in (slice(i, min(i + step, k.shape[1])) for i in range(0, k.shape[1], step)):
                at, to = (batch, heads, slice(None), span), (batch, heads, keys)
                qs, gs = (x[at].flatten(2, 3).flatten(0, 1) for x in (queries, grads))  # n g·r d
                ks, vs = k[to].flatten(0, 1), v[to].flatten(0, 1)  # n l d
                unseeing = None if blind is None else _over(blind, heads)
                weights = tile.weights(tile.scores(qs, ks, _over(bias, heads)), unseeing)
                dqs, dks, dvs = tile.gradients(gs, qs, ks, vs, weights)
                dqueries[at] = dqs.view(dqueries[at].shape)
                for whole, piece in ((dk[to], dks), (dv[to], dvs)):
                    whole += piece.view(whole.shape)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _continued(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full span, the queries the last of the keys: all see the past, each its part of the present; no mask is made."""
    past, groups = k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before, log_before = (x.reshape(q.shape[: x.dim()]) for x in fused(_folded(q, k), k[:, :, :past], v[:, :, :past]))
    present = (x[:, :, past:].repeat_interleave(groups, dim=1) for x in (k, v))
    now, log_now = fused(q, *present, is_causal=True)
    share = (log_before - log_now).sigmoid()[..., None]  # Of the past in the sum that softmax divides by. b h tq 1
    return torch.lerp(now.to(share.dtype), before.to(share.dtype), share).to(q.dtype)


def _tiles(
    q: Tensor, k: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None, *, scores: int
) -> Iterator[Tile]:
    """Tiles that together have every query once; rows of the batch share one as long as it has about `scores`."""
    tq, tk, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    positions = torch.arange(tk - tq, tk, device=q.device) if rows is None else rows
    masks: tuple[Tensor, Tensor | None] | None = None
    previous: object = None
    for batch, queries, keys in _plan(q, k, window, starts, rows, scores):
        # Without starts and rows a mask depends only on how queries stand to keys, so that inner blocks share one.
        same = (queries.start - keys.start, queries.stop - keys.start, keys.stop - keys.start)
        if masks is None or starts is not None or rows is not None or same != previous:
            begins = None if starts is None else starts[batch, queries]
            seen = visible(positions[queries], torch.arange(keys.start, keys.stop, device=q.device), window, begins)
            seen = seen[:, None].repeat(1, 1, groups, 1)  # b|1 1 g·r l
            blind = None if starts is None else ~seen.any(-1, keepdim=True)
            masks = q.new_zeros(()).masked_fill(~seen, -torch.inf), blind
        previous = same
        yield Tile(batch, queries, keys, *masks)


def _plan(
    q: Tensor, k: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None, scores: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Rows of the batch, queries, and the keys that these queries may see."""
    b, h, tq, _ = q.shape
    kv, tk = k.shape[1:3]
    span = tk if window is None else min(tk, TILE_QUERIES + window)
    block = min(tq, max(1, min(TILE_QUERIES, TILE_MASK // span) * kv // h))
    step = max(1, scores // (h * block * span))
    first, place = (None if x is None else x.cpu() for x in (starts, rows))  # One copy, not one wait per tile.
    for i in range(0, b, step):
        batch = slice(i, min(b, i + step))
        for s in range(0, tq, block):
            queries = slice(s, min(tq, s + block))
            low, high = tk - tq + s, tk - tq + queries.stop - 1
            if place is not None:
                low, high = (int(x) for x in place[queries].aminmax())
            begin = 0 if window is None else max(0, low - window + 1)
            if first is not None:
                begin = max(begin, int(first[batch, queries].min()))
            begin = min(begin, high) // tile.ALIGNED * tile.ALIGNED
            yield batch, queries, slice(begin, min(tk, tile.aligned(high + 1)))


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[b, h, t, d] as [b, kv, g, t, d]."""
    return x.view(x.shape[0], k.shape[1], -1, *x.shape[2:])


def _folded(q: Tensor, k: Tensor) -> Tensor:
    """[b, h, t, d] as [b, kv, g·t, d]: the heads of a group are rows of one matrix."""
    return _grouped(q, k).flatten(2, 3)


def _over(mask: Tensor, heads: slice) -> Tensor:
    """A mask [b|1, 1, r, l] for `heads`, [b·heads, r, l]; where b is 1, one [1, r, l] serves them all."""
    return mask[0] if len(mask) == 1 else mask.expand(-1, heads.stop - heads.start, -1, -1).flatten(0, 1)
