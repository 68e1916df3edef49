"""Windowed attention over long rows on the CPU: torch's fused kernel forward, few and large matrix products backward.

Forward, equal blocks of queries see overlapping pieces of the keys: views, so that one call takes many. Backward, keys
are cut into the same blocks as queries and both are laid out one after another: then all blocks of a chunk stand to the
keys o blocks before them as one batch of contiguous matrices does to another, and gradients add up inside the products.
It takes a window, and queries that are the last of the keys: `blockwise` decides.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rnope.kernels import tile
from rnope.kernels.reference import softmax_dtype, visible

BLOCK = 128
"""Queries of a block at most: thinner matrix products are slow, taller ones waste work outside the window."""
CHUNK = 2**20
"""Entries of the queries that the backward pass lays out at one time; bounds memory."""
SCORES = 2**20
"""Scores of one batch of blocks: enough for threads to share, few enough to stay in cache."""


class Grid(NamedTuple):
    """How queries and keys are cut."""

    size: int
    """Queries, and keys, of a block."""
    behind: int
    """Blocks of keys before its own that a block of queries sees."""

    @classmethod
    def over(cls, window: int) -> "Grid":
        behind = -(-(window - 1) // BLOCK)
        size = tile.aligned(-(-(window - 1) // behind)) if behind else BLOCK
        return cls(min(max(size, 32), BLOCK), behind)


class Windowed(torch.autograd.Function):
    """``Windowed.apply(q, k, v, starts, window)``: [b, h, tq, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int) -> Tensor:
        b, h, tq, d = q.shape
        kv, past = k.shape[1], k.shape[2] - tq
        out = q.new_empty(b, tq, h, d).transpose(1, 2)  # The layout that an output projection reads without a copy.
        lse = q.new_empty(b, h, tq, dtype=softmax_dtype(q.dtype))
        masks: tuple[Tensor, Tensor] | None = None
        previous: object = None
        for span in _spans(q, k, window):
            at, count, size, begin, width = span
            to = slice(at, at + count * size)
            same = (past + at - begin, size, width)
            for i in range(b):
                # Without starts a mask depends only on how queries stand to keys, so that inner blocks share one.
                if masks is None or starts is not None or same != previous:
                    seen = _seen(span, past, window, None if starts is None else starts[i, to])
                    seen = seen[:, None].repeat(1, 1, h // kv, 1)  # n|1 1 g·r l
                    masks = q.new_zeros(()).masked_fill(~seen, -torch.inf), ~seen.any(-1)
                previous, (bias, blind) = same, masks
                qs = q[i, :, to].view(kv, -1, count, size, d).permute(2, 0, 1, 3, 4)  # n kv g r d
                ks, vs = _pieces(k[i], span), _pieces(v[i], span)
                mixed, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    qs.flatten(2, 3), ks, vs, attn_mask=bias
                )
                if starts is not None:
                    mixed, logs = mixed.masked_fill(blind[..., None], 0.0), logs.masked_fill(blind, 0.0)
                for whole, part in ((out, mixed), (lse, logs)):
                    into = whole[i, :, to].view(kv, -1, count, size, *whole.shape[3:]).movedim(2, 0)
                    into.copy_(part.view(into.shape))
        ctx.window = window
        ctx.save_for_backward(q, k, v, starts, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, out, lse = ctx.saved_tensors
        b, h, tq, d = q.shape
        kv, tk = k.shape[1:3]
        size, behind = Grid.over(ctx.window)
        # Gradients of whole blocks, also where keys have not begun or queries have ended.
        front, length = max(0, behind * size - (tk - tq)), -(-tq // size) * size
        dq = q.new_empty(b, length, h, d).transpose(1, 2)
        dk, dv = (k.new_empty(b, front + tk - tq + length, kv, d).transpose(1, 2) for _ in range(2))
        step = max(1, CHUNK // dq[0].numel())
        for i in range(0, b, step):
            rows = slice(i, i + step)
            given = (x[rows] for x in (dq, dk, dv, grad, q, k, v, out, lse))
            _differentiate(*given, starts=None if starts is None else starts[rows], window=ctx.window)
        return dq[:, :, :tq], dk[:, :, front : front + tk], dv[:, :, front : front + tk], None, None


class Span(NamedTuple):
    """Blocks of queries next to each other, each of which sees as many keys."""

    at: int
    blocks: int
    size: int
    begin: int
    """First key of the first block."""
    width: int


def _spans(q: Tensor, k: Tensor, window: int) -> Iterator[Span]:
    (_, h, tq, _), tk = q.shape, k.shape[2]
    size, at = Grid.over(window).size, 0
    most = max(1, SCORES // (h * size * (size + window)))
    while at < tq:
        low, r = tk - tq + at - window + 1, min(size, tq - at)
        count = 1 if low < 0 else min(most, (tq - at) // r)
        begin = max(0, low) // tile.ALIGNED * tile.ALIGNED
        width = tk - tq + at + r - begin
        if begin + (count - 1) * r + tile.aligned(width) <= tk:
            width = tile.aligned(width)
        yield Span(at, count, r, begin, width)
        at += count * r


def _seen(span: Span, past: int, window: int, starts: Tensor | None) -> Tensor:
    """Which keys the queries of each block see, bool [n|1, r, l]; starts are [n·r]."""
    at, count, size, begin, width = span
    device = None if starts is None else starts.device
    if starts is not None:  # Counted from the first key of each block, as positions and keys are.
        starts = starts.view(count, size) - begin - torch.arange(0, count * size, size, device=device)[:, None]
    first = past + at - begin
    return visible(torch.arange(first, first + size, device=device), torch.arange(width, device=device), window, starts)


def _pieces(x: Tensor, span: Span) -> Tensor:
    """Of [kv, t, d] what each block of queries may see: an overlapping view [n, kv, l, d]."""
    head, token, unit = x.stride()
    shape, stride = (span.blocks, len(x), span.width, x.shape[2]), (span.size * token, head, token, unit)
    return x.as_strided(shape, stride, x.storage_offset() + span.begin * token)


def _differentiate(
    dq: Tensor, dk: Tensor, dv: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, starts: Tensor | None, window: int,
) -> None:  # fmt: skip
    """Fill dq [b, h, ≥ tq, d], dk and dv [b, kv, ≥ tk, d], which begin with the blocks that the first query sees."""
    b, h, tq, d = q.shape
    kv, past, groups, scale = k.shape[1], k.shape[2] - tq, h // k.shape[1], d**-0.5
    size, behind = Grid.over(window)
    blocks, origin = dq.shape[2] // size, past - behind * size
    deep = max(1, min(blocks, CHUNK // (b * h * size * d)))
    step = max(1, min(deep, SCORES // (b * h * size * size)))
    # Float16 has no range to spare, and float32 is exact enough.
    most = math.log2(window) if q.dtype == torch.bfloat16 else 0.0
    qx, gx = (q.new_empty(deep, b, kv, groups, size, d + 2) for _ in range(2))
    dqb = q.new_empty(deep, b, kv, groups, size, d)
    qb, gb = (torch.empty_like(dqb) if most else x[..., :d] for x in (qx, gx))
    kx, vx = (q.new_ones(deep + behind, b, kv, 1, size, d + 2) for _ in range(2))
    kb = kx[..., :d]
    dkb, dvb = (q.new_zeros(deep + behind, b, kv, 1, size, d) for _ in range(2))
    chances, slopes = (q.new_empty(step * b * kv, groups * size, size) for _ in range(2))
    for x in (dk, dv):
        x[:, :, : max(0, origin)] = 0.0
    for s in range(0, blocks, deep):
        n = min(deep, blocks - s)
        cut = slice(s * size, (s + n) * size)
        qs, gs, logs = q[:, :, cut], grad[:, :, cut], lse[:, :, cut]
        # Scores less logs are near 0, where 16 bits are exact, for weights times a power of two, taken back later.
        power = (logs / math.log(2)).round_().clamp_(0.0, most)
        _fill(qx, _less(qs, (logs - power * math.log(2)) / scale))
        _fill(gx, _less(gs, (gs.to(lse.dtype) * out[:, :, cut]).sum(-1)))
        if most:
            back = torch.exp2(-power)[..., None].to(q.dtype)
            _fill(qb, qs * back)
            _fill(gb, gs * back)
        for buffer, x in ((kx, k), (vx, v)):
            _fill(buffer[..., :d], x, origin + cut.start)
        dqb.zero_()
        for x in (dkb, dvb):
            x[:behind] = x[deep:].clone()  # Keys of the last chunk; it was as deep as can be.
            x[behind:] = 0.0
        for i in range(0, n, step):
            m = min(step, n - i)
            for o in range(behind + 1):
                mine = (x[i : i + m].flatten(3, 4).flatten(0, 2) for x in (qx, qb, gx, gb, dqb))
                theirs = (x[i + behind - o :][:m].flatten(3, 4).flatten(0, 2) for x in (kx, kb, vx, dkb, dvb))
                (qxs, qbs, gxs, gbs, dqs), (kxs, kbs, vxs, dks, dvs) = mine, theirs
                p, ds = chances[: len(qxs)], slopes[: len(qxs)]
                torch.baddbmm(p, qxs, kxs.mT, beta=0.0, alpha=scale, out=p)
                square = p.exp_().view(-1, size, size)
                if starts is not None:
                    _hide(p.view(m, b, kv, groups, size, size), starts, past, s + i, o)
                if o == 0:
                    square.tril_()
                if (o + 1) * size > window:
                    square.triu_(o * size - window + 1)
                torch.bmm(gxs, vxs.mT, out=ds).mul_(p)
                dvs.baddbmm_(p.mT, gbs)
                dqs.baddbmm_(ds, kbs, alpha=scale)
                dks.baddbmm_(ds.mT, qbs, alpha=scale)
        _store(dq, cut.start, dqb[:n])
        if most:
            dq[:, :, cut][:, :, : back.shape[2]] *= back
        for x, parts in ((dk, dkb), (dv, dvb)):  # The last blocks of keys wait for the next chunk's queries.
            _store(x, max(0, origin) + cut.start, parts[: n if s + n < blocks else n + behind])


def _less(x: Tensor, amount: Tensor) -> Tensor:
    """Two more columns of x [b, h, t, d]: times two columns of ones they take a float32 `amount` [b, h, t] away."""
    high = amount.to(x.dtype)
    return torch.cat((x, -high[..., None], (high - amount).to(x.dtype)[..., None]), dim=-1)


def _fill(blocks: Tensor, x: Tensor, start: int = 0) -> None:
    """[b, h, t, d] from `start` into [n, b, kv, g, r, d]; zeros beyond the ends of x: they add to no gradient."""
    n, b, kv, groups, size, d = blocks.shape
    stop = start + n * size
    piece = x[:, :, max(0, start) : max(0, stop)]
    if piece.shape[2] < n * size:
        front = min(n * size, max(0, -start))
        piece = F.pad(piece, (0, 0, front, n * size - front - piece.shape[2]))
    blocks.copy_(piece.reshape(b, kv, groups, n, size, d).permute(3, 0, 1, 2, 4, 5))


def _store(x: Tensor, start: int, blocks: Tensor) -> None:
    """The way back from `_fill`."""
    n, b, kv, groups, size, d = blocks.shape
    x[:, :, start : start + n * size].view(b, kv, groups, n, size, d).copy_(blocks.permute(1, 2, 3, 0, 4, 5))


def _hide(weights: Tensor, starts: Tensor, past: int, block: int, behind: int) -> None:
    """Zeros for keys before the starts, in weights [n, b, kv, g, r, l] of some blocks of queries and keys `behind`."""
    n, b, size = len(weights), weights.shape[1], weights.shape[-1]
    first = starts[:, block * size : (block + n) * size]
    first = F.pad(first, (0, n * size - first.shape[1])).view(b, n, size).transpose(0, 1)  # n b r
    keys = past + torch.arange((block - behind) * size, (block - behind + n) * size, device=starts.device)
    hidden = keys.view(n, 1, 1, size) < first[..., None]  # n b r l
    if hidden.any():
        # Several times as fast as filling, or as exp of minus infinities; what is hidden may be infinite by now.
        limit = weights.new_full((), torch.inf).masked_fill(hidden, 0.0)[:, :, None, None]
        torch.minimum(weights, limit, out=weights)
