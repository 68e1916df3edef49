"""Every backend gives what `attend` promises: which keys are seen, in what numbers, with which gradients, at what cost.

On a machine without a GPU `varlen` runs against a stand-in for torch's `varlen_attn`, and `flex` holds all scores.
"""

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rnope.kernels import attend, varlen
from rnope.kernels.attend import BACKENDS, Backend
from rnope.kernels.reference import visible

WIDE, HALF = (torch.float32,), (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernel:
    """A backend on a device, and what it is expected to support there: a backend that refuses all would pass all."""

    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    supports: frozenset[str]

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    def __call__(self, *tensors: Tensor, **request: Any) -> Tensor:
        return attend(*tensors, backend=self.backend, **request)

    def takes(self, *, tq: int, window: int | None = None) -> bool:
        return "windows" in self.supports or window is None or tq == 1

    def inputs(
        self, b: int, h: int, kv: int, tq: int, tk: int, d: int, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """Queries as a projection leaves them, keys and values as a cache has them: a slice of more."""
        generator = torch.Generator().manual_seed(tq * 1000 + tk)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, dtype or self.dtypes[0])

        q = draw(b, tq, h, d).transpose(1, 2)
        k, v = (draw(b, kv, tk + 24, d)[:, :, :tk] for _ in range(2))
        return [q, k, v]

    def index(self, *values: Any) -> Tensor:
        return torch.tensor(*values, device=self.device)


ALL = frozenset({"windows", "starts", "rows", "grad"})
KERNELS = [
    Kernel("reference", "cpu", (*WIDE, torch.float64, *HALF), ALL),
    Kernel("blockwise", "cpu", (*WIDE, torch.float64, *HALF), ALL),
    Kernel("flex", "cpu", (*WIDE, *HALF), ALL - {"grad"}),
    Kernel("sdpa", "cpu", (*WIDE, *HALF), frozenset({"grad"})),
    Kernel("varlen", "cpu", HALF, frozenset({"windows", "grad"})),
    Kernel("reference", "cuda", (*WIDE, *HALF), ALL),
    Kernel("blockwise", "cuda", (*WIDE, *HALF), ALL),
    Kernel("flex", "cuda", (torch.bfloat16, torch.float32), ALL),
    Kernel("sdpa", "cuda", HALF, frozenset({"grad"})),
    Kernel("varlen", "cuda", HALF, frozenset({"windows", "grad"})),
]
# Compilers and kernels warn of matters that are theirs.
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
]


def each(*needs: str) -> pytest.MarkDecorator:
    """Every backend of the machine that supports what a test needs."""
    chosen = [kernel for kernel in KERNELS if kernel.supports.issuperset(needs)]
    params = [
        pytest.param(kernel, id=str(kernel), marks=ON_GPU if kernel.device == "cuda" else []) for kernel in chosen
    ]
    return pytest.mark.parametrize("kernel", params)


