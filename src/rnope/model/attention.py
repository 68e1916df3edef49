"""Attention of one layer: projections, the layer's position rule, and `attend`. It knows its `LayerSpec` and no other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnope.kernels import attend
from rnope.model.rope import rotate
from rnope.model.spec import LayerSpec, ModelConfig

RotaryTables = dict[float, tuple[Tensor, Tensor]]
"""theta -> (cos, sin) for the positions at hand."""


def at_rows(tables: RotaryTables, rows: Tensor) -> RotaryTables:
    """The tables of positions `rows` [r] alone."""
    return {theta: (cos[rows], sin[rows]) for theta, (cos, sin) in tables.items()}


class LayerNorm(nn.Module):
    """Bias-free, mean-subtracting, in float32 (Command R); `shape` may be (heads, head_size), normalised over the last."""

    def __init__(self, *shape: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), eps=self.eps).type_as(x)
        return (F.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * self.weight.float()).type_as(x)


class Attention(nn.Module):
    """Grouped-query attention with the position, window and QK-Norm of `spec`."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head_size = config.head_size
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
        self, x: Tensor, tables: RotaryTables, *, starts: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Mix `x` [b, t, width]; with `rows` [r] only those positions are queries and the result is [b, r, width]."""
        k, v = self.keys_values(x, tables)
        if rows is not None:
            x, tables = x[:, rows], at_rows(tables, rows)
        q = self.queries(x, tables)
        mixed = attend(q, k, v, window=self.spec.window, starts=starts, rows=rows)
        return self.output(mixed.transpose(1, 2).flatten(-2))
