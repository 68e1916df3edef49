"""The fast backend equals its slow twin, forward and backward, on each of its ways; and what it costs."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnope.kernels import attend, blockwise, windowed


def inputs(b: int, h: int, kv: int, tq: int, tk: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries and values as a projection leaves them, [b, t, h, d] transposed; keys contiguous, as after a rotation."""
    generator = torch.Generator().manual_seed(b * 100_000 + tq * 100 + tk)
    q, k, v = (
        torch.randn(b, t, n, d, generator=generator, dtype=dtype).transpose(1, 2)
        for t, n in ((tq, h), (tk, kv), (tk, kv))
    )
    return [q.requires_grad_(), k.contiguous().requires_grad_(), v.requires_grad_()]


def assert_twins(tensors: list[Tensor], tolerance: float, **request: Any) -> None:
    results = []
    for backend in ("blockwise", "reference"):
        out = attend(*tensors, backend=backend, **request)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        results.append((out, *torch.autograd.grad(out, tensors, grad)))
        with torch.no_grad():
            torch.testing.assert_close(attend(*tensors, backend=backend, **request), out)
    for name, fast, slow in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        torch.testing.assert_close(
            fast, slow, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(params=["as measured", "small tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles as they are, and so small that short rows, few heads and small batches cross their borders too."""
    if request.param == "small tiles":
        shrink(monkeypatch)
    yield


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TILE_QUERIES": 8, "TILE_SCORES": 2**9, "TILE_MASK": 2**9, "KEPT_SCORES": 0}.items():
        monkeypatch.setattr(blockwise, name, value)
    for name, value in {"BLOCK": 8, "CHUNK": 2**9, "SCORES": 2**9}.items():
        monkeypatch.setattr(windowed, name, value)


LENGTHS = (1, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 130, 257)


@pytest.mark.parametrize("window", [None, 1, 2, 8, 17, 33, 64, 100, 1000])
def test_square(window: int | None, tiles: None) -> None:
    for t, (h, kv) in itertools.product(LENGTHS, ((2, 2), (4, 2))):
        assert_twins(inputs(2, h, kv, t, t, 8, torch.float64), 1e-10, window=window)


@pytest.mark.parametrize("window", [None, 1, 9, 40])
@pytest.mark.parametrize("documents", [True, False])
def test_starts(window: int | None, documents: bool, tiles: None) -> None:
    for t in (1, 30, 70, 129):
        own = torch.arange(t) // 23 * 23
        left = torch.tensor([0, t // 2, t])[:, None]  # The last row is padding and nothing else.
        starts = own.expand(3, t) if documents else left.expand(3, t)
        assert_twins(inputs(3, 4, 2, t, t, 8, torch.float64), 1e-10, window=window, starts=starts)


@pytest.mark.parametrize("window", [None, 1, 9, 40, 128])
def test_the_last_queries_only(window: int | None, tiles: None) -> None:
    for (tq, tk), padded in itertools.product(((1, 5), (1, 200), (7, 64), (64, 65), (130, 300)), (False, True)):
        starts = torch.tensor([3, 0])[:, None].expand(2, tq) if padded else None
        assert_twins(inputs(2, 4, 2, tq, tk, 8, torch.float64), 1e-10, window=window, starts=starts)


@pytest.mark.parametrize("window", [None, 1, 9, 40])
def test_rows_in_any_order(window: int | None, tiles: None) -> None:
    for tq, tk in ((1, 1), (3, 90), (90, 90), (40, 20)):
        rows = torch.randint(tk, (tq,), generator=torch.Generator().manual_seed(tq))
        for starts in (None, (rows // 10 * 10).expand(2, tq)):
            assert_twins(inputs(2, 4, 2, tq, tk, 8, torch.float64), 1e-10, window=window, rows=rows, starts=starts)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_request(data: st.DataObject) -> None:
    tk, kv, groups = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    tq, b = data.draw(st.integers(1, tk)), data.draw(st.integers(1, 3))
    window = data.draw(st.none() | st.integers(1, tk + 3))
    rows = (
        torch.tensor(data.draw(st.lists(st.integers(0, tk - 1), min_size=tq, max_size=tq)))
        if data.draw(st.booleans())
        else None
    )
    starts = torch.tensor(data.draw(st.lists(st.integers(0, tk), min_size=b, max_size=b)))[:, None].expand(b, tq)
    request = {"window": window, "rows": rows, "starts": starts if data.draw(st.booleans()) else None}
    with pytest.MonkeyPatch.context() as monkeypatch:
        if data.draw(st.booleans()):
            shrink(monkeypatch)
        assert_twins(inputs(b, kv * groups, kv, tq, tk, 4, torch.float64), 1e-10, **request)


@pytest.mark.parametrize(("b", "tq", "tk", "window"), [(2, 128, 128, 8), (1, 1000, 1000, 300), (1, 260, 900, None)])
def test_float32(b: int, tq: int, tk: int, window: int | None) -> None:
    assert_twins(inputs(b, 4, 2, tq, tk, 32, torch.float32), 1e-5, window=window)


@pytest.mark.parametrize(("tq", "tk", "window"), [(300, 300, 150), (300, 300, None), (20, 300, None), (1, 300, None)])
def test_any_strides(tq: int, tk: int, window: int | None) -> None:
    tensors = inputs(1, 2, 2, tq, tk, 8, torch.float64)
    strided = [x.detach().mT.contiguous().mT.requires_grad_() for x in tensors]  # The last dimension is not together.
    expanded = [x.detach()[:1, :1].expand(2, 2, -1, -1).requires_grad_() for x in tensors]
    for these in (strided, expanded):
        assert_twins(these, 1e-10, window=window)


@pytest.mark.parametrize("window", [60, 512])
def test_bfloat16_gradients_are_as_exact_as_16_bits_allow(window: int) -> None:
    tensors = inputs(1, 2, 2, 1200, 1200, 64, torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    results = []
    for these, backend in ((tensors, "blockwise"), (wide, "reference")):
        out = attend(*these, window=window, backend=backend)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
        results.append((out, *torch.autograd.grad(out, these, grad.to(out.dtype))))
    for small, exact in zip(*results, strict=True):
        assert (small - exact).norm() < 0.0065 * exact.norm()


@pytest.mark.parametrize("window", [None, 40])
def test_large_scores_do_not_overflow(window: int | None) -> None:
    q, k, v = inputs(1, 2, 2, 200, 200, 8, torch.float32)
    with torch.no_grad():
        q *= 12.0
        k *= 12.0
    # What a query must not see, and what is far below the largest score, may overflow or vanish on the way.
    assert_twins([q, k, v], 1e-2, window=window)


@pytest.mark.parametrize(
    ("tq", "tk", "window", "kept"), [(40, 40, 3, 2**21), (18, 18, 5, 0), (7, 18, None, 0), (7, 18, 5, 0)]
)
def test_gradients_by_finite_differences(
    tq: int, tk: int, window: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "KEPT_SCORES", kept)
    starts = torch.full((1, tq), 4) if tq < 40 else None
    tensors = inputs(1, 2, 1, tq, tk, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, window=window, starts=starts, backend="blockwise"), tensors, fast_mode=tq == 40
    )


class Work(TorchDispatchMode):
    """Multiply-adds of attention's matrix products, and the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "bmm":
            self.products += args[0].numel() * args[1].shape[-1]
        elif name in ("baddbmm", "baddbmm_"):
            self.products += args[1].numel() * args[2].shape[-1]
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self.products += 2 * args[0].numel() * args[1].shape[2]
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self.products += 5 * args[1].numel() * args[2].shape[2]
        else:
            assert "mm" not in name and "attention" not in name, f"{name} is not counted"
        if isinstance(result, Tensor):  # Memory, since views may overlap.
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.itemsize)
        return result


@pytest.mark.parametrize(("window", "kept"), [(8, 2**30), (8, 0), (128, 0), (200, 0)])
def test_a_window_costs_linear_work(window: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "KEPT_SCORES", kept)
    products, largest = [], []
    for t in (1024, 2048, 4096):
        with Work() as work:
            tensors = inputs(1, 2, 2, t, t, 64, torch.float32)
            attend(*tensors, window=window, backend="blockwise").sum().backward()
        products.append(work.products)
        largest.append(work.largest)
    assert products[2] - products[1] == pytest.approx(2 * (products[1] - products[0]), rel=0.002)  # Blocks are whole.
    # Forward has two products of window + block keys for each query, backward five.
    assert products[2] <= 7 * 2 * 64 * 4096 * (window + 128 + 16)
    assert largest[2] <= 2 * largest[1] <= 4 * largest[0]


@pytest.mark.parametrize(("tq", "kv"), [(1024, 4), (1024, 2), (512, 4), (512, 2), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_span_never_holds_all_scores(tq: int, kv: int, dtype: torch.dtype) -> None:
    with Work() as work:
        tensors = inputs(1, 4, kv, tq, 1024, 8, dtype)
        attend(*tensors, backend="blockwise").sum().backward()
    assert work.largest <= blockwise.TILE_SCORES < 4 * 512 * 1024


MEASURE = """
import torch
from rnope.kernels import attend

def peak():  # Of this program: getrusage's also has the parent's, from before exec.
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

def run(t):
    q, k, v, grad = (torch.randn(1, 12, t, 64) for _ in range(4))
    for x in (q, k, v): x.requires_grad_()
    start = peak()
    out = attend(q, k, v, window=512, backend="blockwise")
    forward = peak() - start - out.nbytes
    gradients = torch.autograd.grad(out, (q, k, v), grad)
    return forward, peak() - start - 4 * out.nbytes

torch.set_num_threads(1)
run(1024)
print(*run(32768))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_window_of_512_at_32768_tokens_needs_less_than_100_mb() -> None:
    """Beyond inputs, output and gradients. Padded copies of K and V would be 200 MB, a mask of all scores 1 GB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    forward, backward = map(int, done.stdout.split())
    assert -1e6 < forward < 100e6 and -1e6 < backward < 100e6, (forward, backward)
