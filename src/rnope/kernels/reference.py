"""The slow twin: causal attention with the whole matrix of scores, every rule written out once.

It supports everything, on any device, differentiably (twice, too), and is what the fast backends are tested against.
It knows nothing of blocks, and refuses nothing.
"""

import torch
from torch import Tensor

from rnope.errors import ConfigError
from rnope.kernels.request import Request


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` by the definition; computes in float32, or float64 where that came in."""
    tq, tk, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    precise = softmax_dtype(q.dtype)
    positions = torch.arange(tk - tq, tk, device=q.device) if rows is None else rows
    seen = visible(positions, torch.arange(tk, device=q.device), window, starts)[:, None]  # b|1 1 tq tk
    keys, values = (x.to(precise).repeat_interleave(groups, dim=1) for x in (k, v))  # b h tk d
    scores = (q.to(precise) @ keys.mT) * q.shape[-1] ** -0.5  # b h tq tk
    # A finite filler and a second mask: a query that sees nothing gets zeros, and finite gradients.
    weights: Tensor = scores.masked_fill(~seen, torch.finfo(precise).min).softmax(-1).masked_fill(~seen, 0.0)
    return (weights @ values).to(q.dtype)


def refusal(request: Request) -> ConfigError | None:
    """None: everything is supported."""
    return None


def visible(positions: Tensor, keys: Tensor, window: int | None, starts: Tensor | None) -> Tensor:
    """Which keys each query sees: the one place that says what causal, window and start mean.

    Args:
        positions: [tq] absolute positions of the queries.
        keys: [n] absolute positions of the keys.
        window: visible keys including the query's own, or None.
        starts: [b, tq] first visible key of each query, or None.

    Returns:
        bool [b, tq, n], or [1, tq, n] without `starts`.
    """
    distance = positions[:, None] - keys  # tq n
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return seen[None] if starts is None else seen & (keys >= starts[..., None])


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """What softmax is computed in: float32, or float64 where the inputs have that."""
    return torch.float64 if dtype == torch.float64 else torch.float32