def flash_stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """The contract of `varlen_attn`: packed sequences, right ends aligned, `left` and `right` keys beside the own one."""
    assert query.dtype in HALF and query.shape[-1] % 8 == 0 and max(query.stride(-1), key.stride(-1)) == 1
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key)
    left, right = (x if x >= 0 else len(key) for x in window_size)
    out = []
    spans = [list(itertools.pairwise(bounds.tolist())) for bounds in (cu_seq_q, cu_seq_k)]
    for (i, j), (m, n) in zip(*spans, strict=True):
        assert j - i <= max_q and n - m <= max_k
        ahead = torch.arange(j - i)[:, None] + (n - m) - (j - i) - torch.arange(n - m)
        q, k, v = (x.transpose(0, 1) for x in (query[i:j], key[m:n], value[m:n]))
        seen = (ahead <= left) & (-ahead <= right)
        out.append(F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=enable_gqa)[0])
    return torch.cat(out, dim=1).transpose(0, 1)


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a backend needs in order to run, or to seem to."""
    params = getattr(request.node, "callspec", None)
    kernel = params.params.get("kernel") if params else None
    match (kernel and kernel.backend, kernel and kernel.device):
        case "varlen", "cpu":
            as_cuda = Backend(
                run=varlen.attend,
                refusal=lambda asked: varlen.refusal(asked._replace(device=torch.device("cuda"))),
            )
            monkeypatch.setitem(BACKENDS, "varlen", as_cuda)
            monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_stand_in)
        case "flex", "cpu":
            module = importlib.import_module("torch.nn.attention.flex_attention")
            monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        case "flex", "cuda":
            config = importlib.import_module("torch._dynamo.config")
            for limit in ("recompile_limit", "accumulated_recompile_limit"):  # One process has more kinds than any run.
                monkeypatch.setattr(config, limit, 1000)
    yield


def keys_that_matter(kernel: Kernel, window: int | None, tq: int, tk: int, **more: Any) -> Tensor:
    """bool [b, tq, tk]: where the weight of a key is not zero, read off from one-hot values."""
    b = len(more["starts"]) if "starts" in more else 1
    q, k, _ = kernel.inputs(b, 2, 2, tq, tk, 64)
    hot = F.pad(torch.eye(tk, dtype=q.dtype, device=q.device), (0, -tk % 64)).repeat(b, 2, 1, 1)
    weights = torch.cat([kernel(q, k, part, window=window, **more) for part in hot.split(64, -1)], -1)  # b h tq n
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=0.02)
    assert torch.equal(weights[:, 0] != 0, weights[:, 1] != 0)
    assert not weights[..., tk:].any()
    return (weights[:, 0, :, :tk] != 0).cpu()


@each()
@pytest.mark.parametrize("tk", [1, 40, 129, 300])
def test_a_window_counts_the_query_itself(kernel: Kernel, tk: int) -> None:
    windows = {*(w + i for w in (2, 8, 16, 64, 128, tk) for i in (-1, 0, 1) if w + i > 0), 10 * tk}
    for window in (*sorted(windows), None):
        for tq in sorted({tk, min(tk, 133), min(tk, 9), 1}):
            if kernel.takes(tq=tq, window=window):
                seen = keys_that_matter(kernel, window, tq, tk)[0]
                for row, position in enumerate(range(tk - tq, tk)):
                    first = 0 if window is None else max(0, position - window + 1)
                    assert seen[row].nonzero().flatten().tolist() == list(range(first, position + 1))


@each("starts")
@pytest.mark.parametrize("window", [None, 1, 5, 129])
def test_documents_and_padding_hide_keys(kernel: Kernel, window: int | None) -> None:
    tk = 300
    documents = torch.tensor([0] * 130 + [130] * 3 + [133] * 100 + [233] * 67)
    for tq in (tk, 140, 7):
        padding = torch.full((tk,), tk - tq)  # No query here is padding: all weights sum to one.
        starts = torch.stack([documents, padding, torch.zeros_like(padding)])[:, -tq:]
        seen = keys_that_matter(kernel, window, tq, tk, starts=starts.to(kernel.device))
        assert torch.equal(seen, visible(torch.arange(tk - tq, tk), torch.arange(tk), window, starts))


@each("rows")
@pytest.mark.parametrize("window", [None, 5, 200])
def test_rows_are_positions_in_any_order(kernel: Kernel, window: int | None) -> None:
    rows, starts = [290, 3, 170, 3, 131], torch.tensor([[128, 0, 170, 2, 100], [0, 0, 0, 0, 131]])
    for given in (None, starts):
        more = {} if given is None else {"starts": given.to(kernel.device)}
        seen = keys_that_matter(kernel, window, 5, 300, rows=kernel.index(rows), **more)
        assert torch.equal(seen, visible(torch.tensor(rows), torch.arange(300), window, given))


@each()
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("tk", [33, 200])
def test_one_query_as_in_decoding(kernel: Kernel, window: int | None, tk: int) -> None:
    """Here `starts` and a window need no mask of queries, and `sdpa` has them."""
    assert keys_that_matter(kernel, window, 1, tk).sum() == min(window or tk, tk)
    if "starts" in kernel.supports or kernel.backend == "sdpa":
        tensors, starts = kernel.inputs(3, 4, 2, 1, tk, 32), torch.tensor([[0], [tk - 3], [tk]], device=kernel.device)
        out = kernel(*tensors, window=window, starts=starts)
        expected = attend(*(x.float() for x in tensors), window=window, starts=starts, backend="reference")
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
        assert not out[2].any()


@each()
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("tq", [96, 20])
def test_no_query_hears_from_the_future_or_from_behind_its_window(kernel: Kernel, window: int | None, tq: int) -> None:
    if not kernel.takes(tq=tq, window=window):
        return
    q, k, v = kernel.inputs(1, 4, 2, tq, 96, 16)
    before = kernel(q, k, v, window=window)
    changed = 85
    k[:, :, changed], v[:, :, changed] = 9.0, -9.0
    moved = (before != kernel(q, k, v, window=window)).any(-1).any(1)[0].nonzero().flatten() + 96 - tq
    assert moved.tolist() == list(range(changed, 96 if window is None else changed + window))


TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_equals_the_reference(kernel: Kernel, tensors: list[Tensor], **request: Any) -> None:
    """In outputs and gradients, those in precise numbers."""
    dtype = tensors[0].dtype
    precise = torch.float64 if tensors[0].device.type == "cpu" else torch.float32
    grad = "grad" in kernel.supports
    results = []
    for these, backend in ((tensors, kernel.backend), ([x.to(precise) for x in tensors], "reference")):
        leaves = [x.detach().requires_grad_(grad) for x in these]
        out = attend(*leaves, backend=backend, **request)
        assert out.shape == tensors[0].shape and out.dtype == leaves[0].dtype
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(out)
        results.append((out, *(torch.autograd.grad(out, leaves, upstream) if grad else ())))
    for name, fast, slow in zip(("out", "dq", "dk", "dv"), *results, strict=False):
        scale = max(1.0, float(slow.abs().max())) if name != "out" else 1.0
        torch.testing.assert_close(
            fast.to(precise),
            slow,
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype] * scale,
            msg=lambda text, name=name: f"{name} of {request}: {text}",
        )


LENGTHS = ((70, 70, 11), (129, 129, 128), (200, 200, 3), (33, 170, 20), (1, 70, 9), (300, 300, None), (45, 300, None))


@each()
@pytest.mark.parametrize(("tq", "tk", "window"), LENGTHS)
def test_numbers_and_gradients(kernel: Kernel, tq: int, tk: int, window: int | None) -> None:
    if kernel.takes(tq=tq, window=window):
        for dtype in kernel.dtypes:
            assert_equals_the_reference(kernel, kernel.inputs(2, 4, 2, tq, tk, 16, dtype), window=window)


@each()
@pytest.mark.parametrize(("h", "kv"), [(4, 4), (4, 2), (4, 1), (6, 2)])
def test_grouped_heads(kernel: Kernel, h: int, kv: int) -> None:
    for tq, tk, window in ((150, 150, None), (150, 150, 40), (20, 150, None), (1, 150, 40)):
        if kernel.takes(tq=tq, window=window):
            assert_equals_the_reference(kernel, kernel.inputs(2, h, kv, tq, tk, 32), window=window)


@each("starts")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("tq", [150, 40])
def test_numbers_and_gradients_with_starts_and_rows(kernel: Kernel, tq: int, window: int | None) -> None:
    tk = 150
    rows = torch.randint(tk, (tq,), generator=torch.Generator().manual_seed(tq))
    for positions, given in ((torch.arange(tk - tq, tk), None), (rows, rows.to(kernel.device))):
        starts = torch.stack([positions // 23 * 23, torch.full((tq,), 125)]).to(kernel.device)
        tensors = kernel.inputs(2, 4, 2, tq, tk, 16)
        assert_equals_the_reference(kernel, tensors, window=window, starts=starts, rows=given)


@each("starts")
@pytest.mark.parametrize(("tq", "tk", "window"), [(40, 40, 7), (150, 150, 7), (300, 300, None), (20, 150, 60)])
def test_a_query_that_sees_nothing_gets_zeros(kernel: Kernel, tq: int, tk: int, window: int | None) -> None:
    for dtype in (x for x in kernel.dtypes if x in (torch.float32, torch.bfloat16)):
        grad = "grad" in kernel.supports
        tensors = [x.detach().requires_grad_(grad) for x in kernel.inputs(2, 2, 1, tq, tk, 16, dtype)]
        padding = kernel.index([tk - tq + 5, 0])[:, None].expand(2, tq)
        out = kernel(*tensors, window=window, starts=padding)
        assert out.dtype == dtype and out.isfinite().all()
        assert not out[0, :, :5].any() and out[0, :, 5:].any(-1).all() and out[1].any(-1).all()
        if grad:
            gradients = torch.autograd.grad(out.float().square().sum(), tensors)
            assert all(x.isfinite().all() for x in gradients)
            assert not gradients[0][0, :, :5].any() and not gradients[1][0, :, : tk - tq + 5].any()


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made; views of what is there are not."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.there = {x.untyped_storage().data_ptr() for x in there}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.there:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@each()
@pytest.mark.parametrize("tq", [8, 1])
def test_keys_of_a_group_are_not_repeated(kernel: Kernel, tq: int) -> None:
    if kernel.backend == "reference" or str(kernel) == "flex-cpu":
        return  # They repeat them, and say so.
    q, k, v = kernel.inputs(1, 16, 2, tq, 8192, 64)
    kernel(q, k, v)
    if kernel.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kernel(q, k, v)
        assert torch.cuda.max_memory_allocated() - before < 4 * k.nbytes
    else:
        with Largest([q, k, v]) as largest:
            kernel(q, k, v)
        # One copy of the keys is a change of layout; eight would be those of each head.
        assert 0 < largest.bytes <= 1.05 * k.nbytes


@each("windows")
def test_what_is_kept_between_calls_serves_training_after_inference(kernel: Kernel) -> None:
    tensors = kernel.inputs(2, 4, 2, 77, 77, 16)
    with torch.inference_mode():
        first = kernel(*tensors, window=13)
    leaves = [x.detach().requires_grad_("grad" in kernel.supports) for x in tensors]
    out = kernel(*leaves, window=13)
    torch.testing.assert_close(out, first.clone())
    if out.requires_grad:
        out.sum().backward()
