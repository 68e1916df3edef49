"""Full-span attention by torch's `scaled_dot_product_attention`: on CUDA cuDNN or FlashAttention, no mask in memory.

It knows the two causal requests that such kernels know, the square and the last queries of longer keys, and the single
query of decoding, which needs no mask at all: there a window is a slice of the keys. It refuses windows and starts
otherwise, and query positions in any order. On CPU it is for tests: there the last queries get a mask.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.errors import ConfigError
from rnope.kernels.request import Request, refused, without_flash


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` where `refusal` is None."""
    tq, tk, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    if tq == 1:
        return _single(q, k, v, window, starts)
    if tq == tk:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if q.device.type == "cpu":
        seen = torch.ones(tq, tk, dtype=torch.bool).tril_(tk - tq)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
    # `is_causal` above puts the first query at the first key. FlashAttention itself puts the last at the last, which
    # torch says with `causal_lower_right`; that is a tensor subclass, and cannot be made while operations are counted.
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=True)[0]


def _single(q: Tensor, k: Tensor, v: Tensor, window: int | None, starts: Tensor | None) -> Tensor:
    """The newest query of each sequence sees all keys that are left; the heads of a group are rows of one matrix."""
    (b, _, _, d), (kv, tk) = q.shape, k.shape[1:3]
    folded = q.reshape(b, kv, -1, d)  # b kv g d
    if window is not None:
        k, v = k[:, :, -window:], v[:, :, -window:]
    if starts is None:
        return F.scaled_dot_product_attention(folded, k, v).reshape(q.shape)
    # A query that sees nothing is shown everything, then silenced: kernels disagree on rows without keys.
    blind = starts >= tk  # b 1
    seen = (torch.arange(tk - k.shape[2], tk, device=q.device) >= starts) | blind  # b n
    mixed = F.scaled_dot_product_attention(folded, k, v, attn_mask=seen[:, None, None])
    return mixed.masked_fill(blind[:, None, None], 0.0).reshape(q.shape)


def refusal(request: Request) -> ConfigError | None:
    """An error where torch would have no fused kernel, or would need a mask for it."""
    if request.device.type not in ("cuda", "cpu"):
        return refused("sdpa", f"runs on cuda and cpu, and this is {request.device.type}")
    if request.rows:
        return refused("sdpa", "takes queries in their order only, and here are rows")
    if request.single:
        return None
    if request.window is not None or request.starts:
        given = "is a window" if request.window is not None else "are starts"
        return refused("sdpa", f"covers the full span only, and here {given} for more than one query")
    if request.device.type == "cpu":
        return None
    return without_flash("sdpa", request)
