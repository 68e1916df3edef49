"""Sequence parallelism for hybrid attention (SPEC T7): each rank of a group holds an equal share of every row, in order.

All but attention works on single tokens and needs nothing. A full layer trades shares for heads and back, all to all. A
sliding layer needs only the window - 1 keys and values that stand before a rank's share; they travel from the ranks
that hold them, and their gradients travel back, so that what is sent does not grow with the row:

    window 5, shares of 3 tokens      rank 0  rank 1  rank 2
    what rank 2's queries may see      . . 2   3 4 5   6 7 8      the first of them, 6, sees 2 3 4 5 6:
                                                                 4 keys travel, in two hops

It knows `attend` and the layers' facts, and nothing of how weights are shared. Every rank of the group must call it as
often as the others, with shares of one size.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rnope.config.execution import check_heads
from rnope.kernels import attend
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec, ModelConfig
from rnope.parallel.mesh import Mesh

BOUND_BYTES = 4
"""Starts travel as int32: rows are shorter than 2^31."""


class Sent(NamedTuple):
    """Bytes that one rank sends to others for one layer and one batch."""

    forward: int
    backward: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """What this rank has sent to others. Blocks that are compiled are not counted; recomputed ones twice."""

    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(``"full"`` or ``"window"``, ``"forward"`` or ``"backward"``) -> bytes."""

    def add(self, kind: str, direction: str, packed: Tensor, sizes: list[int], rank: int) -> None:
        """Note that `packed` went out in pieces of `sizes`, of which the one to `rank` itself does not count."""
        if not torch.compiler.is_compiling():
            row = packed[:1].numel() * packed.element_size()
            self.bytes[kind, direction] += row * (sum(sizes) - sizes[rank])


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceParallel:
    """`rnope.kernels.attend` over shares of rows: one object serves all layers, so that compilers see one function."""

    group: dist.ProcessGroup
    ranks: int
    rank: int
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        starts: Tensor | None,
        rows: Tensor | None,
        backend: str,
    ) -> Tensor:
        """As `attend`, where q [b, h, s, d], k and v [b, kv, s, d] are this rank's share, and `starts` [b, s] count from
        the beginning of the row."""
        assert rows is None and q.shape[2] == k.shape[2], "every position of a share is a query"
        if window is None:
            return self._full(q, k, v, starts, backend)
        return self._windowed(q, k, v, window, starts, backend)

    def _full(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, backend: str) -> Tensor:
        n, heads, tokens = self.ranks, q.shape[1] // self.ranks, q.shape[2]
        if k.shape[1] < n:  # Each rank needs a key-value head of its own: that of its query heads.
            k, v = (x.repeat_interleave(n // x.shape[1], dim=1) for x in (k, v))
        keys = k.shape[1] // n
        packed = torch.cat([x.unflatten(1, (n, -1)).transpose(0, 1) for x in (q, k, v)], dim=2)  # n b h s d
        traded = self._trade(packed)
        whole = traded.permute(1, 2, 0, 3, 4).flatten(2, 3)  # b h t d
        if starts is not None:
            starts = self._gathered(starts)
        q, k, v = whole.split((heads, keys, keys), dim=1)
        mixed = attend(q, k, v, window=None, starts=starts, backend=backend)
        packed = mixed.unflatten(2, (n, tokens)).permute(2, 0, 3, 1, 4)  # n b s h d
        return self._trade(packed).permute(1, 2, 0, 3, 4).flatten(2, 3).transpose(1, 2)

    def _trade(self, packed: Tensor) -> Tensor:
        """Give packed[i] to rank i, and get what it has for this one in its place."""
        each = [1] * self.ranks
        out: Tensor = Exchange.apply(packed, each, each, self, "full")
        return out

    def _gathered(self, starts: Tensor) -> Tensor:
        """The starts of the whole row."""
        packed = starts.to(torch.int32).expand(self.ranks, -1, -1).contiguous()  # n b s
        self.ledger.add("full", "forward", packed, [1] * self.ranks, self.rank)
        out = torch.empty_like(packed)
        dist.all_to_all_single(out, packed, group=self.group)
        return out.transpose(0, 1).flatten(1).to(starts.dtype)

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor, window: int, starts: Tensor | None, backend: str) -> Tensor:
        tokens = k.shape[2]
        lengths = hops(window, tokens, self.ranks)
        before = sum(lengths[: self.rank])
        if lengths:
            near = torch.stack([x[:, :, tokens - lengths[0] :] for x in (k, v)]).permute(3, 0, 1, 2, 4)  # s 2 b kv d
            mine = lengths[: self.ranks - 1 - self.rank]
            packed = torch.cat([near[len(near) - length :] for length in mine]) if mine else near[:0]
            out, back = ([0] * self.ranks for _ in range(2))
            for hop, length in enumerate(lengths, start=1):
                if self.rank + hop < self.ranks:
                    out[self.rank + hop] = length
                if hop <= self.rank:
                    back[self.rank - hop] = length
            # Also where nothing arrives or leaves: all ranks take part, and again in the backward pass.
            halo = Exchange.apply(packed, out, back, self, "window").permute(1, 2, 3, 0, 4)  # 2 b kv s d
            k, v = (torch.cat(pair, dim=2) for pair in zip(halo, (k, v), strict=True))
        if starts is not None:
            starts = (starts - (self.rank * tokens - before)).clamp(min=0)
        return attend(q, k, v, window=window, starts=starts, backend=backend)


class Exchange(torch.autograd.Function):
    """``Exchange.apply(packed, out, back, parallel, kind)``: the first out[0] entries of `packed` go to rank 0, the next
    out[1] to rank 1 and so on; back[i] entries arrive from rank i, in order of ranks. Gradients go the same way back."""

    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, out: list[int], back: list[int], parallel: SequenceParallel, kind: str
    ) -> Tensor:
        ctx.sizes, ctx.parallel, ctx.kind = (out, back), parallel, kind
        return _exchanged(packed, out, back, parallel, kind, "forward")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, back = ctx.sizes
        return _exchanged(grad, back, out, ctx.parallel, ctx.kind, "backward"), None, None, None, None


