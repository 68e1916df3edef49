"""`Request`: what is asked of attention, without the tensors. By it backends are chosen, and refuse, before they run.

It does not know the backends, nor how long sequences are: one choice holds for a whole run.
"""

from typing import NamedTuple

import torch

from rnope.errors import ConfigError

HALVES = (torch.bfloat16, torch.float16)
"""The dtypes of FlashAttention on CUDA."""
LARGEST_FLASH_HEAD = 256
"""The largest head size of FlashAttention on CUDA, where sizes are multiples of 8."""


class Request(NamedTuple):
    """The facts that decide which backends can answer."""

    device: torch.device
    dtype: torch.dtype
    window: int | None
    head_size: int
    heads: int
    kv_heads: int
    starts: bool
    rows: bool
    grad: bool
    single: bool
    """One query for each sequence, the newest: decoding."""


def refused(backend: str, rule: str, remedy: str = "Use 'auto'.") -> ConfigError:
    """The error of a backend that cannot do what is asked."""
    return ConfigError("backend", backend, rule, remedy)


def without_flash(backend: str, request: Request) -> ConfigError | None:
    """The error where FlashAttention on CUDA is not to be had; a GPU that is not here is taken to have it."""
    if request.dtype not in HALVES:
        dtype = str(request.dtype).removeprefix("torch.")
        rule = f"computes in bfloat16 and float16 on cuda, and this is {dtype}"
        return refused(backend, rule, "Cast, or use 'auto'.")
    if request.head_size > LARGEST_FLASH_HEAD or request.head_size % 8:
        rule = f"takes heads of a multiple of 8 up to {LARGEST_FLASH_HEAD} on cuda, and these have {request.head_size}"
        return refused(backend, rule)
    if torch.cuda.is_available() and not (
        torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(request.device) >= (8, 0)
    ):
        return refused(backend, "needs FlashAttention, which this GPU, or this build of torch, lacks")
    return None
