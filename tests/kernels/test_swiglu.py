"""SwiGLU equals the formula, forward and backward, bit for bit, and keeps two tensors."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.kernels import swiglu


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(2, 7, 33, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_formula_bit_for_bit(dtype: torch.dtype) -> None:
    *pair, grad = (x.to(dtype) for x in inputs())
    gate, up = (x.requires_grad_() for x in pair)
    found = []
    for product in (swiglu(gate, up), F.silu(gate) * up):
        found.append((product.detach(), *torch.autograd.grad(product, (gate, up), grad)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(swiglu(gate.detach(), up.detach()), found[0][0])


def test_it_keeps_gate_and_up_alone() -> None:
    gate, up, _ = (x.requires_grad_() for x in inputs())
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        swiglu(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])


def test_gradients_are_those_of_differences() -> None:
    gate, up, _ = (x.requires_grad_() for x in inputs())
    assert torch.autograd.gradcheck(swiglu, (gate, up), fast_mode=True)
