"""Attention of one layer: projections, the layer's position rule, and `attend`. It knows its `LayerSpec` and no other."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnope.kernels import attend
from rnope.model.rope import rotate
from rnope.model.spec import LayerSpec, ModelConfig

RotaryTables = dict[float, tuple[Tensor, Tensor]]
"""theta -> (cos, sin) for the positions at hand, each [t, d / 2], or [b, 1, t, d / 2] where rows differ."""


class LayerMemory(Protocol):
    """Keys and values that one layer keeps of the tokens before these; `rnope.generate.cache` has them."""

    def extend(self, k: Tensor, v: Tensor) -> None:
        """Keep `k` and `v` [b, kv, t, d] without asking anything of them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        """Attention of the last queries, `q` [b, h, tq, d], over what is kept and `k`, `v` [b, kv, t, d]; then these
        are kept, too."""


class Memory(Protocol):
    """What a model keeps of the tokens before these, for all rows of a batch."""

    @property
    def layers(self) -> Sequence[LayerMemory]: ...
    def positions(self, tokens: int) -> Tensor:
        """Positions of the next `tokens` tokens, [t] or [b, t]."""


Rows = Tensor | int
"""Some positions of a sequence: int64 [r], or how many of the last."""


def at_rows(x: Tensor, rows: Rows) -> Tensor:
    """`x` [..., t, n] at `rows` alone, [..., r, n]."""
    return x[..., rows, :] if isinstance(rows, Tensor) else x[..., x.shape[-2] - rows :, :]


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Bias-free, mean-subtracting, in float32 (Command R); `weight` [width], or [heads, head_size] normed over the last."""
    if weight.ndim == 1:
        return F.layer_norm(x.float(), x.shape[-1:], weight.float(), eps=eps).type_as(x)
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * weight.float()).type_as(x)


def tables_at(tables: RotaryTables, rows: Rows) -> RotaryTables:
    """The tables of positions `rows` alone."""
    return {theta: (at_rows(cos, rows), at_rows(sin, rows)) for theta, (cos, sin) in tables.items()}


class LayerNorm(nn.Module):
    """`layer_norm` with its weight, of `shape`."""

    def __init__(self, *shape: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with the position, window and QK-Norm of `spec`."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head_size = config.head_size
        self.backend = "auto"
        """Of `rnope.kernels.attend`."""
        self.attend: Callable[..., Tensor] = attend
        """What mixes queries, keys and values; `rnope.parallel` puts there what does it over several ranks."""
        self.query = nn.Linear(config.width, config.heads * config.head_size, bias=False)
        self.key = nn.Linear(config.width, config.kv_heads * config.head_size, bias=False)
        self.value = nn.Linear(config.width, config.kv_heads * config.head_size, bias=False)
        self.output = nn.Linear(config.heads * config.head_size, config.width, bias=False)
        # One weight per head and channel, as Cohere's use_qk_norm has it.
        self.query_norm = LayerNorm(config.heads, config.head_size, eps=config.norm_eps) if spec.qk_norm else None
        self.key_norm = LayerNorm(config.kv_heads, config.head_size, eps=config.norm_eps) if spec.qk_norm else None

    def queries(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Normed and rotated queries [b, h, t, d] of `x` [b, t, width]; `tables` are for x's positions."""
        return self._placed(self.query(x), self.query_norm, tables)

    def keys_values(self, x: Tensor, tables: RotaryTables) -> tuple[Tensor, Tensor]:
        """Normed and rotated keys, and values, each [b, kv, t, d]."""
        values = self.value(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        return self._placed(self.key(x), self.key_norm, tables), values

    def _placed(self, flat: Tensor, norm: LayerNorm | None, tables: RotaryTables) -> Tensor:
        heads = flat.unflatten(-1, (-1, self.head_size))  # b t h d
        if norm is not None:
            heads = norm(heads)
        heads = heads.transpose(1, 2)  # b h t d
        return heads if self.spec.theta is None else rotate(heads, tables[self.spec.theta])

    def forward(
        self,
        x: Tensor,
        tables: RotaryTables,
        *,
        starts: Tensor | None = None,
        rows: Rows | None = None,
        memory: LayerMemory | None = None,
    ) -> Tensor:
        """Mix `x` [b, t, width]; with `rows` only those positions are queries and the result is [b, r, width].

        `starts` are those of the queries. With a `memory`, `rows` is a number.
        """
        k, v = self.keys_values(x, tables)
        if rows is not None:
            x, tables = at_rows(x, rows), tables_at(tables, rows)
        if memory is not None:
            if x.shape[1] == 0:
                memory.extend(k, v)
                return x
            mixed = memory.attend(self.queries(x, tables), k, v, backend=self.backend)
        else:
            places = rows if isinstance(rows, Tensor) else None
            q = self.queries(x, tables)
            mixed = self.attend(q, k, v, window=self.spec.window, starts=starts, rows=places, backend=self.backend)
        return self.output(mixed.transpose(1, 2).flatten(-2))
