"""Rows of attention, exactly: what some queries of one layer give to every key, in float32.

Scores are streamed over keys in blocks with a running log-sum-exp, and for one key-value head at a time: beside the
rows themselves, [heads of the group, rows, keys], nothing grows with the context (SPEC A4).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_KEYS = 4096
"""Keys that are turned to float32 at a time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Captured:
    """What a layer had when it attended: some of its queries, and every key that it kept."""

    layer: int
    queries: Tensor
    """[h, r, d], as the layer uses them: normed and rotated."""
    keys: Tensor
    """[kv, k, d], the same."""
    positions: Tensor
    """[r], where the queries stand in the sequence."""
    first_key: int
    """Where the first of the keys stands; the others follow it without a gap."""
    scale: float
    """Of the products of queries and keys."""
    window: int | None = None
    """Visible keys, the query's own included; None: all before it. Not looked at where there is a `mask`."""
    mask: Tensor | None = None
    """[r, k] or [h, r, k]: bool, True where the query sees the key, or numbers that are added to the scores."""
    softcap: float | None = None
    """c of ``c * tanh(score / c)``."""
    sinks: Tensor | None = None
    """[h], learned scores that take part in the softmax and belong to no key (gpt-oss)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """Attention of some queries of some heads of one layer."""

    probabilities: Tensor
    """[h, r, k], float32. A row sums to 1, less what its learned sink takes; 0 where the query does not see the key.
    A query that sees no key has zeros."""
    positions: Tensor
    """[r], where the queries stand in the sequence."""
    first_key: int
    """Where the first key stands."""
    sink: Tensor
    """[h, r], what the learned sink takes; 0 where there is none."""

    def columns(self, span: tuple[int, int]) -> slice:
        """The keys of `span` [begin, end) of the sequence that are here, as columns."""
        kept = self.probabilities.shape[-1]
        begin, end = (min(max(place - self.first_key, 0), kept) for place in span)
        return slice(begin, end)


def rows_by_group(captured: Captured, *, block_keys: int = BLOCK_KEYS) -> Iterator[Rows]:
    """The rows of all heads, in the order of the heads, those that share a key-value head at a time."""
    groups = captured.keys.shape[0]
    size = captured.queries.shape[0] // groups
    for group in range(groups):
        yield _rows(captured, group, slice(group * size, (group + 1) * size), block_keys)


def _rows(captured: Captured, group: int, mine: slice, block_keys: int) -> Rows:
    """Of the heads `mine`, whose keys are those of `group`."""
    keys = captured.keys[group]  # k d
    queries = captured.queries[mine].float() * captured.scale  # g r d
    g, r = queries.shape[:2]
    scores = queries.new_empty(g, r, len(keys))
    best = queries.new_full((g, r, 1), -torch.inf)
    total = queries.new_zeros(g, r, 1)
    if captured.sinks is not None:
        best = captured.sinks[mine].to(queries)[:, None, None].expand(g, r, 1)
        total += 1.0
    for start in range(0, len(keys), block_keys):
        block = slice(start, min(start + block_keys, len(keys)))
        part = torch.matmul(queries, keys[block].float().T)  # g r b
        if captured.softcap is not None:
            part.div_(captured.softcap).tanh_().mul_(captured.softcap)
        _mask(part, captured, mine, block)
        scores[..., block] = part
        above = torch.maximum(best, part.amax(-1, keepdim=True))
        finite = above.clamp_min(torch.finfo(torch.float32).min)  # a row that has seen nothing yet
        total = total * (best - finite).exp() + (part - finite).exp_().sum(-1, keepdim=True)
        best = above
    lse = torch.where(total > 0, best + total.log(), 0.0)  # a row that sees nothing is all -inf: it becomes zeros
    sink = torch.zeros_like(lse[..., 0])
    if captured.sinks is not None:
        sink = (captured.sinks[mine].to(lse)[:, None] - lse[..., 0]).exp()
    return Rows(
        probabilities=scores.sub_(lse).exp_(), positions=captured.positions, first_key=captured.first_key, sink=sink
    )


def _mask(part: Tensor, captured: Captured, mine: slice, block: slice) -> None:
    """Put -inf (or add what the mask has) where the scores `part` [g, r, b] are of keys that are not seen."""
    mask = captured.mask
    if mask is None:
        places = torch.arange(block.start, block.stop, device=part.device) + captured.first_key
        behind = captured.positions.to(part.device)[:, None] - places  # r b
        hidden = behind < 0 if captured.window is None else (behind < 0) | (behind >= captured.window)
        part.masked_fill_(hidden, -torch.inf)
        return
    mask = (mask[mine] if mask.dim() == 3 and mask.shape[0] > 1 else mask)[..., block]
    if mask.dtype == torch.bool:
        part.masked_fill_(~mask, -torch.inf)
    else:
        part.add_(mask)
