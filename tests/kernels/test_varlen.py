"""What `varlen` hands to torch: packed views, bounds and windows that torch's own function takes."""

import pytest
import torch

from rnope.kernels import varlen


def test_arguments() -> None:
    q, k, v = torch.randn(2, 7, 4, 16).transpose(1, 2), torch.randn(2, 2, 30, 16)[:, :, :20], torch.randn(2, 2, 20, 16)
    given = varlen.arguments(q, k, v, window=5)
    assert given["cu_seq_q"].tolist() == [0, 7, 14] and given["cu_seq_k"].tolist() == [0, 11, 22]
    assert (given["max_q"], given["max_k"], given["window_size"]) == (7, 11, (4, 0))
    assert given["query"].data_ptr() == q.data_ptr()
    assert torch.equal(given["query"][7:], q[1].transpose(0, 1))
    assert torch.equal(given["key"][11:], k[1, :, 9:].transpose(0, 1))
    assert torch.equal(given["value"][:11], v[0, :, 9:].transpose(0, 1))

    full = varlen.arguments(q, k, v, window=None)
    assert (full["max_k"], full["window_size"]) == (20, (-1, 0))
    assert varlen.arguments(q, k, v, window=1)["window_size"] == (0, 0)


@pytest.mark.parametrize("window", [None, 16])
def test_torch_takes_them(window: int | None) -> None:
    """Forward and backward on tensors without numbers: names, dtypes and shapes fit the function of this torch."""
    shapes = ((2, 8, 50, 64), (2, 2, 90, 64), (2, 2, 90, 64))
    tensors = [torch.randn(shape, device="meta", dtype=torch.bfloat16).requires_grad_() for shape in shapes]
    out = varlen.attend(*tensors, window=window, starts=None, rows=None)
    assert out.shape == tensors[0].shape
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert [x.shape for x in gradients] == [x.shape for x in tensors]
