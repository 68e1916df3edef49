"""Windowed attention over many short rows, as in training: all blocks of all heads as one batch of one tile.

Queries are cut into blocks; a block sees its own keys and a halo of keys before it, so the batch is an overlapping view
of one copy of the keys. Few operations, and the weights are kept for the backward pass. It takes only as many queries
as keys, and is not for long rows: `blockwise` decides.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rnope.kernels import tile

BLOCK_QUERIES = 32


class Band(NamedTuple):
    """How a row is cut."""

    blocks: int
    queries: int
    """Queries of a block."""
    halo: int
    """Keys before the block; not more than `queries`, so that no block reaches behind its neighbour."""
    window: int

    @classmethod
    def over(cls, tokens: int, window: int) -> "Band":
        halo = tile.aligned(window - 1)
        blocks = -(-tokens // max(BLOCK_QUERIES, halo))
        if blocks == 1:
            return cls(1, tokens, 0, window)
        queries = max(tile.aligned(-(-tokens // blocks)), halo)
        return cls(-(-tokens // queries), queries, halo, window)

    @property
    def scores_per_head(self) -> int:
        return self.blocks * self.queries * (self.halo + self.queries)


class Banded(torch.autograd.Function):
    """``Banded.apply(q, k, v, starts, band)``: [b, h, t, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, band: Band) -> Tensor:
        ctx.band, ctx.queries, ctx.keys = band, q.shape, k.shape
        qs, ks, vs = _blocks(q, k.shape, band), _overlapping(k, band), _overlapping(v, band)
        bias, blind = _masks(q, k.shape, starts, band)
        scores = tile.scores(qs, ks, bias)  # n r l
        # The first block of a row has no keys before it; the view shows there the row before.
        scores.view(-1, band.blocks, *scores.shape[1:])[:, 0, :, : band.halo] = -torch.inf
        weights = tile.weights(scores, blind)
        ctx.save_for_backward(qs, ks, vs, weights)
        return _tokens(weights @ vs, q.shape, k.shape, band)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        band, queries, keys = ctx.band, ctx.queries, ctx.keys
        dq, dk, dv = tile.gradients(_blocks(grad, keys, band), *ctx.saved_tensors)
        return _tokens(dq, queries, keys, band), _gathered(dk, keys, band), _gathered(dv, keys, band), None, None


def _blocks(x: Tensor, keys: torch.Size, band: Band) -> Tensor:
    """[b, h, t, d] into blocks [b·kv·blocks, g·queries, d]; `keys` is k's shape."""
    b, h, t, d = x.shape
    kv, missing = keys[1], band.blocks * band.queries - t
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    cut = x.reshape(b, kv, h // kv, band.blocks, band.queries, d).transpose(2, 3)  # b kv n g r d
    return cut.reshape(b * kv * band.blocks, -1, d)


def _tokens(blocks: Tensor, queries: torch.Size, keys: torch.Size, band: Band) -> Tensor:
    """The way back from `_blocks`."""
    b, h, t, d = queries
    joined = blocks.view(b, keys[1], band.blocks, -1, band.queries, d).transpose(2, 3)  # b kv g n r d
    return joined.reshape(b, h, -1, d)[:, :, :t]


def _overlapping(x: Tensor, band: Band) -> Tensor:
    """[b, kv, t, d] as blocks with their halo, [b·kv·blocks, halo + queries, d]: views of one copy."""
    b, kv, t, d = x.shape
    length = band.blocks * band.queries
    rows = x.new_empty(band.halo + b * kv * length, d)
    inner = rows[band.halo :].view(b, kv, length, d)
    rows[: band.halo] = 0.0
    inner[:, :, :t] = x
    inner[:, :, t:] = 0.0
    return rows.as_strided((b * kv * band.blocks, band.halo + band.queries, d), (band.queries * d, d, 1))


def _gathered(parts: Tensor, keys: torch.Size, band: Band) -> Tensor:
    """Gradients of overlapping blocks, summed into [b, kv, t, d]; changes `parts`."""
    b, kv, t, d = keys
    parts[:-1, band.queries :] += parts[1:, : band.halo]  # From row to row this adds zeros.
    return parts[:, band.halo :].reshape(b, kv, -1, d)[:, :, :t]


def _masks(q: Tensor, keys: torch.Size, starts: Tensor | None, band: Band) -> tuple[Tensor, Tensor | None]:
    """Bias and the blind for `tile`, but for the first block of each row."""
    kv, groups, length = keys[1], q.shape[1] // keys[1], band.blocks * band.queries
    hidden = q.new_full((band.queries, band.halo + band.queries), -torch.inf)
    bias = hidden.triu(band.halo + 1) + hidden.tril(band.halo - band.window)  # Query i stands at column halo + i.
    if starts is None:
        return tile.spread(bias[None], 1, groups), None
    first = F.pad(starts, (0, length - starts.shape[1])).view(-1, band.blocks, band.queries, 1)  # b n r 1
    positions = torch.arange(length, device=q.device).view(band.blocks, band.queries, 1)
    columns = positions[:, :1] + torch.arange(-band.halo, band.queries, device=q.device)  # n 1 l
    bias = bias.masked_fill(columns < first, -torch.inf)  # b n r l
    return tile.spread(bias, kv, groups), tile.spread(first > positions, kv, groups)
