"""Attention with any bounds by torch's FlexAttention: compiled on CUDA, for windows, starts and rows, with gradients.

Whatever is asked, each query sees one stretch of keys, from its first to its last. Two short tensors say which, so that
one compiled kernel serves every window, offset and document. It refuses gradients on CPU, where torch has none; there it
holds all scores and is for tests.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.errors import ConfigError
from rnope.kernels.request import HALVES, Request, refused

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys of a block of the mask; blocks outside all stretches cost nothing."""
SMALLEST_HEAD = 16
"""Of a matrix product on CUDA."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, starts: Tensor | None, rows: Tensor | None
) -> Tensor:
    """`rnope.kernels.attend` where `refusal` is None."""
    tq, tk = q.shape[2], k.shape[2]
    if starts is None and rows is None and not torch.compiler.is_compiling():
        mask = _ordered_mask(window, tq, tk, q.device)
    else:
        mask = block_mask(*stretches(window, tq, tk, q.device, starts, rows), tk)
    out: Tensor = kernel(q.device.type)(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out


def refusal(request: Request) -> ConfigError | None:
    """An error where torch can neither compile nor emulate it."""
    kind = request.device.type
    if kind == "cpu":
        return refused("flex", "has no gradients on cpu", "Use 'auto', or no_grad.") if request.grad else None
    if kind != "cuda":
        return refused("flex", f"runs on cuda and cpu, and this is {kind}")
    if request.dtype not in (*HALVES, torch.float32):
        dtype = str(request.dtype).removeprefix("torch.")
        return refused("flex", f"has no kernel for {dtype} on cuda", "Use bfloat16, or 'auto'.")
    if request.head_size < SMALLEST_HEAD:
        return refused("flex", f"takes heads of {SMALLEST_HEAD} or more on cuda, and these have {request.head_size}")
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return refused("flex", "is compiled by Triton, which is not installed", "Install triton, or use 'auto'.")
    return None


def stretches(
    window: int | None, tq: int, tk: int, device: torch.device, starts: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """First visible key, int32 [tq], or [b, tq] with `starts`, and last, int32 [tq], of each query; first > last is none.

    See `rnope.kernels.reference.visible`, which says the same of each pair.
    """
    last = torch.arange(tk - tq, tk, device=device) if rows is None else rows
    first = torch.zeros_like(last) if window is None else (last - window + 1).clamp_(min=0)
    if starts is not None:
        first = torch.maximum(first, starts)
    return first.int(), last.int()


def block_mask(first: Tensor, last: Tensor, tk: int) -> "BlockMask":
    """The mask of `stretches`: which blocks of keys a block of queries needs in part, which in full."""
    from torch.nn.attention.flex_attention import BlockMask

    low, high = _edges(first, "least", tk), _edges(last, "most", -1)  # …b Q 1
    begin = torch.arange(0, tk, BLOCK, device=last.device)  # K
    end = begin + BLOCK - 1
    needed = (end >= low) & (begin <= high)
    # Blocks with a ragged end are never full: beyond it there is nothing to see.
    full = (begin >= _edges(first, "most", tk)) & (end <= _edges(last, "least", -1))
    parts = (_listed(x.view(-1, 1, *x.shape[-2:])) for x in (needed & ~full, full))
    (counts, blocks), (full_counts, full_blocks) = parts

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j >= first[i]) & (j <= last[i])

    def sees_from_start(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j >= first[b, i]) & (j <= last[i])

    return BlockMask.from_kv_blocks(
        counts,
        blocks,
        full_counts,
        full_blocks,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if first.ndim == 1 else sees_from_start,
        seq_lengths=(len(last), tk),
    )


def _edges(bounds: Tensor, which: str, missing: int) -> Tensor:
    """[…, tq] to the least or most of each block of queries [… Q 1]; `missing` stands for queries beyond the last."""
    whole = F.pad(bounds, (0, -bounds.shape[-1] % BLOCK), value=missing).unflatten(-1, (-1, BLOCK))
    return whole.amin(-1, keepdim=True) if which == "least" else whole.amax(-1, keepdim=True)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [b, 1, Q] of the set entries in bool [b, 1, Q, K], and their places in order, followed by the others."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int(), order.int()


@lru_cache(maxsize=64)
def _ordered_mask(window: int | None, tq: int, tk: int, device: torch.device) -> "BlockMask":
    with torch.inference_mode(False):  # Kept for later calls, which may save it for a backward pass.
        return block_mask(*stretches(window, tq, tk, device, None, None), tk)


def kernel(device: str) -> Callable[..., Any]:
    """`flex_attention` for a kind of device: compiled on CUDA, where it must not fall back to holding all scores."""
    from torch.nn.attention.flex_attention import flex_attention  # Takes more than a second to import.

    if device != "cuda" or torch.compiler.is_compiling():
        return flex_attention
    return _compiled()


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return compiled
