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
    """[h, r, k], float32. A row sums to 1, less what its learned sink takes; 0 where the query does not see the key."""
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
    heads, groups = captured.queries.shape[0], captured.keys.shape[0]
    size = heads // groups
    for group in range(groups):
        mine = slice(group * size, (group + 1) * size)
        probabilities, sink = _softmax_rows(captured, mine, captured.keys[group], block_keys)
        yield Rows(
            probabilities=probabilities, positions=captured.positions, first_key=captured.first_key, sink=sink
        )  # fmt: skip


def _softmax_rows(captured: Captured, mine: slice, keys: Tensor, block_keys: int) -> tuple[Tensor, Tensor]:
    """Probabilities [g, r, k] of the heads `mine` against their `keys` [k, d], and the sink's [g, r]."""
    queries = captured.queries[mine].float() * captured.scale  # g r d
    g, r = queries.shape[:2]
    scores = queries.new_empty(g, r, len(keys))
    best = queries.new_full((g, r, 1), -torch.inf)
    total = queries.new_zeros(g, r, 1)
    if captured.sinks is not None:
        best = captured.sinks[mine].to(queries).view(g, 1, 1).expand(g, r, 1).clone()
        total += 1.0
    for start in range(0, len(keys), block_keys):
        block = slice(start, min(start + block_keys, len(keys)))
        part = torch.matmul(queries, keys[block].float().T)  # g r b
        if captured.softcap is not None:
            part = captured.softcap * torch.tanh(part / captured.softcap)
        part = _masked(part, captured, mine, block)
        scores[..., block] = part
        above = torch.maximum(best, part.amax(-1, keepdim=True))
        finite = above.clamp_min(torch.finfo(torch.float32).min)  # a row that has seen nothing yet
        total = total * (best - finite).exp() + (part - finite).exp().sum(-1, keepdim=True)
        best = above
    lse = best + total.log()
    sink = torch.zeros(g, r, device=scores.device)
    if captured.sinks is not None:
        sink = (captured.sinks[mine].to(lse).view(g, 1) - lse[..., 0]).exp()
    return scores.sub_(lse).exp_(), sink


def _masked(part: Tensor, captured: Captured, mine: slice, block: slice) -> Tensor:
    """Scores [g, r, b] of the keys `block`, -inf (or what the mask adds) where they are not seen."""
    mask = captured.mask
    if mask is None:
        places = torch.arange(block.start, block.stop, device=part.device) + captured.first_key
        behind = captured.positions.to(part.device)[:, None] - places  # r b
        seen = behind >= 0 if captured.window is None else (behind >= 0) & (behind < captured.window)
        return part.masked_fill(~seen, -torch.inf)
    mask = (mask[mine] if mask.dim() == 3 and mask.shape[0] > 1 else mask)[..., block]
    return part.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else part + mask.float()
