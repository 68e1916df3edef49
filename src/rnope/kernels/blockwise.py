"""Attention that never holds all scores: windows cost time and memory linear in length, forward and backward.

Three ways, by the shape of the request, the same numbers from each (`reference` is the twin):

- full span, every position a query: torch's own fused kernel;
- short rows: `banded`, one batch of blocks;
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

TILE_SCORES = 2**18
"""Scores of one tile: they should stay in the second-level cache of a core (1 MB in float32)."""
TILE_QUERIES = (64, 256)
"""Fewest and most queries of a block: thinner matrix products are slow, taller ones waste work outside the window."""
KEPT_SCORES = 2**20
"""Scores that a layer may keep for its backward pass instead of computing them again."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` in blocks."""
    b, h, tq, _ = q.shape
    tk = k.shape[2]
    if window is not None and window >= tk:
        window = None
    if tq == tk and rows is None:
        if window is None and starts is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != k.shape[1])
        band = Band.over(tq, window or tk)
        if b * h * band.scores_per_head <= KEPT_SCORES:
            return Banded.apply(q, k, v, starts, band)  # type: ignore[no-any-return, no-untyped-call]
    return Tiled.apply(q, k, v, window, starts, rows)  # type: ignore[no-any-return, no-untyped-call]


def refusal(q: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None) -> ConfigError | None:
    """An error where tiles cannot be laid out: `starts` and `rows` are read to find which keys a tile needs."""
    if q.is_meta and (starts is not None or rows is not None):
        rule = "'blockwise' reads the values of starts and rows, which meta tensors lack"
        return ConfigError("backend", "blockwise", rule, "Use 'reference' or 'auto'.")
    return None


class Tile(NamedTuple):
    """Queries, and the keys that any of them may see."""

    batch: slice
    heads: slice
    """Key-value heads, each with its group of query heads."""
    queries: slice
    keys: slice


class Tiled(torch.autograd.Function):
    """``Tiled.apply(q, k, v, window, starts, rows)``: [b, h, tq, d]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        b, h, tq, d = q.shape
        ctx.window = window
        ctx.save_for_backward(q, k, v, starts, rows)
        out = q.new_empty(b, tq, h, d).transpose(1, 2)  # The layout that an output projection reads without a copy.
        queries, outs = _grouped(q, k), _grouped(out, k)
        for part, bias, blind in _tiles(q, k, window, starts, rows):
            at = part.batch, part.heads, slice(None), part.queries
            qs, ks, vs = _folded(queries[at]), _keys(k, part), _keys(v, part)
            mixed = tile.weights(tile.scores(qs, ks, bias), blind) @ vs
            outs[at] = mixed.view(outs[at].shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, rows = ctx.saved_tensors
        # With a window a key is in a few tiles; without, in so many that 16 bits cannot hold the sum.
        precise = softmax_dtype(k.dtype) if ctx.window is None else k.dtype
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=precise), torch.zeros_like(v, dtype=precise)
        queries, grads, dqueries = _grouped(q, k), _grouped(grad, k), _grouped(dq, k)
        for part, bias, blind in _tiles(q, k, ctx.window, starts, rows):
            at = part.batch, part.heads, slice(None), part.queries
            qs, ks, vs = _folded(queries[at]), _keys(k, part), _keys(v, part)
            weights = tile.weights(tile.scores(qs, ks, bias), blind)
            dqs, dks, dvs = tile.gradients(_folded(grads[at]), qs, ks, vs, weights)
            dqueries[at] = dqs.view(dqueries[at].shape)
            for whole, piece in ((dk, dks), (dv, dvs)):
                to = whole[part.batch, part.heads, part.keys]
                to += piece.view(to.shape)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _tiles(
    q: Tensor, k: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Iterator[tuple[Tile, Tensor, Tensor | None]]:
    """Each tile with its bias and its blind queries, as `tile` wants them."""
    tq, tk, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    positions = torch.arange(tk - tq, tk, device=q.device) if rows is None else rows
    previous: tuple[object, ...] = ()
    for part in _plan(q, k, window, starts, rows):
        batch, heads, queries, keys = part
        # Without starts and rows a mask depends only on how queries stand to keys, so that inner blocks share one.
        same = (queries.start - keys.start, queries.stop - keys.start, keys.stop - keys.start)
        if starts is not None or rows is not None:
            same = (batch, queries, heads.stop - heads.start)
        if same != previous:
            previous = same
            begins = None if starts is None else starts[batch, queries]
            seen = visible(positions[queries], torch.arange(keys.start, keys.stop, device=q.device), window, begins)
            wide = 1 if len(seen) == 1 else heads.stop - heads.start  # One mask is enough for all heads of one row.
            bias = tile.spread(q.new_zeros(()).masked_fill(~seen, -torch.inf), wide, groups)
            blind = None if starts is None else tile.spread(~seen.any(-1, keepdim=True), wide, groups)
        yield part, bias, blind


def _plan(q: Tensor, k: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None) -> Iterator[Tile]:
    """Tiles in the order batch, queries, heads, so that the heads of a block can share its mask."""
    b, h, tq, _ = q.shape
    kv, tk = k.shape[1:3]
    groups, span = h // kv, tk if window is None else min(tk, 2 * window)
    height = min(max(TILE_SCORES // span, TILE_QUERIES[0]), TILE_QUERIES[1])
    block = min(tq, max(1, height // groups))
    span = tk if window is None else min(tk, block + window)
    batch_step = max(1, TILE_SCORES // (h * block * span))
    head_step = max(1, TILE_SCORES // (groups * block * span))
    first, place = (None if x is None else x.cpu() for x in (starts, rows))  # One copy, not one wait per tile.
    for i in range(0, b, batch_step):
        batch = slice(i, min(b, i + batch_step))
        for s in range(0, tq, block):
            queries = slice(s, min(tq, s + block))
            low, high = tk - tq + s, tk - tq + queries.stop - 1
            if place is not None:
                low, high = (int(x) for x in place[queries].aminmax())
            begin = 0 if window is None else max(0, low - window + 1)
            if first is not None:
                begin = max(begin, int(first[batch, queries].min()))
            begin = min(begin, high) // tile.ALIGNED * tile.ALIGNED
            keys = slice(begin, min(tk, tile.aligned(high + 1)))
            for j in range(0, kv, head_step):
                yield Tile(batch, slice(j, min(kv, j + head_step)), queries, keys)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[b, h, t, d] as [b, kv, g, t, d]."""
    return x.view(x.shape[0], k.shape[1], -1, *x.shape[2:])


def _folded(x: Tensor) -> Tensor:
    """[b, kv, g, r, d] as [b·kv, g·r, d]: the heads of a group are rows of one matrix."""
    return x.flatten(2, 3).flatten(0, 1)


def _keys(x: Tensor, part: Tile) -> Tensor:
    """The tile's keys or values [n, l, d]; a copy at most of these."""
    return x[part.batch, part.heads, part.keys].flatten(0, 1)
