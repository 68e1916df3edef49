"""``silu(gate) * up``, which keeps `gate` and `up` for the backward pass and nothing else."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of two tensors of one shape and dtype. Its gradients cannot be differentiated again."""
    if torch.compiler.is_compiling():  # Compilers find out by themselves what need not be kept.
        return F.silu(gate) * up
    product: Tensor = SwiGLU.apply(gate, up)
    return product


class SwiGLU(torch.autograd.Function):
    """``SwiGLU.apply(gate, up)``. Autograd would keep ``silu(gate)``, too, a sixth of all that a layer keeps."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
