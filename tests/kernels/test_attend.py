"""`attend`: which backend answers, what is refused, and how; `test_conformance` has what is computed."""

import itertools
import timeit
from typing import Any

import pytest
import torch

from rnope.errors import ConfigError
from rnope.kernels import attend, choose
from rnope.kernels.attend import BACKENDS, Backend
from rnope.kernels.request import Request

LAYER: dict[str, Any] = {"dtype": torch.bfloat16, "window": 512, "head_size": 64, "heads": 8, "kv_heads": 2}


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({}, "varlen"),
        ({"window": None}, "sdpa"),
        ({"window": None, "head_size": 512}, "flex"),
        ({"single": True}, "sdpa"),
        ({"single": True, "starts": True, "dtype": torch.float32}, "sdpa"),
        ({"starts": True, "grad": True}, "flex"),
        ({"window": None, "starts": True}, "flex"),
        ({"window": None, "rows": True}, "flex"),
        ({"dtype": torch.float32}, "flex"),
        ({"dtype": torch.float32, "window": None}, "flex"),
        ({"head_size": 20}, "flex"),
        ({"head_size": 8, "dtype": torch.float32}, "blockwise"),
        ({"dtype": torch.float64}, "blockwise"),
    ],
)
def test_the_choice_on_a_gpu_needs_none(request_: dict[str, Any], name: str) -> None:
    assert choose(device="cuda", **(LAYER | request_)) == name
    assert choose(device="cpu", **(LAYER | request_)) == "blockwise"


@pytest.mark.parametrize(
    ("backend", "request_", "message"),
    [
        ("varlen", {}, "runs on cuda only, and this is cpu"),
        ("varlen", {"device": "cuda", "starts": True}, "here are starts. Use 'flex'"),
        ("varlen", {"device": "cuda", "dtype": torch.float32}, "bfloat16 and float16 on cuda, and this is float32"),
        ("varlen", {"device": "cuda", "head_size": 20}, "multiple of 8 up to 256 on cuda, and these have 20"),
        ("sdpa", {}, "here is a window for more than one query"),
        ("sdpa", {"window": None, "starts": True}, "here are starts for more than one query"),
        ("sdpa", {"rows": True}, "here are rows"),
        ("sdpa", {"device": "meta"}, "this is meta"),
        ("sdpa", {"device": "cuda", "window": None, "dtype": torch.float64}, "this is float64"),
        ("flex", {"grad": True}, "has no gradients on cpu"),
        ("flex", {"device": "meta"}, "this is meta"),
        ("flex", {"device": "cuda", "head_size": 8}, "heads of 16 or more"),
        ("flex", {"device": "cuda", "dtype": torch.float64}, "no kernel for float64"),
        ("blockwise", {"device": "meta", "rows": True}, "meta tensors lack. Use 'reference'"),
    ],
)
def test_backends_refuse_before_they_run(backend: str, request_: dict[str, Any], message: str) -> None:
    facts = {"device": "cpu", "starts": False, "rows": False, "grad": False, "single": False} | LAYER | request_
    error = BACKENDS[backend].refusal(Request(**(facts | {"device": torch.device(facts["device"])})))
    assert isinstance(error, ConfigError) and error.field == "backend" and error.value == backend
    assert message in str(error)


def test_attend_asks_as_choose_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window over all keys is none; a lone query is decoding unless its position is given; grad mode counts."""
    asked = []
    watching = Backend(run=BACKENDS["reference"].run, refusal=lambda request: asked.append(request))
    monkeypatch.setitem(BACKENDS, "reference", watching)
    q, k, v = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 6, 8).requires_grad_(), torch.zeros(1, 2, 6, 8)
    attend(q, k, v, window=6, backend="reference")
    attend(q, k, v, window=5, rows=torch.tensor([3]), starts=torch.tensor([[1]]), backend="reference")
    with torch.no_grad():
        attend(q.expand(1, 4, 2, 8), k, v, window=5, backend="reference")
    cpu, shape = torch.device("cpu"), (8, 4, 2)
    assert asked == [
        Request(cpu, torch.float32, None, *shape, starts=False, rows=False, grad=True, single=True),
        Request(cpu, torch.float32, 5, *shape, starts=True, rows=True, grad=True, single=False),
        Request(cpu, torch.float32, 5, *shape, starts=False, rows=False, grad=False, single=False),
    ]


def test_auto_takes_the_first_backend_that_does_not_refuse() -> None:
    q, k, v = (torch.zeros(1, 2, 8, 4, device="meta") for _ in range(3))
    starts = torch.zeros(1, 8, dtype=torch.int64, device="meta")
    for window, more in itertools.product((None, 3), ({}, {"starts": starts})):
        assert attend(q, k, v, window=window, **more).shape == q.shape
    with pytest.raises(ConfigError, match=r"backend = 'blockwise': .*meta.*Use 'reference'"):
        attend(q, k, v, starts=starts, backend="blockwise")


def test_asking_costs_little() -> None:
    """Decoding asks once for each layer of each token. About 6 µs when the machine is idle."""
    q, k, v = torch.zeros(1, 8, 1, 4), torch.zeros(1, 2, 16, 4), torch.zeros(1, 2, 16, 4)
    with pytest.MonkeyPatch.context() as monkeypatch:
        nothing = Backend(run=lambda q, k, v, **request: q, refusal=BACKENDS["blockwise"].refusal)
        monkeypatch.setitem(BACKENDS, "blockwise", nothing)
        best = min(timeit.repeat(lambda: attend(q, k, v, window=8), number=200, repeat=20)) / 200
    assert best < 50e-6


def test_torch_compile_traces_the_choice() -> None:
    q, k, v = (torch.randn(1, 2, 24, 16) for _ in range(3))
    compiled = torch.compile(lambda q, k, v: attend(q, k, v), backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), attend(q, k, v))


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