def _exchanged(
    packed: Tensor, out: list[int], back: list[int], parallel: SequenceParallel, kind: str, direction: str
) -> Tensor:
    packed = packed.contiguous()  # First: what is made like it would inherit its strides, and be filled in their order.
    parallel.ledger.add(kind, direction, packed, out, parallel.rank)
    received = packed.new_empty(sum(back), *packed.shape[1:])
    dist.all_to_all_single(received, packed, back, out, group=parallel.group)
    return received


def hops(window: int, tokens: int, ranks: int) -> list[int]:
    """How many of its last keys a rank sends to the next rank, the one after, and so on, where shares have `tokens`."""
    reach = window - 1
    return [min(tokens, reach - far) for far in range(0, min(reach, (ranks - 1) * tokens), tokens)]


def share_rows(model: Decoder, mesh: Mesh) -> SequenceParallel:
    """Have each rank of `mesh`'s sequence groups hold its share of every row.

    Raises:
        ConfigError: a full layer's heads cannot be shared by so many ranks.
    """
    check_heads(model.config, mesh.degree)
    parallel = SequenceParallel(group=mesh.sequence_group, ranks=mesh.degree, rank=mesh.place)
    for block in model.blocks:
        block.attention.attend = parallel
    return parallel


def sent_bytes(
    spec: LayerSpec,
    config: ModelConfig,
    *,
    rows: int,
    row_tokens: int,
    ranks: int,
    rank: int,
    bytes_per_value: int,
    starts: bool = False,
) -> Sent:
    """Bytes that `rank` of `ranks` sends to others for one layer, by formula; what a `Ledger` counts.

    Args:
        spec: the layer.
        config: the model, for its heads.
        rows: at once.
        row_tokens: of the whole row.
        bytes_per_value: of activations: 2 or 4.
        starts: whether there are document bounds.
    """
    tokens = row_tokens // ranks
    head = rows * tokens * config.head_size * bytes_per_value  # one head of a share
    if spec.window is None:
        mine = config.heads // ranks
        keys = max(1, config.kv_heads // ranks)
        traded = (ranks - 1) * (2 * mine + 2 * keys) * head
        return Sent(traded + starts * (ranks - 1) * rows * tokens * BOUND_BYTES, traded)
    lengths = hops(spec.window, tokens, ranks)
    token = 2 * rows * config.kv_heads * config.head_size * bytes_per_value
    return Sent(token * sum(lengths[: ranks - 1 - rank]), token * sum(lengths[:rank]))
