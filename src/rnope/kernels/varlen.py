"""Windowed attention on CUDA by `torch.nn.attention.varlen`: FlashAttention, which skips keys outside the window.

It knows sequences packed one after another, all of one length here. It refuses starts and rows (those are masks, and
FlashAttention has none), 32-bit numbers, and every device but CUDA.
"""

from typing import Any

import torch
from torch import Tensor

from rnope.errors import ConfigError
from rnope.kernels.request import Request, refused, without_flash

ASKS_ABOUT_GROUPS = [int(x) for x in torch.__version__.split(".")[:2]] >= [2, 12]
"""Whether `varlen_attn` has `enable_gqa`; before, it groups heads unasked."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` where `refusal` is None."""
    from torch.nn.attention.varlen import varlen_attn  # Takes more than a second to import.

    b, h, tq, d = q.shape
    mixed = varlen_attn(**arguments(q, k, v, window))  # b·tq h d
    assert isinstance(mixed, Tensor)
    return mixed.view(b, tq, h, d).transpose(1, 2)


def arguments(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> dict[str, Any]:
    """What `varlen_attn` is called with. It aligns the last query with the last key, as `attend` does."""
    b, _, tq, _ = q.shape
    reach = k.shape[2] if window is None else min(k.shape[2], tq + window - 1)  # The keys that any query sees.
    return {
        "query": _packed(q),
        "key": _packed(k[:, :, -reach:]),
        "value": _packed(v[:, :, -reach:]),
        "cu_seq_q": torch.arange(0, b * tq + 1, tq, dtype=torch.int32, device=q.device),
        "cu_seq_k": torch.arange(0, b * reach + 1, reach, dtype=torch.int32, device=q.device),
        "max_q": tq,
        "max_k": reach,
        "window_size": (-1 if window is None else window - 1, 0),  # Keys to the left of the query's own, and right.
    } | ({"enable_gqa": True} if ASKS_ABOUT_GROUPS else {})


def refusal(request: Request) -> ConfigError | None:
    """An error where FlashAttention cannot be had or cannot say what is asked."""
    if request.device.type != "cuda":
        return refused("varlen", f"runs on cuda only, and this is {request.device.type}")
    if request.starts or request.rows:
        given = "starts" if request.starts else "rows"
        return refused("varlen", f"knows no bounds but window and order, and here are {given}", "Use 'flex' or 'auto'.")
    return without_flash("varlen", request)


def _packed(x: Tensor) -> Tensor:
    """[b, n, t, d] as [b·t, n, d], with the numbers of a head side by side; a view where strides allow it."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat if flat.stride(-1) == 1 else flat.contiguous()
