"""`attend`: what each query sees, against independent oracles; what is refused, and how."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.errors import ConfigError
from rnope.kernels import attend
from rnope.kernels.attend import BACKENDS

BACKEND_NAMES = sorted(BACKENDS)


def inputs(b: int, h: int, kv: int, tq: int, tk: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tq * 1000 + tk)
    shapes = ((b, h, tq, d), (b, kv, tk, d), (b, kv, tk, d))
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def keys_that_matter(window: int | None, backend: str, tq: int, tk: int, **more: Any) -> Tensor:
    """bool [tq, tk]: where the weight of a key is not zero, read off from one-hot values."""
    q, k, _ = inputs(1, 2, 2, tq, tk, tk)
    v = torch.eye(tk, dtype=q.dtype).expand(1, 2, tk, tk)
    weights = attend(q, k, v, window=window, backend=backend, **more)[0]  # h tq tk
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, tq, dtype=q.dtype))
    assert torch.equal(weights[0] != 0, weights[1] != 0)
    return weights[0] != 0


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("tk", [40, 200])
def test_a_window_counts_the_query_itself(backend: str, tk: int) -> None:
    for window in (1, 2, 7, 8, 9, 16, 17, tk - 1, tk, tk + 1, None):
        for tq in (tk, 9, 1):
            seen = keys_that_matter(window, backend, tq, tk)
            for row, position in enumerate(range(tk - tq, tk)):
                first = 0 if window is None else max(0, position - window + 1)
                assert seen[row].nonzero().flatten().tolist() == list(range(first, position + 1))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("window", [None, 5])
def test_starts_and_rows_choose_keys(backend: str, window: int | None) -> None:
    rows, starts = torch.tensor([30, 3, 17, 3]), torch.tensor([[28, 0, 17, 2]])
    seen = keys_that_matter(window, backend, 4, 40, rows=rows, starts=starts)
    for row, (position, start) in enumerate(zip(rows.tolist(), starts[0].tolist(), strict=True)):
        first = max(start, 0 if window is None else position - window + 1)
        assert seen[row].nonzero().flatten().tolist() == list(range(first, position + 1))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("tq", [96, 20])
def test_no_query_hears_from_the_future_or_from_behind_its_window(backend: str, window: int | None, tq: int) -> None:
    q, k, v = inputs(1, 4, 2, tq, 96, 16)
    before = attend(q, k, v, window=window, backend=backend)
    changed = 85
    k[:, :, changed], v[:, :, changed] = 9.0, -9.0
    after = attend(q, k, v, window=window, backend=backend)
    moved = (before != after).any(-1).any(1)[0].nonzero().flatten() + 96 - tq
    assert moved.tolist() == list(range(changed, 96 if window is None else changed + window))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize(
    ("tq", "tk", "window"), [(70, 70, None), (70, 70, 11), (200, 200, 3), (33, 70, 20), (1, 70, 9)]
)
def test_equals_torch_with_an_explicit_mask(backend: str, tq: int, tk: int, window: int | None) -> None:
    q, k, v = inputs(2, 4, 2, tq, tk, 16)
    ahead = torch.arange(tk - tq, tk)[:, None] - torch.arange(tk)
    mask = (ahead >= 0) & (ahead < (window or tk))
    wide_k, wide_v = (x[:, [0, 0, 1, 1]] for x in (k, v))  # Query heads 0 and 1 read head 0.
    expected = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, window=window, backend=backend), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tq", "tk", "window"), [(40, 40, 7), (150, 150, 7), (150, 150, 150), (20, 150, 60)])
def test_a_query_that_sees_nothing_gets_zeros(backend: str, dtype: torch.dtype, tq: int, tk: int, window: int) -> None:
    tensors = [x.requires_grad_() for x in inputs(2, 2, 1, tq, tk, 16, dtype)]
    padding = torch.tensor([tk - tq + 5, 0])[:, None].expand(2, tq)
    out = attend(*tensors, window=window, starts=padding, backend=backend)
    assert out.dtype == dtype and out.isfinite().all()
    assert not out[0, :, :5].any() and out[0, :, 5:].any(-1).all() and out[1].any(-1).all()
    with torch.autograd.set_detect_anomaly(True):
        gradients = torch.autograd.grad(out.float().square().sum(), tensors)
    assert all(x.isfinite().all() for x in gradients)
    assert not gradients[0][0, :, :5].any() and not gradients[1][0, :, : tk - tq + 5].any()


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize(("tq", "tk", "window"), [(60, 60, 9), (300, 300, 9), (90, 300, None), (300, 300, 100)])
def test_bfloat16_is_close_to_float32(backend: str, tq: int, tk: int, window: int | None) -> None:
    tensors = [x.bfloat16().requires_grad_() for x in inputs(2, 4, 2, tq, tk, 32, torch.float32)]
    wide = [x.detach().float().requires_grad_() for x in tensors]
    results = []
    for these, name in ((tensors, backend), (wide, "reference")):
        out = attend(*these, window=window, backend=name)
        results.append((out, *torch.autograd.grad(out.float().sum(), these)))
    for small, exact in zip(*results, strict=True):
        assert small.dtype == torch.bfloat16
        torch.testing.assert_close(small.float(), exact, rtol=0.03, atol=0.03)


def test_auto_takes_the_first_backend_that_does_not_refuse() -> None:
    q, k, v = (x.to("meta") for x in inputs(1, 2, 2, 8, 8, 4))
    starts = torch.zeros(1, 8, dtype=torch.int64, device="meta")
    for window, more in itertools.product((None, 3), ({}, {"starts": starts})):
        assert attend(q, k, v, window=window, **more).shape == q.shape
    with pytest.raises(ConfigError, match=r"backend = 'blockwise': .*meta.*Use 'reference'"):
        attend(q, k, v, starts=starts, backend="blockwise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "blockwize"}, "no such attention backend. Did you mean 'blockwise'?"),
        ({"window": 0}, "window = 0: must be at least 1"),
        ({"q": torch.zeros(1, 3, 8, 4)}, "must divide the number of query heads, 3"),
        ({"q": torch.zeros(3, 8, 4)}, "q.shape"),
        ({"q": torch.zeros(1, 2, 8, 4, dtype=torch.float64)}, "one floating dtype"),
        ({"q": torch.zeros(1, 2, 8, 4, device="meta")}, "one device"),
        ({"q": torch.zeros(1, 2, 9, 4)}, "more queries than the 8 keys"),
        ({"q": torch.zeros(2, 2, 8, 4)}, "k, v"),
        ({"v": torch.zeros(1, 2, 7, 4)}, "k, v"),
        ({"starts": torch.zeros(8, dtype=torch.int64)}, r"starts = .*int64 \[1, 8\]"),
        ({"starts": torch.zeros(1, 8)}, r"starts = .*int64 \[1, 8\]"),
        ({"rows": torch.arange(7)}, r"rows = .*int64 \[8\]"),
        ({"rows": torch.arange(1, 9)}, r"rows = \(1, 8\): must lie in 0 … 7"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    q, k, v = (torch.zeros(1, 2, 8, 4) for _ in range(3))
    with pytest.raises(ConfigError, match=message):
        attend(**({"q": q, "k": k, "v": v} | change))
