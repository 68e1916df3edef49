"""The arithmetic of one tile of attention: a batch of query blocks, each against whole rows of scores.

Shapes are q [n, r, d], k and v [n, l, d], bias [n|1, r, l] of zeros and minus infinities, blind [n|1, r, 1]: true where
a query sees nothing. It does not know which positions these are.
"""

import torch
from torch import Tensor

ALIGNED = 16
"""Tiles whose width is a multiple of this are up to twice as fast: matrix products and softmax have no ragged end."""


def aligned(count: int) -> int:
    """`count`, rounded up to a multiple of `ALIGNED`."""
    return -(-count // ALIGNED) * ALIGNED


def scores(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Scaled and masked scores [n, r, l]."""
    return torch.baddbmm(bias, q, k.mT, alpha=q.shape[-1] ** -0.5)


def weights(masked: Tensor, blind: Tensor | None) -> Tensor:
    """Probabilities of `scores`, in their dtype; zeros for the blind."""
    chances = masked.softmax(-1)  # Which computes in float32 for 16 bits.
    return chances if blind is None else chances.masked_fill_(blind, 0.0)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, chances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from that of the output, `grad` [n, r, d], and the `weights`."""
    scale = q.shape[-1] ** -0.5
    dscores = torch._softmax_backward_data(grad @ v.mT, chances, -1, chances.dtype)
    return (dscores @ k).mul_(scale), (dscores.mT @ q).mul_(scale), chances.mT @ grad


def spread(mask: Tensor, heads: int, groups: int) -> Tensor:
    """A mask [b, …, r, l] for all key-value heads, the heads of a group as rows: [b·heads·…, groups·r, l]."""
    inner = mask[:, None].unsqueeze(-3)  # b 1 … 1 r l
    shape = (mask.shape[0], heads, *mask.shape[1:-2], groups, *mask.shape[-2:])
    return inner.expand(shape).flatten(-3, -2).flatten(0, -3)
